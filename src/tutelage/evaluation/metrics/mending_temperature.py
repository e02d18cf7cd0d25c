"""Mending temperature: the T at which dividing the logits by it gives the smallest held-out loss.

No unit; above 1 the model is too sure of itself, below 1 not sure enough (temperature scaling, arXiv:1706.04599).
It is looked for between 0.5 and 4; at an end of that range its error is unknown.
"""

import math
from collections.abc import Sequence

import numpy as np

from tutelage.evaluation.heated import best_temperature, heated_sums, is_at_an_end
from tutelage.evaluation.stats import Measured, estimate, jackknife
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = None  # 1 needs no mending
UNIT = "temperature"
NEEDS_TEACHER = False
SUMS = ("heated_nats", "heated_slopes")


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it, by leaving each one out of the pooled losses."""
    found = jackknife(best_temperature, heated_sums(scores, "mending_temperature"))
    unknown_n = np.full_like(found.influence_n, math.inf)
    return Measured(found.value, unknown_n) if is_at_an_end(found.value) else found


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Jackknife over sequences."""
    return estimate(measure(scores), UNIT)
