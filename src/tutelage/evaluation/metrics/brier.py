"""Brier score: squared distance of the predicted distribution from the true token, mean over tokens.

In [0, 2]; unlike the loss it is bounded, so one confident mistake cannot rule it.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "score"
NEEDS_TEACHER = False
SUMS = ("brier",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "brier", metric="brier")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
