"""Brier score: squared distance of the predicted distribution from the true token, mean over tokens.

In [0, 2]; unlike the loss it is bounded, so one confident mistake cannot rule it.
"""

from collections.abc import Sequence

from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.stats import Measured, estimate, ratio, scored
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "score"
NEEDS_TEACHER = False


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    kept = scored(scores, "brier")
    return ratio([s.brier for s in kept], [s.n_tokens for s in kept])


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
