"""Prompts and system prompts with columns of the data in them, rendered in one pass: what a row holds is never read."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tutelage.data.example import Reject, RowDefectError
from tutelage.data.values import N_NAMED_COLUMNS, kind_of, sound
from tutelage.errors import ConfigError
from tutelage.recipe.column_text import ColumnText

Item = TypeVar("Item")


def rendered(template: ColumnText, row: Mapping[str, object]) -> str:
    """The text for one row; RowDefectError when the row lacks a column or has something else than text in it."""
    values = {column: _value(row, column) for column in template.columns}
    if values and not any(value.strip() for value in values.values()):
        raise RowDefectError(f"empty {' and '.join(map(repr, values))}")
    return "".join(values[column] if column else literal for literal, column in template.pieces)


def text_in(row: Mapping[str, object], column: str) -> str:
    """What a row holds in a column, as text."""
    return _value(row, column)


def _value(row: Mapping[str, object], column: str) -> str:
    if column not in row:
        raise LacksColumnError(column, row)
    value = row[column]
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise RowDefectError(f"column {column!r} must be text or a number, this is {kind_of(value)}")
    return sound(value, repr(column))


class LacksColumnError(RowDefectError):
    """A row without a column that a template names."""

    def __init__(self, column: str, row: Mapping[str, object]) -> None:
        self.column = column
        near = difflib.get_close_matches(column, list(row), n=1, cutoff=0.5)
        names = ", ".join(name[:40] for name in list(row)[:N_NAMED_COLUMNS]) or "none"
        more = ", …" if len(row) > N_NAMED_COLUMNS else ""
        super().__init__(f"no column {column!r}{f' ({near[0]}?)' if near else ''}; found: {names}{more}")


@dataclass(slots=True, kw_only=True)
class Lacking:
    """Whether all rows of a source lack a column: then its name is wrong, and no row is."""

    n_rows: int = 0
    n_lacking: int = 0
    first: Reject | None = None

    def seen(self, item: Item, *, lacks: bool = False) -> Item:
        """The item of one more row, which may be the reject of one that lacks a column."""
        self.n_rows += 1
        if lacks and isinstance(item, Reject):
            self.n_lacking += 1
            self.first = self.first or item
        return item

    def require(self, number: int) -> None:
        """ConfigError when no row of `generate.prompts[number]` has the column."""
        if self.first is not None and self.n_lacking == self.n_rows:
            found = f"generate.prompts[{number}]: {self.first.name} has {self.first.reason}"
            raise ConfigError(
                "CONFIG", f"{found}; name a column of the file in braces, and double braces that are text"
            )
