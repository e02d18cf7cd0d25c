"""Saved by temperature: by how much the held-out loss falls when the logits are divided by the mending temperature.

In nats a token; 0 for a model that is calibrated as far as a temperature can help.  The temperature is found on the
same text, so a little of it is luck.
"""

from collections.abc import Sequence

from tutelage.evaluation.heated import heated_sums, saved_nats
from tutelage.evaluation.stats import Measured, estimate, jackknife
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "nats"
NEEDS_TEACHER = False
SUMS = ("heated_nats", "heated_slopes")


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it, by leaving each one out of the pooled losses."""
    return jackknife(saved_nats, heated_sums(scores, "saved_by_temperature"))


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Jackknife over sequences."""
    return estimate(measure(scores), UNIT)
