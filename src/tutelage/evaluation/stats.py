"""Uncertainty that counts sequences, not tokens: tokens of one sequence are not independent.

A metric is `Measured`: its value and the influence of each sequence on it, so that one formula serves every standard
error and every paired difference:  stderr**2 = n / (n - 1) * sum(influence**2).  Influences are those of leaving a
sequence out (the delete-one jackknife), which long sequences do not make too small.

Who makes many comparisons finds differences by luck: `holm` says which ones hold of all that were made together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any  # a field by its name

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import IntegrityError
from tutelage.evaluation.sums import SequenceScore
from tutelage.types import Estimate

Array = NDArray[np.float64]

_Z95 = 1.959963984540054
ALPHA = 0.05  # of any false claim among comparisons that are made together


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's value over n sequences, and how much each of them moves it (shape [n], sums to about 0)."""

    value: float
    influence_n: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """metric(a) - metric(b) over the n sequences that both scored.

    `decided`: its own 95 % interval excludes 0.  `p` is the two-sided p-value of that question.  `corrected`: it also
    holds among all comparisons that were made together (`holm`); None where it was made alone.
    """

    value: float
    stderr: float
    n: int
    decided: bool
    p: float = 1.0
    corrected: bool | None = None

    @property
    def is_sure(self) -> bool:
        """What may be said aloud: `corrected`, of a comparison made alone `decided`."""
        return self.decided if self.corrected is None else self.decided and self.corrected


def ratio(numerator_n: Sequence[float] | Array, denominator_n: Sequence[float] | Array) -> Measured:
    """sum(numerator) / sum(denominator), with the influence of each sequence by leaving it out.

    The linearised ratio has residual / sum(denominator), too small for long sequences: in simulations of 50 sequences
    of very different length its 95 % intervals cover the truth 1.2 points less often (docs/lab-log.md).
    """
    a_n, b_n = np.asarray(numerator_n, dtype=np.float64), np.asarray(denominator_n, dtype=np.float64)
    n, whole = len(a_n), b_n.sum()
    value = float(a_n.sum() / whole)
    rest_n = whole - b_n
    without_n = np.divide(a_n - value * b_n, rest_n, out=np.zeros(n), where=rest_n > 0)  # the value less the rest's
    return Measured(value, (without_n - without_n.mean()) * (n - 1) / n)


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


def difference(a: Measured, b: Measured, *, n_counted: int | None = None) -> Difference:
    """a - b, paired: both must be measured on the same sequences in the same order.

    `n_counted` is the number of sequences that carry the difference, where the others have no part in it.
    """
    assert len(a.influence_n) == len(b.influence_n), "paired metrics need the same sequences"
    is_known = bool(np.isfinite(a.influence_n).all() and np.isfinite(b.influence_n).all())
    value, stderr = a.value - b.value, _stderr(a.influence_n - b.influence_n) if is_known else math.inf
    n = len(a.influence_n) if n_counted is None else n_counted
    return Difference(
        value=value,
        stderr=stderr,
        n=n,
        decided=abs(value) > quantile_95(n) * stderr,
        p=p_value(value, stderr, n=n),
    )


def negative(d: Difference) -> Difference:
    """The same comparison the other way round."""
    return replace(d, value=-d.value)


def p_value(value: float, stderr: float, *, n: int) -> float:
    """Two-sided, of Student's t with n - 1 degrees of freedom; 1 where nothing differs or no error is known.

    The finite series of Abramowitz and Stegun 26.7.3 and 26.7.4; above 1,000 degrees Wallace's normal deviate
    (doi:10.1214/aoms/1177706361), good to 1e-6 of it there.
    """
    if n < 2 or value == 0 or not math.isfinite(stderr):
        return 1.0
    if stderr == 0:
        return 0.0
    v, t = n - 1, abs(value / stderr)
    if v > 1000:
        z = math.sqrt(v * math.log1p(t * t / v)) * (8 * v + 1) / (8 * v + 3)
        return math.erfc(z / math.sqrt(2))
    angle = math.atan(t / math.sqrt(v))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = v % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, v - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + (sine * total if v > 1 else 0.0)) if odd else sine * total
    return max(1.0 - within, 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number: reject where one is at most ALPHA, and any error at all has that chance.

    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979, 65-70), valid however the hypotheses depend
    on each other: the k-th smallest of m p-values (from 0) counts m - k times, and never less than one before it.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        corrected[i] = largest
    return corrected


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same comparisons, made together: each with `corrected` set."""
    holds = holm([d.p for d in differences])
    return [replace(d, corrected=p <= ALPHA) for d, p in zip(differences, holds, strict=True)]


@cache
def quantile_95(n: int) -> float:
    """Half-width of a 95 % interval in standard errors: Student's t with n - 1 degrees of freedom; inf below 2.

    Where `p_value` is 5 %, by halving; above 100 degrees Cornish-Fisher's series, good to 1e-8 of it there.
    """
    if n < 2:
        return math.inf
    z, v = _Z95, n - 1
    if v <= 100:
        return _where(lambda t: p_value(t, 1.0, n=n) <= 0.05, z, 13.0)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def _where(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least number between both for which it holds, to the last digit but a few."""
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def summed(score: SequenceScore, name: str) -> Any:
    """A sum of a sequence by name: a field of it, or one of its `sums`; None where it was not measured."""
    return getattr(score, name) if name in SequenceScore.__dataclass_fields__ else score.sums.get(name)


def has(score: SequenceScore, names: Sequence[str]) -> bool:
    """Whether all of these were measured."""
    return not any(summed(score, name) in (None, ()) for name in names)


def mean_of(scores: Sequence[SequenceScore], name: str, *, metric: str, over: str = "n_tokens") -> Measured:
    """Sum of `name` over sum of `over`, of the sequences that are scored."""
    kept = scored(scores, metric)
    pairs = [(summed(s, name), summed(s, over)) for s in kept]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert len(known) == len(kept), f"{metric} needs scores with {name} and {over}"
    return ratio([a for a, _ in known], [b for _, b in known])


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
    """inf where an influence is unknown, or of one sequence alone."""
    n = len(influence_n)
    if n < 2 or not np.isfinite(influence_n).all():
        return math.inf
    return math.sqrt(float((influence_n**2).sum()) * n / (n - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of two models on the sequences or prompts that both have: `difference` is first minus second."""

    metric: str
    first: str
    second: str
    difference: Difference
