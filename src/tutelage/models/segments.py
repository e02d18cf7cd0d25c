"""A rendered chat in stretches of one origin each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of characters of one origin; `trained`: an assistant wrote it, or it ends the assistant's turn."""

    text: str
    kind: Literal["template", "content"]
    role: str = ""
    trained: bool = False
