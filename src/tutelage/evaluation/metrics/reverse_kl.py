"""Reverse KL: KL(model || teacher), mean over tokens.

In nats a token; 0 for a copy of the teacher.  It is large where the model says what the teacher would not; KL to
teacher is large where the model leaves out what the teacher would say.  It is left out where a teacher gives a
token exactly 0.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "nats"
NEEDS_TEACHER = True
SUMS = ("reverse_kl_nats",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "reverse_kl_nats", metric="reverse_kl")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
