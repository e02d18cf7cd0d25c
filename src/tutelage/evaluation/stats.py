"""Uncertainty that counts sequences, not tokens: tokens of one sequence are not independent.

A metric is `Measured`: its value and the influence of each sequence on it, so that one formula serves every standard
error and every paired difference:  stderr**2 = n / (n - 1) * sum(influence**2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import IntegrityError
from tutelage.evaluation.score import SequenceScore
from tutelage.types import Estimate

Array = NDArray[np.float64]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's value over n sequences, and how much each of them moves it (shape [n], sums to about 0)."""

    value: float
    influence_n: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """metric(a) - metric(b) over the n sequences that both scored; `decided` when its 95 % interval excludes 0."""

    value: float
    stderr: float
    n: int
    decided: bool


def ratio(numerator_n: Sequence[float] | Array, denominator_n: Sequence[float] | Array) -> Measured:
    """sum(numerator) / sum(denominator), linearised: each sequence's residual over the whole denominator."""
    a_n, b_n = np.asarray(numerator_n, dtype=np.float64), np.asarray(denominator_n, dtype=np.float64)
    value = float(a_n.sum() / b_n.sum())
    return Measured(value, (a_n - value * b_n) / b_n.sum())


def jackknife(value_of: Callable[[Array], Array], sums_nF: Array) -> Measured:
    """A function of pooled sums ([..., F] to [...]), with the influence of each sequence by leaving it out."""
    total_F = sums_nF.sum(0)
    n = len(sums_nF)
    value = float(value_of(total_F[None])[0])
    if n == 1:
        return Measured(value, np.zeros(1))
    without_n = value_of(total_F[None] - sums_nF)
    return Measured(value, (without_n.mean() - without_n) * (n - 1) / n)


def estimate(measured: Measured, unit: str) -> Estimate:
    """The value with its standard error; inf from a single sequence, whose spread nobody knows."""
    return Estimate(value=measured.value, stderr=_stderr(measured.influence_n), n=len(measured.influence_n), unit=unit)


def difference(a: Measured, b: Measured) -> Difference:
    """a - b, paired: both must be measured on the same sequences in the same order."""
    assert len(a.influence_n) == len(b.influence_n), "paired metrics need the same sequences"
    value, stderr, n = a.value - b.value, _stderr(a.influence_n - b.influence_n), len(a.influence_n)
    return Difference(value=value, stderr=stderr, n=n, decided=abs(value) > quantile_95(n) * stderr)


def negative(d: Difference) -> Difference:
    """The same comparison the other way round."""
    return Difference(value=-d.value, stderr=d.stderr, n=d.n, decided=d.decided)


def quantile_95(n: int) -> float:
    """Half-width of a 95 % interval in standard errors: Student's t with n - 1 degrees of freedom (Cornish-Fisher)."""
    if n < 2:
        return math.inf
    z, v = _Z95, n - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def scored(scores: Sequence[SequenceScore], metric: str) -> list[SequenceScore]:
    """The sequences with a number at each position; IntegrityError[NO_SCORED_TOKENS] when there is none."""
    complete = [s for s in scores if s.n_unscored == 0 and s.n_tokens > 0]
    if not complete:
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            f"{metric}: 0 scored tokens in {len(scores)} held-out sequences; check the mask and data.max_length",
        )
    return complete


def paired(a: Sequence[SequenceScore], b: Sequence[SequenceScore]) -> tuple[list[SequenceScore], list[SequenceScore]]:
    """The sequences that both have scored completely, each list in the order of the rows."""
    a_by_row = {s.row: s for s in a if s.n_unscored == 0 and s.n_tokens > 0}
    b_by_row = {s.row: s for s in b if s.n_unscored == 0 and s.n_tokens > 0}
    common = sorted(a_by_row.keys() & b_by_row.keys())
    return [a_by_row[r] for r in common], [b_by_row[r] for r in common]


def _stderr(influence_n: Array) -> float:
    n = len(influence_n)
    return math.sqrt(float((influence_n**2).sum()) * n / (n - 1)) if n > 1 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of two models on the sequences or prompts that both have: `difference` is first minus second."""

    metric: str
    first: str
    second: str
    difference: Difference
