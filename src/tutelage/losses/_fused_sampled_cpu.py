"""The compiled CPU loop of `fused_sampled.py`: one softmax of the student's row, then a few subtractions.

The pass over a row and its arithmetic are those of `_fused_cpu.py`; what differs is the gradient: probabilities times
one number, and at the few tokens of the sample and of the hard terms that number less their weight, taken again from
the exponentials so that it is rounded once.  (numba's cache follows one file: after a change in a file that this one
compiles from, remove `__pycache__`.)
"""

from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import narrow, wide_vectors, widen
from tutelage.losses._fused_cpu import BLOCK, _inner, norms, read_row, write_hard

TAKEN = 1  # the scratch row that `_fused_cpu` gives to the teacher: zeros here, but at the row's few tokens


def _write_both(out: Any, q: Any, h: Any, over_q: Any, over_h: Any, soft: Any, hard: Any) -> None:
    """soft * q + hard * h, normalised: q is the student at the sample's temperature, h at temperature 1."""
    wide_vectors()
    for j in range(out.shape[0]):
        out[j] = narrow(q[j] * over_q * soft + h[j] * over_h * hard, out[j])


write_both = _inner()(_write_both)


def _write_row(out: Any, two: Any, e: Any, peaks: Any, state: Any, soft: Any, hard: Any) -> None:
    """The gradient of a row from its exponentials, as if nothing had to be subtracted."""
    for k in range(peaks.shape[1]):
        low, high = k * BLOCK, min((k + 1) * BLOCK, out.shape[0])
        over_q, _, over_h = norms(peaks, state, k)
        if two:
            write_both(out[low:high], e[0][low:high], e[2][low:high], over_q, over_h, soft, hard)
        else:
            write_hard(out[low:high], e[0][low:high], over_q, soft + hard)


write_row = _inner()(_write_row)


def _subtract(out: Any, ids: Any, two: Any, e: Any, peaks: Any, state: Any, soft: Any, hard: Any) -> None:
    """The gradient at some tokens, less what `e[TAKEN]` holds for them; the same when a token is named twice."""
    for i in range(ids.shape[0]):
        token = ids[i]
        over_q, _, over_h = norms(peaks, state, token // BLOCK)
        q = e[0, token] * over_q
        value = q * soft + e[2, token] * over_h * hard if two else q * (soft + hard)
        out[token] = narrow(value - e[TAKEN, token], out[token])


subtract = _inner()(_subtract)


def _rows(
    student_NV: Any,
    ids_M: Any,
    weights_M: Any,
    offsets: Any,
    ids_HN: Any,
    gradient_NV: Any,
    losses_NL: Any,
    factors: Any,
    soft: Any,
    one_hot_H: Any,
    with_gradient: Any,
    first: Any,
    last: Any,
) -> None:
    """Losses [N, 1 + H] in nats (soft, then each cross-entropy) and the gradient, of rows first to last.

    `gradient_NV` may be `student_NV` itself: a row is read to its end before it is written.
    """
    n_columns, n_hard = student_NV.shape[1], ids_HN.shape[0]
    e = np.empty((3, n_columns), np.float32)
    e[TAKEN] = 0
    peaks = np.zeros((3, (n_columns + BLOCK - 1) // BLOCK))
    state = np.ones(7)
    two = n_hard > 0 and factors[0] != factors[2]  # the hard terms need the student at T = 1 as well
    hard_stream = 2 if two else 0
    hard = np.float32(one_hot_H.sum())
    for i in range(first, last):
        read_row(student_NV[i], student_NV[i], factors, (True, False, two), e, peaks, state)
        ids, weights, hard_ids = (
            ids_M[offsets[i] : offsets[i + 1]],
            weights_M[offsets[i] : offsets[i + 1]],
            ids_HN[:, i],
        )
        log_sum, mass = state[0] + np.log(state[3]), 0.0
        for j in range(ids.shape[0]):
            mass += weights[j]
            losses_NL[i, 0] += weights[j] * (log_sum - np.float64(widen(student_NV[i, ids[j]]) * factors[0]))
        log_sum = state[hard_stream] + np.log(state[3 + hard_stream])
        for h in range(n_hard):
            losses_NL[i, 1 + h] = log_sum - np.float64(widen(student_NV[i, hard_ids[h]]) * factors[hard_stream])
        if with_gradient:
            soft_mass = np.float32(soft * mass)
            for j in range(ids.shape[0]):
                e[TAKEN, ids[j]] += weights[j] * soft
            for h in range(n_hard):
                e[TAKEN, hard_ids[h]] += one_hot_H[h]
            write_row(gradient_NV[i], two, e, peaks, state, soft_mass, hard)
            subtract(gradient_NV[i], ids, two, e, peaks, state, soft_mass, hard)
            subtract(gradient_NV[i], hard_ids, two, e, peaks, state, soft_mass, hard)
            for j in range(ids.shape[0]):
                e[TAKEN, ids[j]] = 0
            for h in range(n_hard):
                e[TAKEN, hard_ids[h]] = 0


rows = njit(nogil=True, cache=True, error_model="numpy")(_rows)
