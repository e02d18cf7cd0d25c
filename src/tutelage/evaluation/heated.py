"""The temperature that would mend a model's calibration, from its losses at a few temperatures.

The loss as a function of the inverse temperature b is convex; the records hold, for each sequence, its value and its
slope at `positions.INVERSE_TEMPERATURES`.  Between two of these it is the polynomial with the values and slopes of the
four nearest ones, so every number follows from the records alone.  A test compares with a direct minimisation in
float64.

Shape legend: m sets of pooled sums, n sequences, H inverse temperatures, F = 2 H + 1 sums, J coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.positions import INVERSE_TEMPERATURES
from tutelage.evaluation.stats import Array, scored
from tutelage.evaluation.sums import SequenceScore

_B_H = np.array(INVERSE_TEMPERATURES)
_PLAIN = INVERSE_TEMPERATURES.index(1.0)
_N_NODES, _NEWTON_STEPS = 4, 8


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
    left_m = np.clip((slopes_mH <= 0).sum(-1) - 1, 0, len(_B_H) - 2)  # the slope grows: its sign changes once
    width_m = _B_H[left_m + 1] - _B_H[left_m]
    near_mK = _first_node(left_m)[:, None] + np.arange(_N_NODES)
    known = [np.take_along_axis(x_mH, near_mK, 1) for x_mH in (losses_mH, slopes_mH * width_m[:, None])]
    coefficients_mJ = np.einsum("mjk,mk->mj", _FITS[left_m], np.concatenate(known, axis=1))
    t_m = _turning(coefficients_mJ)
    t_m = np.where(slopes_mH[:, 0] > 0, 0.0, np.where(slopes_mH[:, -1] < 0, 1.0, t_m))
    is_flat_m = slopes_mH[:, _PLAIN] == 0  # no temperature changes a uniform distribution
    inverse_m = np.where(is_flat_m, 1.0, _B_H[left_m] + t_m * width_m)
    loss_m = (coefficients_mJ * _powers(t_m)).sum(-1)
    return _Lowest(inverse_m, np.where(is_flat_m, losses_mH[:, _PLAIN], loss_m))


def _turning(coefficients_mJ: Array) -> Array:
    """Where in [0, 1] the polynomial stops falling, by Newton's method; its slope grows from there to here."""
    t_m = np.full(len(coefficients_mJ), 0.5)
    for _ in range(_NEWTON_STEPS):
        slope_m = (coefficients_mJ * _powers(t_m, derivative=1)).sum(-1)
        curve_m = (coefficients_mJ * _powers(t_m, derivative=2)).sum(-1)
        step_m = np.divide(slope_m, curve_m, out=np.zeros_like(slope_m), where=curve_m > 0)
        t_m = np.clip(t_m - step_m, 0.0, 1.0)
    return t_m


def _powers(t_m: Array, *, derivative: int = 0) -> Array:
    """t**j by power, or a derivative of it, [m, J]."""
    found = np.zeros((len(t_m), 2 * _N_NODES))
    for j in range(derivative, 2 * _N_NODES):
        found[:, j] = math.perm(j, derivative) * t_m ** (j - derivative)
    return found


def _first_node(left: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of the nodes about the interval that begins at `left`."""
    return np.clip(left - 1, 0, len(_B_H) - _N_NODES)


def _fit(left: int) -> Array:
    """What turns values and slopes of the nodes about an interval into the coefficients there, [J, J]."""
    nodes_K = _B_H[int(_first_node(np.array(left))) :][:_N_NODES]
    t_K = (nodes_K - _B_H[left]) / (_B_H[left + 1] - _B_H[left])
    return np.asarray(np.linalg.inv(np.concatenate([_powers(t_K), _powers(t_K, derivative=1)])))


_FITS = np.stack([_fit(left) for left in range(len(_B_H) - 1)])
