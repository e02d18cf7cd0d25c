"""The compiled CPU loop of `sampling.py`: softmax of a product row, its heads, and the picks of its tail.

Two levels: the exponentials of a row are summed in blocks of BLOCK tokens; afterwards only the blocks that hold a head
or a pick are read token by token.  Compiled by numba on first use, then cached beside this file.  bfloat16 is passed
as int16 bits, since numba has no such type.
"""

from functools import partial
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import stamp_of, widen
from tutelage.losses import _fused_cpu
from tutelage.losses._fused_cpu import exponentials, maximum

BLOCK = 256  # a token that is looked at alone costs about as much as ten that are summed

_inner = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _read_row(row: Any, e: Any, sums: Any, peaks: Any, factor: Any) -> Any:
    """Exponentials of a row against its maximum to `e`, their sum a block to `sums`; returns the sum and the shift."""
    peak = np.float32(-np.inf)
    for k in range(sums.shape[0]):
        peaks[k] = maximum(row[k * BLOCK : min((k + 1) * BLOCK, row.shape[0])]) * factor
        peak = max(peak, peaks[k])
    total = 0.0
    for k in range(sums.shape[0]):
        low, high = k * BLOCK, min((k + 1) * BLOCK, row.shape[0])
        sums[k] = exponentials(row[low:high], e[low:high], factor, peak)
        total += sums[k]
    return total, np.float64(peak)


read_row = _inner()(_read_row)


def _find_heads(e: Any, sums: Any, peaks: Any, peak: Any, least: Any, ids: Any) -> Any:
    """Tokens with `e >= least` to `ids`, the largest first, then by id; takes them out of `sums`.  Their number."""
    n = 0
    lowest = np.log(least) + peak - 1e-3  # a block is read when its maximum may reach `least`
    for k in range(sums.shape[0]):
        if peaks[k] >= lowest:
            rest, before = 0.0, n
            for j in range(k * BLOCK, min((k + 1) * BLOCK, e.shape[0])):
                if np.float64(e[j]) >= least and n < ids.shape[0]:
                    ids[n] = j
                    n += 1
                else:
                    rest += e[j]
            if n > before:
                sums[k] = rest
    for i in range(1, n):  # the largest to the front, the others stay in order
        if e[ids[i]] > e[ids[0]]:
            largest = ids[i]
            ids[1 : i + 1] = ids[:i].copy()
            ids[0] = largest
            ids[1 : i + 1].sort()
    return n


find_heads = _inner()(_find_heads)


def _pick_tail(e: Any, sums: Any, least: Any, draw: Any, ids: Any, n_wanted: Any) -> Any:
    """Tail tokens at the points draw, draw + 1, … of the tail's cumulative sum in units of tau, to `ids`, rising.

    A point that rounding leaves behind the end of its block falls to the next tail token, so that no token is picked
    twice.  `n_wanted` is the number of picks when it is known (no head: m of them), else -1.  Their number.
    """
    n, point, base, last = 0, draw * least, 0.0, -1
    for k in range(sums.shape[0]):
        if base + sums[k] > point:
            cumulative = base
            for j in range(k * BLOCK, min((k + 1) * BLOCK, e.shape[0])):
                if np.float64(e[j]) < least:
                    cumulative += e[j]
                    if cumulative > point and n < ids.shape[0] and n != n_wanted:
                        ids[n] = last = j
                        n += 1
                        point = (n + draw) * least
        base += sums[k]
    j = e.shape[0] - 1
    while n < n_wanted and j >= 0:  # the last point fell behind the last token
        if j > last:
            ids[n] = j
            n += 1
            last = e.shape[0]
        elif not (ids[:n] == j).any():
            ids[n] = j
            n += 1
        j -= 1
    if n > 1 and ids[n - 1] < ids[n - 2]:
        ids[:n].sort()
    return n


pick_tail = _inner()(_pick_tail)


def _round_heads(e: Any, ids: Any, units: Any, n_tail: Any, per_grain: Any, draw: Any, n_units: Any, tail: Any) -> None:
    """Weights of the heads in grains: systematic rounding of all but the first, which takes what is left of all."""
    left = n_units - n_tail * tail
    cumulative, before = 0.0, np.int64(0)
    for i in range(1, ids.shape[0]):
        cumulative += e[ids[i]] * per_grain
        here = np.int64(np.floor(cumulative + draw))
        units[i] = here - before
        left -= units[i]
        before = here
    for i in range(1, ids.shape[0]):  # only where a float rounded over a bound: see `sampling.py`
        if left < 0 and units[i] > 0:
            units[i] -= 1
            left += 1
    units[0] = left


round_heads = _inner()(_round_heads)


def _loop(stamp: int) -> Any:
    def rows_of(
        product_NV: Any,
        factor: Any,
        draws_N: Any,
        next_ids_N: Any,
        m: Any,
        grains: Any,
        ids_M: Any,
        units_M: Any,
        n_heads_N: Any,
        n_entries_N: Any,
        next_logp_N: Any,
    ) -> Any:
        """Entries of every row: heads (largest first, then by id), then picks by id.  Their number.

        `grains` is tau in grains.  A row that is not finite gets a NaN in `next_logp_N` and no entries.
        """
        _ = stamp
        n_columns = product_NV.shape[1]
        n_blocks = (n_columns + BLOCK - 1) // BLOCK
        e, sums, peaks = np.empty(n_columns, np.float32), np.empty(n_blocks), np.empty(n_blocks, np.float32)
        at = 0
        for i in range(product_NV.shape[0]):
            total, peak = read_row(product_NV[i], e, sums, peaks, factor)
            n_heads_N[i] = n_entries_N[i] = 0
            next_logp_N[i] = np.float64(widen(product_NV[i, next_ids_N[i]]) * factor) - peak - np.log(total)
            if not (np.isfinite(total) and total > 0 and np.isfinite(peak)):
                next_logp_N[i] = np.nan
                continue
            least = total / m
            n_heads = find_heads(e, sums, peaks, peak, least, ids_M[at : at + m + 1])
            n_wanted = m if n_heads == 0 else -1
            n_tail = pick_tail(e, sums, least, draws_N[i], ids_M[at + n_heads : at + m + 1], n_wanted)
            units_M[at + n_heads : at + n_heads + n_tail] = grains
            if n_heads > 0:
                heads = slice(at, at + n_heads)
                round_heads(e, ids_M[heads], units_M[heads], n_tail, grains / least, draws_N[i], m * grains, grains)
            n_heads_N[i], n_entries_N[i] = n_heads, n_heads + n_tail
            at += n_heads + n_tail
        return at

    return njit(nogil=True, cache=True, error_model="numpy")(rows_of)


rows = _loop(stamp_of(__file__, _fused_cpu.__file__))
