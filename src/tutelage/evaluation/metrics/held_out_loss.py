"""Held-out loss: cross-entropy of the true next tokens, mean over tokens.

In nats a token.  It asks who predicts this text, not who imitates the teacher.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "nats"
NEEDS_TEACHER = False
SUMS = ("nll_nats",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "nll_nats", metric="held_out_loss")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
