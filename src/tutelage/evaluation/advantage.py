"""Whether the teacher predicts the data better than the student does before it has learned from it."""

from dataclasses import dataclass

import numpy as np

from tutelage import visible
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.likelihood import RowLogp
from tutelage.types import Estimate

_ADVICE = (
    "take a teacher that knows such text, let it learn the text first, or train without one "
    "(loss: [ground_truth] and no teacher)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantage:
    """Loss of both in nats a token over the same rows; `difference` is the student's less the teacher's."""

    teacher: Estimate
    student: Estimate
    difference: stats.Difference

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, paired, counting rows."""
        half = stats.quantile_95(self.difference.n) * self.difference.stderr
        return self.difference.value - half, self.difference.value + half

    @property
    def is_better(self) -> bool:
        """Whether the teacher is better by more than noise."""
        return self.difference.decided and self.difference.value > 0

    def sentence(self, *, rows: str, student: str) -> str:
        """What was found, and what to do where the teacher is not better."""
        low, high = self.interval
        found = (
            f"on {visible.counted(self.difference.n, f'{rows} row')} the teacher's loss is {self.teacher.value:.3f} "
            f"nats a token, that of {student} {self.student.value:.3f}"
        )
        if self.difference.n < 2:
            return f"{found}: one row tells no error, so nothing is decided; hold out more: data.held_out"
        if self.is_better:
            return (
                f"{found}: the teacher is better by {self.difference.value:.3f} (95%, paired: {low:.3f} to {high:.3f})"
            )
        if self.difference.decided:
            return (
                f"{found}: the teacher is worse by {-self.difference.value:.3f} ({-high:.3f} to {-low:.3f}); {_ADVICE}"
            )
        return f"{found}: no difference ({low:.3f} to {high:.3f}); it may have nothing to teach here: {_ADVICE}"


def advantage_of(teacher: RowLogp, student: RowLogp) -> Advantage:
    """Of the same rows under both; rows without a finite number under one of them are left out.

    Raises IntegrityError[NO_SCORED_TOKENS] where no row is left.
    """
    kept = np.isfinite(teacher.logp_R) & np.isfinite(student.logp_R) & (teacher.n_tokens_R > 0)
    if not kept.any():
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            f"none of {visible.counted(len(kept), 'row')} has a finite loss under teacher and student both; check "
            "data.train_on and, for weights that are damaged, each model by itself: tutelage doctor MODEL",
        )

    def loss(found: RowLogp) -> stats.Measured:
        return stats.ratio(-found.logp_R[kept], found.n_tokens_R[kept].astype(float))

    a, b = loss(student), loss(teacher)
    return Advantage(
        teacher=stats.estimate(b, "nats"), student=stats.estimate(a, "nats"), difference=stats.difference(a, b)
    )
