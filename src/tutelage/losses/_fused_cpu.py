"""The compiled CPU loop of `fused.py`: softmax, losses and gradient of a row while it lies in the core's cache.

Compiled by numba on first use (about 5 s a dtype, then cached beside this file), so a user needs no C compiler.  A row
is read once from memory, in blocks of BLOCK columns: a running maximum replaces the usual separate pass for it,
exponentials go to a float32 scratch row, block sums to float64.  A second loop turns the scratch into the gradient.

Student and teacher go through the same instructions; floating-point contraction (fused multiply-add) is off where they
are subtracted, so equal products give exactly 0.  A NaN or +inf in a product makes the loss and gradient of its row
NaN, never a wrong number.  bfloat16 is passed as int16 bits, since numba has no such type.
"""

from functools import partial
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import bits_to_float, float_to_bits, narrow, wide_vectors, widen

BLOCK = 2048  # columns; two scratch blocks and two input blocks stay in the first-level cache

# Division by 0 gives inf or NaN as in numpy; functions that only `rows` calls need no way in from Python (a third of
# the compilation).
_inner = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693145751953125)  # ln 2 in two parts: n * HIGH is exact, so the rest of x - n ln 2 is too
_LN2_LOW = np.float32(1.428606765330187e-06)
_LOWEST = np.float32(-87.0)  # exp(-87) = 1.6e-38, the smallest power that is still a normal float32
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_C3, _C4, _C5, _C6 = (np.float32(1 / f) for f in (6, 24, 120, 720))
_23, _127, _INT32_MAX = np.int32(23), np.int32(127), np.int32(0x7FFFFFFF)


def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, relative error below 2e-7; NaN stays NaN; below -87 it is exp(-87)."""
    whole = np.int32((x if x > _LOWEST else _LOWEST) * _LOG2_E - _HALF)
    n = np.float32(whole)
    r = ((_LOWEST if x < _LOWEST else x) - n * _LN2_HIGH) - n * _LN2_LOW
    y = ((((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + _HALF) * r) + _ONE) * r + _ONE
    return y * bits_to_float(np.int32((whole + _127) << _23))


exp = _inner(fastmath={"contract"})(_exp)


def _maximum(row: Any) -> Any:
    """Largest element of a block, compared as ordered integers: a float maximum vectorises only without NaN."""
    wide_vectors()
    largest = -_INT32_MAX
    for j in range(row.shape[0]):
        bits = float_to_bits(widen(row[j]))
        largest = max(largest, bits ^ ((bits >> np.int32(31)) & _INT32_MAX))
    return bits_to_float(np.int32(largest ^ ((largest >> np.int32(31)) & _INT32_MAX)))


maximum = _inner()(_maximum)


def _exponentials(row: Any, out: Any, factor: Any, shift: Any) -> Any:
    """exp(factor * x - shift) of a block into `out`; returns their sum."""
    wide_vectors()
    total = np.float32(0)
    for j in range(row.shape[0]):
        e = exp(widen(row[j]) * factor - shift)
        out[j] = e
        total += e
    return total


exponentials = _inner(fastmath={"reassoc"})(_exponentials)


def _pair(student: Any, teacher: Any, factors: Any, q: Any, p: Any, q_shift: Any, p_shift: Any) -> Any:
    """Exponentials of a block of both models; returns their sums, and that of p * (teacher - student logit).

    The last is exactly 0 for equal inputs.  One loop, since loads and stores cost more here than arithmetic.
    """
    wide_vectors()
    q_sum = p_sum = dot = np.float32(0)
    for j in range(student.shape[0]):
        student_logit = widen(student[j]) * factors[0]
        teacher_logit = widen(teacher[j]) * factors[1]
        q_e, p_e = exp(student_logit - q_shift), exp(teacher_logit - p_shift)
        q[j], p[j] = q_e, p_e
        q_sum += q_e
        p_sum += p_e
        dot += p_e * (teacher_logit - student_logit)
    return q_sum, p_sum, dot


pair = _inner(fastmath={"reassoc"})(_pair)


def _write_soft(out: Any, q: Any, p: Any, over_q: Any, over_p: Any, soft: Any, hard: Any) -> None:
    """soft * (q - p) + hard * q, normalised; no contraction, so that q = p gives exactly 0 of the soft part."""
    wide_vectors()
    for j in range(out.shape[0]):
        probability = q[j] * over_q
        out[j] = narrow((probability - p[j] * over_p) * soft + probability * hard, out[j])


write_soft = _inner()(_write_soft)


def _write_two(out: Any, q: Any, p: Any, h: Any, over_q: Any, over_p: Any, over_h: Any, soft: Any, hard: Any) -> None:
    """soft * (q - p) + hard * h, normalised: h is the student at temperature 1, q and p are at another."""
    wide_vectors()
    for j in range(out.shape[0]):
        out[j] = narrow((q[j] * over_q - p[j] * over_p) * soft + h[j] * over_h * hard, out[j])


write_two = _inner()(_write_two)


def _write_hard(out: Any, q: Any, over_q: Any, hard: Any) -> None:
    wide_vectors()
    for j in range(out.shape[0]):
        out[j] = narrow(q[j] * over_q * hard, out[j])


write_hard = _inner()(_write_hard)


def _raise_peak(state: Any, stream: Any, peak: Any) -> Any:
    """Take a block's maximum into the running one; what was summed against the old one shrinks.  The shift to use."""
    if peak > state[stream]:
        shrink = np.exp(state[stream] - peak)
        state[3 + stream] *= shrink
        if stream == 1:
            state[6] *= shrink
        state[stream] = peak
    return np.float32(state[stream])


raise_peak = _inner()(_raise_peak)


def _read_row(student: Any, teacher: Any, factors: Any, active: Any, e: Any, peaks: Any, state: Any) -> None:
    """One pass over a row: exponentials to `e`, and to `state` maxima [0:3], sums [3:6] and the soft dot product [6].

    Streams: 0 student and 1 teacher at the soft temperature, 2 student at temperature 1.  `peaks` keeps the maximum
    that each block's exponentials were taken against.
    """
    state[:3], state[3:] = -np.inf, 0.0
    for k in range(peaks.shape[1]):
        low, high = k * BLOCK, min((k + 1) * BLOCK, student.shape[0])
        block = student[low:high]
        peak = maximum(block)
        shift = raise_peak(state, 0, peak * factors[0])
        peaks[0, k] = shift
        if active[1]:
            teacher_block = teacher[low:high]
            teacher_shift = raise_peak(state, 1, maximum(teacher_block) * factors[1])
            peaks[1, k] = teacher_shift
            sums = pair(block, teacher_block, factors, e[0][low:high], e[1][low:high], shift, teacher_shift)
            state[3] += sums[0]
            state[4] += sums[1]
            state[6] += sums[2]
        else:
            state[3] += exponentials(block, e[0][low:high], factors[0], shift)
        if active[2]:
            shift = raise_peak(state, 2, peak * factors[2])
            peaks[2, k] = shift
            state[5] += exponentials(block, e[2][low:high], factors[2], shift)


read_row = _inner()(_read_row)


def _norms(peaks: Any, state: Any, k: Any) -> Any:
    """What turns block k's exponentials of each stream into probabilities."""
    over_q = np.float32(np.exp(peaks[0, k] - state[0]) / state[3])
    over_p = np.float32(np.exp(peaks[1, k] - state[1]) / state[4])
    over_h = np.float32(np.exp(peaks[2, k] - state[2]) / state[5])
    return over_q, over_p, over_h


norms = _inner()(_norms)


def _write_row(out: Any, active: Any, e: Any, peaks: Any, state: Any, soft: Any, hard: Any) -> None:
    """The gradient of a row from its exponentials, without the one-hot part."""
    for k in range(peaks.shape[1]):
        low, high = k * BLOCK, min((k + 1) * BLOCK, out.shape[0])
        over_q, over_p, over_h = norms(peaks, state, k)
        q, p, h = e[0][low:high], e[1][low:high], e[2][low:high]
        if active[1] and active[2]:
            write_two(out[low:high], q, p, h, over_q, over_p, over_h, soft, hard)
        elif active[1]:
            write_soft(out[low:high], q, p, over_q, over_p, soft, hard)
        else:
            write_hard(out[low:high], q, over_q, hard)


write_row = _inner()(_write_row)


def _subtract_one_hot(
    out: Any, ids_H: Any, one_hot_H: Any, active: Any, e: Any, peaks: Any, state: Any, soft: Any
) -> None:
    """The gradient at the true next tokens, again from the exponentials so that it is rounded once."""
    hard = np.float32(one_hot_H.sum())
    for i in range(ids_H.shape[0]):
        token = ids_H[i]
        over_q, over_p, over_h = norms(peaks, state, token // BLOCK)
        value = np.float32(0)
        if active[1]:
            value += (e[0, token] * over_q - e[1, token] * over_p) * soft
        value += (e[2, token] * over_h if active[2] else e[0, token] * over_q) * hard
        for other in range(ids_H.shape[0]):
            if ids_H[other] == token:
                value -= one_hot_H[other]
        out[token] = narrow(value, out[token])


subtract_one_hot = _inner()(_subtract_one_hot)


def _rows(
    student_NV: Any,
    teacher_NV: Any,
    ids_HN: Any,
    gradient_NV: Any,
    losses_NL: Any,
    factors: Any,
    soft: Any,
    one_hot_H: Any,
    with_teacher: Any,
    with_gradient: Any,
    first: Any,
    last: Any,
) -> None:
    """Losses [N, 1 + H] in nats (divergence, then each cross-entropy) and the gradient, of rows first to last.

    `gradient_NV` may be `student_NV` itself: a row is read to its end before it is written.
    """
    n_columns, n_hard = student_NV.shape[1], ids_HN.shape[0]
    e = np.empty((3, n_columns), np.float32)
    peaks = np.zeros((3, (n_columns + BLOCK - 1) // BLOCK))
    state = np.ones(7)
    two = with_teacher and n_hard > 0 and factors[0] != factors[2]  # the hard terms need the student at T = 1 as well
    active = (True, with_teacher, two)
    hard_stream = 2 if two else 0
    hard = np.float32(one_hot_H.sum())
    for i in range(first, last):
        read_row(student_NV[i], teacher_NV[i], factors, active, e, peaks, state)
        if with_teacher:
            losses_NL[i, 0] = state[6] / state[4] + (state[0] - state[1]) + (np.log(state[3]) - np.log(state[4]))
        log_sum = state[hard_stream] + np.log(state[3 + hard_stream])
        for h in range(n_hard):
            losses_NL[i, 1 + h] = log_sum - np.float64(widen(student_NV[i, ids_HN[h, i]]) * factors[hard_stream])
        if with_gradient:
            write_row(gradient_NV[i], active, e, peaks, state, soft, hard)
            subtract_one_hot(gradient_NV[i], ids_HN[:, i], one_hot_H, active, e, peaks, state, soft)


rows = njit(nogil=True, cache=True, error_model="numpy")(_rows)


def numbers(factors: Any, *, soft: float, hard: Any) -> Any:
    """The numeric arguments of `rows` in the types that it is compiled for."""
    return tuple(np.float32(f) for f in factors), np.float32(soft), np.array(hard, np.float32)
