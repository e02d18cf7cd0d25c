"""Acceptance: share of the model's tokens that the teacher would accept as drafts, mean of sum min(p, q).

In [0, 1], 1 for a copy.  The expected acceptance rate of speculative decoding with the model as the draft and the
teacher as the target, both sampled at temperature 1 (arXiv:2211.17192, corollary 3.6); of the positions of this text,
not of text that the teacher wrote.
"""

from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = True
UNIT = "share"
NEEDS_TEACHER = True
SUMS = ("acceptance",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return mean_of(scores, "acceptance", metric="acceptance")


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
