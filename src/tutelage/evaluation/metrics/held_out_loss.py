"""Held-out loss: cross-entropy of the true next tokens, mean over tokens.

In nats a token.  It asks who predicts this text, not who imitates the teacher.
"""

from collections.abc import Sequence

from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.stats import Measured, estimate, ratio, scored
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "nats"
NEEDS_TEACHER = False


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    kept = scored(scores, "held_out_loss")
    return ratio([s.nll_nats for s in kept], [s.n_tokens for s in kept])


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
