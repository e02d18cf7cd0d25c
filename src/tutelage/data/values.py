"""Checked values of a row: what has the wrong type or cannot be learned from is a defect of that row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.data.example import RowDefectError

N_NAMED_COLUMNS = 12  # of a row that lacks one: enough to see the mistake, short enough for one line


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in a row for a value that a file holds and Python cannot: a defect only where it is used."""

    why: str


def value_of(row: Mapping[str, object], column: str) -> object:
    """What a column holds."""
    if column not in row:
        raise RowDefectError(f"no column '{column}'; found: {found_in(row)}")
    return row[column]


def found_in(row: Mapping[str, object]) -> str:
    """The names of a row's columns, the first of them."""
    names = [str(name) for name in row]
    shown = ", ".join(name[:40] for name in names[:N_NAMED_COLUMNS]) or "none"
    return shown + (", …" if len(names) > N_NAMED_COLUMNS else "")


def text_of(value: object, column: str, *, may_be_empty: bool = False) -> str:
    """A string that a tokenizer can take."""
    if not isinstance(value, str):
        raise RowDefectError(f"{column} must be a string, this is {kind_of(value)}")
    if not may_be_empty and not value.strip():
        raise RowDefectError(f"empty {column}")
    return sound(value, column)


def sound(text: str, column: str) -> str:
    """The text; RowDefectError where no tokenizer and no file could take it."""
    if "\x00" in text:
        raise RowDefectError(f"NUL character in {column}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowDefectError(f"lone surrogate in {column}") from None
    return text


def items_of(value: object, column: str) -> Sequence[object]:
    """The items of a list."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowDefectError(f"{column} must be a list, this is {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """A JSON word for a value's type, for messages that must not show the value."""
    if value is None:
        return "null"
    if isinstance(value, Unreadable):
        return f"a value that cannot be read ({value.why})"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), f"a {type(value).__name__}")
