"""The compiled CPU loop of `fused_top_k.py`: one softmax of the student's row, and a sum over what is not kept.

The passes over a row are those of `_fused_cpu.py` and `_fused_sampled_cpu.py`.  The student's tail is summed over the
tokens that are not kept, never taken as 1 less the kept ones, which is a rounding error where the student is sure.
"""

from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import wide_vectors, widen
from tutelage.losses._fused_cpu import BLOCK, _inner, read_row
from tutelage.losses._fused_sampled_cpu import TAKEN, subtract, write_row


def _block_sum(e: Any) -> Any:
    wide_vectors()
    total = np.float32(0)
    for j in range(e.shape[0]):
        total += e[j]
    return total


block_sum = _inner(fastmath={"reassoc"})(_block_sum)


def _tail_logp(ids: Any, e: Any, kept: Any, peaks: Any, state: Any) -> Any:
    """The student's log-probability of all tokens but `ids`, from the exponentials of its row; `kept` is scratch."""
    for j in range(ids.shape[0]):
        kept[j] = e[0, ids[j]]
        e[0, ids[j]] = 0
    total = 0.0
    for k in range(peaks.shape[1]):
        low, high = k * BLOCK, min((k + 1) * BLOCK, e.shape[1])
        total += np.exp(peaks[0, k] - state[0]) * block_sum(e[0][low:high])
    for j in range(ids.shape[0] - 1, -1, -1):  # backwards: right also for an id that is named twice
        e[0, ids[j]] = kept[j]
    return np.log(total) - np.log(state[3])


tail_logp = _inner()(_tail_logp)


def _rows(
    student_NV: Any,
    ids_NK: Any,
    logp_NK: Any,
    tail_logp_N: Any,
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
    """Losses [N, 1 + H] in nats (divergence, then each cross-entropy) and the gradient, of rows first to last.

    `gradient_NV` may be `student_NV` itself: a row is read to its end before it is written.
    """
    n_columns, n_hard = student_NV.shape[1], ids_HN.shape[0]
    e, kept = np.empty((3, n_columns), np.float32), np.empty(ids_NK.shape[1], np.float32)
    e[TAKEN] = 0
    peaks, state = np.zeros((3, (n_columns + BLOCK - 1) // BLOCK)), np.ones(7)
    two = n_hard > 0 and factors[0] != factors[2]  # the hard terms need the student at T = 1 as well
    hard_stream = 2 if two else 0
    hard = np.float32(one_hot_H.sum())
    for i in range(first, last):
        read_row(student_NV[i], student_NV[i], factors, (True, False, two), e, peaks, state)
        ids, hard_ids = ids_NK[i], ids_HN[:, i]
        log_sum, mass, ratio = state[0] + np.log(state[3]), 0.0, 0.0
        for j in range(ids.shape[0]):
            logp = np.float64(logp_NK[i, j])
            if logp != -np.inf:
                mass += np.exp(logp)
                student_logp = np.float64(widen(student_NV[i, ids[j]]) * factors[0]) - log_sum
                losses_NL[i, 0] += np.exp(logp) * (logp - student_logp)
        logp = np.float64(tail_logp_N[i])
        if logp != -np.inf:
            log_ratio = logp - tail_logp(ids, e, kept, peaks, state)
            mass, ratio = mass + np.exp(logp), np.exp(log_ratio)
            losses_NL[i, 0] += np.exp(logp) * log_ratio
        log_sum = state[hard_stream] + np.log(state[3 + hard_stream])
        for h in range(n_hard):
            losses_NL[i, 1 + h] = log_sum - np.float64(widen(student_NV[i, hard_ids[h]]) * factors[hard_stream])
        if with_gradient:
            soft_rest = np.float32(soft * (mass - ratio))
            for j in range(ids.shape[0]):
                e[TAKEN, ids[j]] += np.float32(np.exp(np.float64(logp_NK[i, j]))) * soft
            for h in range(n_hard):
                e[TAKEN, hard_ids[h]] += one_hot_H[h]
            write_row(gradient_NV[i], two, e, peaks, state, soft_rest, hard)
            subtract(gradient_NV[i], hard_ids, two, e, peaks, state, soft_rest, hard)
            subtract(gradient_NV[i], ids, two, e, peaks, state, np.float32(soft * mass), hard)  # last: a kept one wins
            for j in range(ids.shape[0]):
                e[TAKEN, ids[j]] = 0
            for h in range(n_hard):
                e[TAKEN, hard_ids[h]] = 0


rows = njit(nogil=True, cache=True, error_model="numpy")(_rows)
