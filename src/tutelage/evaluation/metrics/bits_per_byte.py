"""Bits per byte: cross-entropy of the text in bits over its length in bytes.

Of tokens that stand for text: control tokens have no bytes and take no part.  Models with different tokenizers can be
compared by it, as long as they are measured on the same text.
"""

import math
from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "bits"
NEEDS_TEACHER = False
SUMS = ("byte_nll_nats", "n_bytes")


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it."""
    return _bits(mean_of(scores, "byte_nll_nats", metric="bits_per_byte", over="n_bytes"))


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)


def _bits(nats: Measured) -> Measured:
    return Measured(nats.value / math.log(2), nats.influence_n / math.log(2))
