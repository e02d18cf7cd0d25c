"""The temperature that would mend a model's calibration, from its losses at a few temperatures.

The loss as a function of the inverse temperature b is convex; the records hold, for each sequence, its value and its
slope at `positions.INVERSE_TEMPERATURES`.  Between two of these it is a cubic with those values and slopes, so every
number follows from the records alone.  A test compares with a direct minimisation in float64.

Shape legend: m sets of pooled sums, n sequences, H inverse temperatures, F = 2 H + 1 sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.evaluation.positions import INVERSE_TEMPERATURES
from tutelage.evaluation.stats import Array, scored
from tutelage.evaluation.sums import SequenceScore

_B_H = np.array(INVERSE_TEMPERATURES)
_PLAIN = INVERSE_TEMPERATURES.index(1.0)


@dataclass(frozen=True, slots=True)
class _Lowest:
    """Where the loss is smallest, and how small."""

    inverse_m: Array
    loss_m: Array


def heated_sums(scores: Sequence[SequenceScore], metric: str) -> Array:
    """Losses and slopes at each inverse temperature and the number of tokens, by sequence: [n, F]."""
    kept = scored(scores, metric)
    return np.array([[*s.heated_nats, *s.heated_slopes, s.n_tokens] for s in kept], dtype=np.float64)


def best_temperature(sums_mF: Array) -> Array:
    """The temperature with the smallest loss, [m]; an end of the range where the loss still falls there."""
    return np.asarray(1 / _lowest(sums_mF).inverse_m)


def is_at_an_end(temperature: float) -> bool:
    """Whether the smallest loss may lie beyond the temperatures that were measured."""
    return temperature in (1 / INVERSE_TEMPERATURES[0], 1 / INVERSE_TEMPERATURES[-1])


def saved_nats(sums_mF: Array) -> Array:
    """The loss at temperature 1 less the smallest one, [m], at least 0."""
    return np.asarray(_split(sums_mF)[0][:, _PLAIN] - _lowest(sums_mF).loss_m)


def _split(sums_mF: Array) -> tuple[Array, Array]:
    """Mean losses and slopes [m, H]."""
    means_mF = sums_mF[:, :-1] / sums_mF[:, -1:]
    return means_mF[:, : len(_B_H)], means_mF[:, len(_B_H) :]


def _lowest(sums_mF: Array) -> _Lowest:
    losses_mH, slopes_mH = _split(sums_mF)
    falling_mH = slopes_mH <= 0
    left_m = np.clip(falling_mH.sum(-1) - 1, 0, len(_B_H) - 2)  # the slope grows: the sign changes once
    width_m = _B_H[left_m + 1] - _B_H[left_m]
    low_m, high_m = (np.take_along_axis(losses_mH, k[:, None], 1)[:, 0] for k in (left_m, left_m + 1))
    first_m, last_m = (np.take_along_axis(slopes_mH, k[:, None], 1)[:, 0] * width_m for k in (left_m, left_m + 1))
    t_m = _turning(first_m, last_m, rise_m=high_m - low_m)
    t_m = np.where(first_m > 0, 0.0, np.where(last_m < 0, 1.0, t_m))
    loss_m = (
        low_m * (1 + 2 * t_m) * (1 - t_m) ** 2
        + first_m * t_m * (1 - t_m) ** 2
        + high_m * t_m**2 * (3 - 2 * t_m)
        + last_m * t_m**2 * (t_m - 1)
    )
    is_flat_m = slopes_mH[:, _PLAIN] == 0  # no temperature changes a uniform distribution
    inverse_m = np.where(is_flat_m, 1.0, _B_H[left_m] + t_m * width_m)
    return _Lowest(inverse_m, np.where(is_flat_m, losses_mH[:, _PLAIN], loss_m))


def _turning(first_m: Array, last_m: Array, *, rise_m: Array) -> Array:
    """Where in [0, 1] the cubic with these end slopes and this rise has slope 0: a t**2 + b t + c = 0, rising there."""
    a_m = 3 * (first_m + last_m) - 6 * rise_m
    b_m = 6 * rise_m - 4 * first_m - 2 * last_m
    root_m = np.sqrt(np.maximum(b_m**2 - 4 * a_m * first_m, 0.0))
    below_m = b_m + root_m
    t_m = np.divide(-2 * first_m, below_m, out=np.zeros_like(below_m), where=below_m > 0)
    return np.clip(t_m, 0.0, 1.0)
