"""Runner-up order: rank correlation of teacher and model over the teacher's tokens of ranks 2 to 11, mean over tokens.

Spearman's correlation of the logits, in [-1, 1]: 1 for a copy, about 0 where the model knows nothing of the order.  How
the teacher orders what it does not choose is what soft targets hold beyond the labels (arXiv:1503.02531); the first
token is left out because top-1 agreement counts it.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = True
UNIT = "correlation"
NEEDS_TEACHER = True
SUMS = ("runner_up_order",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "runner_up_order", metric="runner_up_order")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
