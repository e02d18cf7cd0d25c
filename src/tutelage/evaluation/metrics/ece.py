"""Calibration (ECE): mean gap between the first token's probability and how often it is right.

Expected calibration error over 15 equal-width bins (arXiv:1706.04599), pooled over all tokens; in [0, 1].
"""

from collections.abc import Sequence

import numpy as np

from tutelage.evaluation.stats import Array, Measured, estimate, jackknife, scored
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

HIGHER_IS_BETTER = False
UNIT = "share"
NEEDS_TEACHER = False
SUMS = ("bin_confidence", "bin_correct")


def measure(scores: Sequence[SequenceScore]) -> Measured:
    """The value and each sequence's influence on it, by leaving each one out of the pooled bins."""
    kept = scored(scores, "ece")
    gaps_nK = np.array([np.subtract(s.bin_confidence, s.bin_correct) for s in kept], dtype=np.float64)
    tokens_n1 = np.array([[s.n_tokens] for s in kept], dtype=np.float64)
    return jackknife(_pooled, np.concatenate([gaps_nK, tokens_n1], axis=1))


def compute(scores: Sequence[SequenceScore]) -> Estimate:
    """Jackknife over sequences."""
    return estimate(measure(scores), UNIT)


def _pooled(sums_mF: Array) -> Array:
    """ECE of pooled sums: |confidence - correct| summed over bins, over the number of tokens."""
    value_m: Array = np.abs(sums_mF[:, :-1]).sum(-1) / sums_mF[:, -1]
    return value_m
