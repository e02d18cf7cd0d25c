"""The steps of the selection, a file each; its name is the option's.

Each has `build(settings)`, whose result says of a candidate why it is dropped, or "" to keep it.  Candidates come in
the order of the prompts, so what is kept does not depend on when an answer came.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer that may be kept."""

    text: str
    outcome: str  # answer, or truncated
    reference: str  # the right answer, where the data have one
    asked: tuple[str, ...]  # what was sent


Judge: TypeAlias = Callable[[Candidate], str]


def folded(text: str) -> str:
    """The text but for case and white space."""
    return " ".join(text.split()).casefold()
