"""The steps of the selection, a file each; its name is the option's.

Each has `build(settings)`.  What it gives says of a candidate why it is dropped, "" to keep it, or a `Verdict` with
more to say; a step that compares the answers to one prompt, or that holds something open, gives a `Step`.  Candidates
come in the order of the prompts, so what is kept does not depend on when an answer came.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

FAILED = "function "  # how the reasons begin that are about the user's function, not about the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer that may be kept."""

    text: str
    outcome: str  # answer, or truncated
    reference: str  # the right answer, where the data have one
    asked: tuple[str, ...]  # what was sent
    name: str = ""  # where its prompt stands and which sample it is, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a step says of an answer: `why` is counted, `about` stands beside the example."""

    why: str
    about: str = ""
    is_kept: bool = False  # undecided: the answer stays, and that is counted


Said: TypeAlias = str | Verdict
Judge: TypeAlias = Callable[[Candidate], Said]


def _nothing() -> None:
    """Nothing is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that judges all candidates of a prompt together, reads files, or holds something open."""

    judge: Callable[[Sequence[Candidate]], Sequence[Said]]
    files: Mapping[str, str] = field(default_factory=dict)  # what it has read besides the recipe: name -> SHA-256
    close: Callable[[], None] = _nothing


def each(judge: Judge) -> Callable[[Sequence[Candidate]], Sequence[Said]]:
    """A judge of one candidate for all of a prompt."""
    return lambda candidates: [judge(candidate) for candidate in candidates]


def folded(text: str) -> str:
    """The text but for case and white space."""
    return " ".join(text.split()).casefold()
