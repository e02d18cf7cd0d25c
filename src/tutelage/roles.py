"""What the models of a run are called: in its folder, its metrics and its tables."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
TEACHER, STUDENT, FAMILY = "teacher", "student", "family"
_BEFORE, _CONTROL = "before-", "control-"
RESERVED = (TEACHER, STUDENT, "student_before", "control", FAMILY, "controls", "start", "trusted")
PREFIXES, SUFFIXES = (_BEFORE, _CONTROL), ("-bfloat16", "-adapter", "-codes")


def before(student: str) -> str:
    """A student as it was before it learned."""
    return "student_before" if student == STUDENT else _BEFORE + student


def control(student: str) -> str:
    """What started as the student did and learned the same tokens without a teacher."""
    return "control" if student == STUDENT else _CONTROL + student


def figure_name(model: str, term: str) -> str:
    """What a model's figure is called among those of all models: MODEL/TERM.  No model has a slash in its name."""
    return f"{model}/{term}"


def model_and_term(name: str) -> tuple[str, str]:
    """(model, term) of a `figure_name`."""
    model, _, term = name.partition("/")
    return model, term


def figures_of(model: str, figures: Mapping[str, Value]) -> dict[str, Value]:
    """By term, those of one model."""
    return {model_and_term(name)[1]: value for name, value in figures.items() if model_and_term(name)[0] == model}


def is_before(model: str) -> bool:
    """Whether a model is what a student was before it learned."""
    return model == before(STUDENT) or model.startswith(_BEFORE)


def trained(models: Iterable[str]) -> list[str]:
    """Those that a run trained beside the teacher: students and controls."""
    return [m for m in models if m != TEACHER and not is_before(m)]


def students(models: Iterable[str]) -> list[str]:
    """The students among the models of a run, in their order."""
    return [m for m in trained(models) if m != control(STUDENT) and not m.startswith(_CONTROL)]
