"""Perplexity: the exponential of the held-out loss.

Of all tokens together (micro average), not a mean of the sequences' perplexities.
"""

import math
from collections.abc import Sequence

from tutelage.evaluation.stats import Measured, estimate, mean_of
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "perplexity"
NEEDS_TEACHER = False
SUMS = ("nll_nats",)


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it, by the delta method: d exp(x) = exp(x) dx."""
    loss = mean_of(scores, "nll_nats", metric="perplexity")
    value = math.exp(loss.value) if loss.value < 700 else math.inf
    return Measured(value, value * loss.influence_n)


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Delta method on the ratio estimator over sequences."""
    return estimate(measure(scores), UNIT)
