"""The compiled CPU loop of `positions.py`: every number of a position from two rows of logits, a row in three passes.

First the maxima of runs of RUN columns, which also serve to find the first tokens without sorting; then exponentials,
their sums and the sums of both divergences; then the distance of the two distributions.  Exponentials and float32 sums
of a block of BLOCK columns stay in the core's cache, block sums are float64.

Model and teacher go through the same instructions and nothing that is subtracted is contracted, so a copy of the
teacher has divergences and a distance of exactly 0.  A row with NaN or an infinity gives numbers that are not finite,
never wrong ones; `positions.py` then takes the plain way.  bfloat16 is passed as int16 bits.

Shape legend: N rows, V vocabulary, L columns of `positions.COLUMNS`.
"""

from functools import partial
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import wide_vectors, widen
from tutelage.losses._fused_cpu import BLOCK, exp, maximum

RUN = 256  # columns; a maximum each
N_HEATED = 7  # inverse temperatures 1/4, 2/4, 3/4, 4/4, 5/4, 6/4, 8/4: powers of the fourth root of an exponential

_inner = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_QUARTER, _ZERO = np.float32(0.25), np.float32(0)
# Floors of the fourth root, so that no power of it is a subnormal number, which is slow: below them a token weighs less
# than 2e-38 in the sum of its power.
_FARTHEST = np.float32(-120.0)  # e**-30 at the hottest temperature: 1e-13 of the largest
_LEAST, _LEAST_OF_HIGH_POWERS = np.float32(3.4e-10), np.float32(2e-5)


def _heated_sums(row: Any, factor: Any, shift: Any) -> Any:
    """Sums of exp(b z) for each inverse temperature b, and of z exp(b z), over a block; z <= 0 is the shifted logit."""
    wide_vectors()
    s1 = s2 = s3 = s4 = s5 = s6 = s8 = np.float32(0)
    z1 = z2 = z3 = z4 = z5 = z6 = z8 = np.float32(0)
    for j in range(row.shape[0]):
        z = widen(row[j]) * factor - shift
        z = _FARTHEST if z < _FARTHEST else z  # below it the floors of the powers would be multiplied by anything
        root = exp(z * _QUARTER)
        r = _LEAST if root < _LEAST else root
        u = _LEAST_OF_HIGH_POWERS if root < _LEAST_OF_HIGH_POWERS else root
        r2, u2 = r * r, u * u
        r3, r4, u4 = r2 * r, r2 * r2, u2 * u2
        u5, u6, u8 = u4 * u, u4 * u2, u4 * u4
        s1 += r
        s2 += r2
        s3 += r3
        s4 += r4
        s5 += u5
        s6 += u6
        s8 += u8
        z1 += z * r
        z2 += z * r2
        z3 += z * r3
        z4 += z * r4
        z5 += z * u5
        z6 += z * u6
        z8 += z * u8
    return (s1, s2, s3, s4, s5, s6, s8), (z1, z2, z3, z4, z5, z6, z8)


heated_sums = _inner(fastmath={"reassoc"})(_heated_sums)


def _exponentials(row: Any, e: Any, factor: Any, shift: Any) -> Any:
    wide_vectors()
    total = np.float32(0)
    for j in range(row.shape[0]):
        value = exp(widen(row[j]) * factor - shift)
        e[j] = value
        total += value
    return total


exponentials = _inner(fastmath={"reassoc"})(_exponentials)


def _divergences(model: Any, teacher: Any, q: Any, p: Any, factors: Any) -> Any:
    """Sums of p (t - m) and q (m - t) over a block, t and m the two logits; both exactly 0 for equal rows."""
    wide_vectors()
    forward = backward = np.float32(0)
    for j in range(model.shape[0]):
        gap = widen(teacher[j]) * factors[1] - widen(model[j]) * factors[0]
        forward += p[j] * gap
        backward -= q[j] * gap
    return forward, backward


divergences = _inner(fastmath={"reassoc"})(_divergences)


def _distance(q: Any, p: Any, over_q: Any, over_p: Any) -> Any:
    """Sum of |p - q| of a block, both normalised."""
    wide_vectors()
    total = np.float32(0)
    for j in range(q.shape[0]):
        gap = p[j] * over_p - q[j] * over_q
        total += abs(gap)
    return total


distance = _inner(fastmath={"reassoc"})(_distance)


def _run_maxima(row: Any, maxima: Any) -> Any:
    """The maximum of each run of columns; returns the largest."""
    largest = -np.inf
    for k in range(maxima.shape[0]):
        maxima[k] = maximum(row[k * RUN : min((k + 1) * RUN, row.shape[0])])
        if not maxima[k] <= largest:  # a NaN is taken
            largest = maxima[k]
    return np.float32(largest)


run_maxima = _inner()(_run_maxima)


def _first_tokens(row: Any, maxima: Any, last: Any, ids: Any) -> None:
    """The ids of the largest products, largest first, of equal ones the lower id first; `maxima` is used up.

    A run's tokens leave it in that order, so the next one of a run is the largest behind the `last` that left it.
    """
    last[:] = -1
    for n in range(ids.shape[0]):
        best = 0
        for k in range(1, maxima.shape[0]):
            if maxima[k] > maxima[best]:
                best = k
        low, high = best * RUN, min((best + 1) * RUN, row.shape[0])
        value = maxima[best]
        ids[n] = low  # a row with NaN has no such token, but every id must lie in the row
        for j in range(low, high):
            if widen(row[j]) == value and j > last[best]:
                ids[n] = j
                break
        last[best] = ids[n]
        following = -np.inf
        is_equal = False
        for j in range(low, high):
            other = widen(row[j])
            is_equal = is_equal or (other == value and j > ids[n])
            if other < value and other > following:
                following = np.float64(other)
        if is_equal:
            continue
        maxima[best] = following
        last[best] = -1


first_tokens = _inner()(_first_tokens)


def _ranks(values: Any, ranks: Any) -> None:
    """Ranks from 0 of the largest, equal values share the mean of theirs; twice the rank, so that they are whole."""
    for i in range(values.shape[0]):
        ranks[i] = 0
        for j in range(values.shape[0]):
            if j != i:
                ranks[i] += 2 if values[j] > values[i] else (1 if values[j] == values[i] else 0)


ranks_of = _inner()(_ranks)


def _rank_correlation(model: Any, teacher: Any, ids: Any, scratch: Any) -> Any:
    """Spearman's correlation of both models' order of the tokens `ids`; 1 where both, 0 where one has no order."""
    n = ids.shape[0]
    for i in range(n):
        scratch[0, i], scratch[1, i] = widen(model[ids[i]]), widen(teacher[ids[i]])
    ranks_of(scratch[0, :n], scratch[2, :n])
    ranks_of(scratch[1, :n], scratch[3, :n])
    both = model_only = teacher_only = 0.0
    for i in range(n):
        a, b = scratch[2, i] - (n - 1), scratch[3, i] - (n - 1)
        both += a * b
        model_only += a * a
        teacher_only += b * b
    if model_only == 0 or teacher_only == 0:
        return 1.0 if model_only == teacher_only else 0.0
    return both / np.sqrt(model_only * teacher_only)


rank_correlation = _inner()(_rank_correlation)


def _own_row(row: Any, next_id: Any, factor: Any, shift: Any, sums: Any, out: Any) -> None:
    """Columns that one model gives: nll, brier, and by inverse temperature the loss and its slope."""
    sums[:] = 0.0
    for low in range(0, row.shape[0], BLOCK):
        totals, moments = heated_sums(row[low : min(low + BLOCK, row.shape[0])], factor, shift)
        for k in range(N_HEATED):
            sums[k] += totals[k]
            sums[N_HEATED + k] += moments[k]
    z_true = np.float64(widen(row[next_id]) * factor) - shift
    for k in range(N_HEATED):
        inverse = (k + 1 if k < 6 else 8) * 0.25
        out[4 + k] = np.log(sums[k]) - inverse * z_true
        out[4 + N_HEATED + k] = sums[N_HEATED + k] / sums[k] - z_true
    out[0] = out[7]  # inverse temperature 1
    out[3] = sums[6] / (sums[3] * sums[3]) - 2 * np.exp(-out[0]) + 1
    out[1] = 1 / sums[3]


own_row = _inner()(_own_row)


def _pair_row(model: Any, teacher: Any, factors: Any, shifts: Any, e: Any, out: Any) -> None:
    """KL both ways and the accepted share, into columns 18, 20 and 21."""
    q_sum = p_sum = forward = backward = apart = 0.0
    for low in range(0, model.shape[0], BLOCK):
        high = min(low + BLOCK, model.shape[0])
        q_sum += exponentials(model[low:high], e[0, low:high], factors[0], shifts[0])
        p_sum += exponentials(teacher[low:high], e[1, low:high], factors[1], shifts[1])
        sums = divergences(model[low:high], teacher[low:high], e[0, low:high], e[1, low:high], factors)
        forward += sums[0]
        backward += sums[1]
    over_q, over_p = np.float32(1 / q_sum), np.float32(1 / p_sum)
    for low in range(0, model.shape[0], BLOCK):
        high = min(low + BLOCK, model.shape[0])
        apart += distance(e[0, low:high], e[1, low:high], over_q, over_p)
    more = (np.float64(shifts[0]) - np.float64(shifts[1])) + (np.log(q_sum) - np.log(p_sum))
    out[18] = forward / p_sum + more
    out[20] = backward / q_sum - more
    out[21] = 1 - 0.5 * apart


pair_row = _inner()(_pair_row)


def _rows(
    model_NV: Any, teacher_NV: Any, ids_N: Any, out_NL: Any, factors: Any, with_teacher: Any, first: Any, last: Any
) -> None:
    """The columns of rows first to last; those that need a teacher only with one."""
    n_columns = model_NV.shape[1]
    n_runs = (n_columns + RUN - 1) // RUN
    e = np.empty((2, n_columns), np.float32)
    maxima, left = np.empty(n_runs), np.empty(n_runs, np.int64)
    sums, scratch = np.empty(2 * N_HEATED), np.empty((4, 10))
    own_first, teacher_first = np.empty(min(5, n_columns), np.int64), np.empty(min(11, n_columns), np.int64)
    for i in range(first, last):
        out = out_NL[i]
        model, teacher = model_NV[i], teacher_NV[i]
        shift = run_maxima(model, maxima) * factors[0]
        if not np.isfinite(shift):
            out[:] = np.nan
            continue
        first_tokens(model, maxima, left, own_first)
        own_row(model, ids_N[i], factors[0], shift, sums, out)
        out[2] = own_first[0] == ids_N[i]
        if with_teacher:
            teacher_shift = run_maxima(teacher, maxima) * factors[1]
            if not np.isfinite(teacher_shift):
                out[:] = np.nan
                continue
            first_tokens(teacher, maxima, left, teacher_first)
            pair_row(model, teacher, factors, (shift, teacher_shift), e, out)
            out[19] = own_first[0] == teacher_first[0]
            shared = 0
            for a in own_first:
                for b in teacher_first[: own_first.shape[0]]:
                    shared += a == b
            out[22] = shared / own_first.shape[0]
            out[23] = rank_correlation(model, teacher, teacher_first[1:], scratch)


rows = njit(nogil=True, cache=True, error_model="numpy")(_rows)
