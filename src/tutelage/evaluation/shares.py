"""Shares of prompts or pairs: intervals that also hold near 0 and 1, and exact tests."""

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of n prompts or pairs, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: float  # not whole where several answers to one prompt count as parts of it


def share(hits: float, n: float) -> Share:
    """hits / n with Wilson's score interval (Wilson 1927); of n = 0 nothing is known: 0 to 1.

    Where a prompt counts in part (2 of its 4 answers), `hits` is the sum of the parts: the interval is then too wide
    rather than too narrow, since values in [0, 1] vary most where each is 0 or 1.
    """
    if n <= 0:
        return Share(value=math.nan, low=0.0, high=1.0, n=0)
    p, z2 = hits / n, _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(max(p * (1 - p), 0.0) / n + z2 / (4 * n * n))
    return Share(value=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)), n=n)


def sign_test(n_first: int, n_second: int) -> float:
    """Two-sided p of "the first wins as often as the second" among the n that differ: exact, binomial(n, 1/2).

    On answers that are right or wrong this is McNemar's exact test.
    """
    n, fewer = n_first + n_second, min(n_first, n_second)
    return min(1.0, 2 * math.fsum(_binomial(k, n, p=0.5) for k in range(fewer + 1)))


def binomial_tail(hits: int, n: int, *, p: float) -> float:
    """P(at least `hits` of n), each with probability p in [0, 1]."""
    return min(1.0, math.fsum(_binomial(k, n, p=p) for k in range(hits, n + 1)))


def beta_binomial_tails(n: int, *, a: float, b: float) -> list[float]:
    """P(at least k of n) for k = 0 … n, where the chance of each is one draw from Beta(a, b), the same for all."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    tail, found = 0.0, []
    for k in range(n, -1, -1):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        tail += math.exp(ways + log_beta(a + k, b + n - k) - log_beta(a, b))
        found.append(min(1.0, tail))
    return found[::-1]


def _binomial(k: int, n: int, *, p: float) -> float:
    if p in (0.0, 1.0):
        return float(k == n * p)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))
