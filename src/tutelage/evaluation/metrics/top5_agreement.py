"""Top-5 agreement: share of the teacher's first five tokens that are among the model's first five, mean over tokens.

In [0, 1]; the order inside the five does not matter.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = True
UNIT = "share"
NEEDS_TEACHER = True
SUMS = ("top5_overlap",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "top5_overlap", metric="top5_agreement")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
