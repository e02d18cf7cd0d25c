"""What a technique does, in tokens; from it follow its operations, its hours and its money."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tutelage import plugins
from tutelage.planning.facts import Facts
from tutelage.planning.flops import Size

TECHNIQUES = "planning/techniques"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Tokens by what is done with them; each student trains on `student_training`."""

    student_training: float
    teacher_forward: float = 0.0
    teacher_training: float = 0.0
    prompt: float = 0.0  # read by the teacher before it writes
    answer: float = 0.0  # written by the teacher, one after the other
    stored: float = 0.0  # rows of a teacher cache, all draws
    sampled: float = 0.0  # asked once more, before: bounded whatever the text, and not counted in operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """Training documents in a file, which a teacher that writes goes on from, or answers."""

    source: Mapping[str, Any]  # as in a recipe's generate.prompts
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the techniques of a comparison find and leave what several runs share."""

    cache: str  # folder of the teacher cache
    answers: str  # folder of what the teacher writes
    beginnings: tuple[Beginnings, ...] = ()
    texts: int = 1  # how many the teacher is to write


class Technique(Protocol):
    """A module of `techniques/`; the name of its file is what `tutelage plan` calls it."""

    TITLE: str

    def work(self, facts: Facts) -> Work:
        """What it does."""
        ...

    def impossible(self, facts: Facts) -> str:
        """Why it cannot be done with this teacher, "" when it can."""
        ...

    def recipe(self, base: dict[str, Any], place: Place) -> dict[str, Any]:
        """The recipe `base` in its long form with what the technique changes; raises ConfigError where it cannot."""
        ...


def techniques() -> dict[str, Technique]:
    """By name."""
    return {name: plugins.load(TECHNIQUES, name) for name in plugins.names(TECHNIQUES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations, the teacher's and the students'."""

    teacher: float
    students: float

    @property
    def total(self) -> float:
        """Of all models."""
        return self.teacher + self.students


def flops_of(work: Work, facts: Facts) -> Flops:
    """By the formulas of `flops.py`; what an endpoint computes is not ours to count."""
    window = facts.text.window
    students = sum(work.student_training * size.training_flops(context=window) for size in facts.students.values())
    teacher = _teacher_flops(work, facts.teacher, window=window) if facts.teacher is not None else 0.0
    return Flops(teacher=teacher, students=students)


def _teacher_flops(work: Work, size: Size, *, window: float) -> float:
    return (
        work.teacher_forward * size.forward_flops(context=window)
        + work.teacher_training * size.training_flops(context=window)
        + work.prompt * size.forward_flops(context=window, with_head=False)
        + work.answer * size.forward_flops(context=window)
    )


def dollars_of(work: Work, facts: Facts) -> float | None:
    """What an endpoint takes for it; None where its price is not known, 0 where it is not asked."""
    endpoint = facts.endpoint
    if endpoint is None or not (work.prompt or work.answer):
        return 0.0
    if endpoint.usd_per_prompt_token is None or endpoint.usd_per_answer_token is None:
        return None
    return work.prompt * endpoint.usd_per_prompt_token + work.answer * endpoint.usd_per_answer_token


def by_name(facts: Facts) -> Mapping[str, tuple[Technique, Work | None]]:
    """Every technique with its work, None for one that cannot be done."""
    return {
        name: (technique, None if technique.impossible(facts) else technique.work(facts))
        for name, technique in techniques().items()
    }
