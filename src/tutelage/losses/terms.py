"""The terms of a loss, and the one place where a scale is made: weight * T**k / count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tutelage.losses.divergences import temperature_power
from tutelage.losses.schedules import Schedule, constant
from tutelage.roles import TEACHER

TermKind = Literal["divergence", "ground_truth", "teacher_argmax", "feature"]
Trust = Literal["always", "progress", "per_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What a term of kind "feature" compares inside student and teacher; see `losses/features`."""

    name: str  # a file of losses/features
    settings: Mapping[str, str | int | bool]  # the fields of the recipe that are its own
    layers: tuple[tuple[int, int], ...] | None = None  # (student's, teacher's); None: chosen when both are there
    learned: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # shapes of what is learned beside the student

    channels: tuple[int, ...] = ()  # of the teacher's residual stream, that the student's are; empty: others of its own

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The layers that are compared, (student's, teacher's)."""
        assert self.layers is not None, "training/features.py settles them before any step"
        return self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term: a divergence to the teacher, cross-entropy on the truth or the teacher's first choice, a feature."""

    kind: TermKind
    divergence: str = ""  # a name of losses/names.py when kind is "divergence"
    feature: Feature | None = None  # what is compared when kind is "feature"
    parameters: dict[str, float] = field(default_factory=dict)
    weight: Schedule = field(default_factory=lambda: constant(1.0))
    temperature: Schedule = field(default_factory=lambda: constant(1.0))
    source: str = TEACHER  # whom it learns from
    trust: Trust = "always"  # progress: the weight follows how far the teacher is; per_token: see losses/gates.py

    @property
    def name(self) -> str:
        """The name in metrics: a divergence's or feature's own, `cross_entropy`, …, and `.NAME` of whom."""
        name = {
            "divergence": self.divergence,
            "feature": self.feature.name if self.feature is not None else "",
            "ground_truth": "cross_entropy",
            "teacher_argmax": "cross_entropy_argmax",
        }[self.kind]
        return f"{name}.{self.source}" if self.needs_teacher and self.source != TEACHER else name

    @property
    def needs_teacher(self) -> bool:
        """Whether the term cannot be computed without a teacher."""
        return self.kind != "ground_truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What one term's sum is multiplied by in this step, and its temperature."""

    factor: float
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Of one chunk: each term's plain sum (0-dim, float32 or wider), and d(total)/d(student product), [n, V]."""

    sums: dict[str, Tensor]
    gradient_NV: Tensor | None


def scale_of(term: Term, *, step: int, n_steps: int, count: int) -> Scale:
    """`weight * T**k / count` of one step: `count` is over all micro-batches (and ranks).

    A count of zero gives factor 0: the caller has already refused a step without any trained token.
    """
    temperature = term.temperature.value(step, n_steps=n_steps) if term.kind == "divergence" else 1.0
    power = temperature_power(term.divergence) if term.kind == "divergence" else 0
    factor = term.weight.value(step, n_steps=n_steps) * temperature**power
    return Scale(factor=factor / count if count else 0.0, temperature=temperature)
