"""Texts that name columns of a JSON line: `{column}` is what the line has there, `{{` and `}}` are braces.

Nothing else means anything: no attributes, no indexing, no format, no code.  What stands between two braces is the
name, to the letter, so a column may be called `a.b`, `x[0]` or `!`; only braces cannot be in it.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

_PIECE = re.compile(r"(?P<literal>[^{}]+)|(?P<brace>\{\{|\}\})|\{(?P<column>[^{}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnText:
    """The pieces in their order, each a literal text or the name of a column."""

    pieces: tuple[tuple[str, str], ...]  # (literal, column), one of them empty

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are named, each once."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column))


def parse(text: str) -> ColumnText:
    """The pieces of a text; ValueError that says where a brace is alone."""
    pieces, at = list[tuple[str, str]](), 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if found is None:
            around = text[at : at + 20].replace("\n", " ")
            raise ValueError(f"the brace at character {at + 1} ({around!r}) begins no {{column}}; {{{{ is a brace")
        pieces.append((found["literal"] or (found["brace"] or "")[:1], found["column"] or ""))
        at = found.end()
    return ColumnText(pieces=tuple(pieces))


def _parseable(text: str) -> str:
    try:
        parse(text)
    except ValueError as error:
        raise PydanticCustomError("column_text", "{why}", {"why": str(error)}) from None
    return text


ColumnTextField = Annotated[str, Field(min_length=1), AfterValidator(_parseable)]
