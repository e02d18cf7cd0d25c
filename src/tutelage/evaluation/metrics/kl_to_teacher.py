"""KL to teacher: KL(teacher || model), mean over tokens.

In nats a token; 0 for a copy of the teacher.  It asks who imitates the teacher.
"""

from collections.abc import Sequence

from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.stats import Measured, estimate, ratio, scored
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "nats"
NEEDS_TEACHER = True


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    kept = scored(scores, "kl_to_teacher")
    kl_nats = [s.kl_nats for s in kept if s.kl_nats is not None]
    assert len(kl_nats) == len(kept), "kl_to_teacher needs scores made with a teacher"
    return ratio(kl_nats, [s.n_tokens for s in kept])


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
