"""Top-1 agreement: share of positions where model and teacher put the same token first."""

from collections.abc import Sequence

from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.stats import Measured, estimate, ratio, scored
from tutelage.types import Estimate

HIGHER_IS_BETTER = True
UNIT = "share"
NEEDS_TEACHER = True


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    kept = scored(scores, "top1_agreement")
    n_agree = [s.n_agree for s in kept if s.n_agree is not None]
    assert len(n_agree) == len(kept), "top1_agreement needs scores made with a teacher"
    return ratio(n_agree, [s.n_tokens for s in kept])


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences: tokens of one sequence are not independent, so n counts sequences."""
    return estimate(measure(scores), UNIT)
