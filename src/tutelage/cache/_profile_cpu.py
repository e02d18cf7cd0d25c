"""The compiled loops of `set_tables.py`: a teacher's distributions, and how well weights foretell sets."""

from typing import Any  # numba is untyped: its array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import stamp_of
from tutelage.cache import _sampling_cpu
from tutelage.cache import _set_coder_cpu as c
from tutelage.cache._coder_cpu import inner
from tutelage.cache._sampling_cpu import BLOCK, read_row

_STAMP = stamp_of(__file__, c.__file__, _sampling_cpu.__file__)


def _profile_loop(stamp: int) -> Any:
    def profile_of(
        product_NV: Any, factor: Any, least: Any, most: Any, ids_NK: Any, p_NK: Any, n_N: Any, low_V: Any
    ) -> None:
        """Tokens with p >= `least`, at most `most` of each position, and the sum of the others by token."""
        _ = stamp
        n_columns = product_NV.shape[1]
        n_blocks = (n_columns + BLOCK - 1) // BLOCK
        e, sums, peaks = np.empty(n_columns, np.float32), np.empty(n_blocks), np.empty(n_blocks, np.float32)
        for i in range(product_NV.shape[0]):
            total, peak = read_row(product_NV[i], e, sums, peaks, factor)
            over, n = np.float32(1.0 / total), 0
            bound = np.log(least * total) + peak - 1e-3
            for k in range(n_blocks):
                low, high = k * BLOCK, min((k + 1) * BLOCK, n_columns)
                if peaks[k] >= bound:
                    for j in range(low, high):
                        p = e[j] * over
                        if p >= least and n < most:
                            ids_NK[i, n], p_NK[i, n] = j, p
                            n += 1
                        else:
                            low_V[j] += p
                else:
                    for j in range(low, high):
                        low_V[j] += e[j] * over
            n_N[i] = n

    return njit(nogil=True, error_model="numpy", cache=True)(profile_of)


profile = _profile_loop(_STAMP)


@inner
def _indices(s: Any, n: Any, index: Any) -> None:
    """What a candidate's features select in each factor."""
    for i in range(n):
        cur, upcoming, same = s.code[i] & 15, (s.code[i] >> 4) & 15, s.code[i] >> 8
        common, age, count = s.past[i] >> 6, (s.past[i] >> 3) & 7, s.past[i] & 7
        index[i, 0] = cur * c.LEVELS + upcoming
        index[i, 1] = age * c.COUNTS + count
        index[i, 2] = same * c.LEVELS + cur
        index[i, 3] = common * c.COUNTS + count


@inner
def _weights(index: Any, n: Any, logs: Any, kind: Any, weight: Any) -> Any:
    total = 0.0
    weight[:2] = 0.0
    for i in range(2, n):
        w = 0.0
        for k in range(c.N_FACTORS):
            w += logs[kind, k, index[i, k]]
        weight[i] = 2.0**w
        total += weight[i]
    return total


@inner
def _draw_out(s: Any, members: Any, upcoming: Any, weight: Any, total: Any, gone: Any, shares: Any) -> Any:
    """Draw the members one after the other; `gone` [candidates] when, `shares` the running sum of 1 / total."""
    k = 0
    for i in range(members.shape[0]):
        token = (
            members[(i * 7 + 3) % members.shape[0]] if members.shape[0] % 7 else members[i]
        )  # not in the order of ids
        if token == upcoming:
            continue
        shares[k + 1] = shares[k] + 1.0 / total
        k += 1
        at = c.slot_of(s.token, token)
        if at > 0:
            gone[at] = k
            total = max(total - weight[at], 1e-30)
    return k


def _observe_loop(stamp: int) -> Any:
    def observe_of(model: Any, s: Any, row: Any, logs: Any, escape: Any, found: Any, foretold: Any) -> Any:
        """Add up, by feature, how often candidates are members and were to be; the bits that members cost.

        `logs` [3, F, size] and `escape` [3, contexts] are log2 weights; `found` and `foretold` [3, F + 1, size] are
        sums for them (the last one for the escape).  Escapes by token are counted in the scratch memory.
        """
        _ = stamp
        index = np.empty((c.MOST_CANDIDATES + 1, c.N_FACTORS), np.int64)
        weight, gone, bits = np.empty(c.MOST_CANDIDATES + 1), np.empty(c.MOST_CANDIDATES + 1, np.int64), 0.0
        shares = np.zeros(model.m + 3)
        base = c.begin_row(s, row)
        for t in range(row.current.shape[0]):
            start, end, n_heads = row.offsets[t], row.offsets[t + 1], row.heads[t]
            n = c.find_candidates(model, s, row, t, base)
            _indices(s, n, index)
            sure = c.contexts(model, row, t, s)[1]
            for kind in range(3):
                first = start + (0 if kind == 0 else (min(1, n_heads) if kind == 1 else n_heads))
                last = start + (min(1, n_heads) if kind == 0 else (n_heads if kind == 1 else end - start))
                if first >= last:
                    continue
                total = _weights(index, n, logs, kind, weight)
                for j in range(start, first):  # heads are out before picks are drawn
                    at = c.slot_of(s.token, row.ids[j])
                    if at > 0:
                        total -= weight[at]
                        weight[at] = 0.0
                out = 2.0 ** escape[kind, sure]
                gone[:n] = 0
                k = _draw_out(s, row.ids[first:last], row.upcoming[t], weight, max(total, 0.0) + out, gone, shares)
                n_escaped = k
                for i in range(n):
                    share = weight[i] * shares[gone[i] if gone[i] else k]
                    for f in range(c.N_FACTORS):
                        foretold[kind, f, index[i, f]] += share
                        found[kind, f, index[i, f]] += 1 if gone[i] else 0
                    if gone[i]:
                        n_escaped -= 1
                        if weight[i] > 0:
                            bits -= np.log2(weight[i] * (shares[gone[i]] - shares[gone[i] - 1]))
                foretold[kind, c.N_FACTORS, sure] += out * shares[k]
                found[kind, c.N_FACTORS, sure] += n_escaped
                for j in range(first, last):
                    if c.slot_of(s.token, row.ids[j]) == 0 and row.ids[j] != row.upcoming[t]:
                        s.escapes[row.ids[j]] += 1
            c.forget(s, n, 0)
            c.remember(s, row, t, base)
        return bits

    return njit(nogil=True, error_model="numpy", cache=True)(observe_of)


observe = _observe_loop(_STAMP)
