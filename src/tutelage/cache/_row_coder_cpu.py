"""The compiled loops over the positions of a row: `encode_row`, `decode_row` and `observe_rows`, which fits weights."""

from typing import Any  # numba is untyped: its array types are Any to the checker

import numpy as np
from numba import njit

from tutelage._compiled import stamp_of
from tutelage.cache import _coder_cpu as coder
from tutelage.cache import _members_cpu as members
from tutelage.cache import _set_coder_cpu as c
from tutelage.cache._coder_cpu import (
    LOW,
    inner,
    pop_number,
    pop_static,
    pop_uniform,
    push_number,
    push_static,
    push_uniform,
    settle,
)

_outer = njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
_N_CLASSES = 60  # of the number of picks
WORDS, WORDS_OF_MEMBER = 10, 5  # that a position and one of its members may push, counted by operations


def room(model: Any) -> Any:
    """Words that the largest position may push."""
    return WORDS + WORDS_OF_MEMBER * (model.m + 2)


_room = inner(room)


@inner
def _push_counts(
    x: Any, top: Any, words: Any, model: Any, counts: Any, row: Any, t: Any, where: Any, place: Any, sure: Any
) -> Any:
    """Where the next token is, the numbers of heads and picks, and the weights of all heads but the first."""
    start, n_heads, tables = row.offsets[t], row.heads[t], model.cumulative
    n_picks = row.offsets[t + 1] - start - n_heads
    left = (model.m - n_picks) * model.grains
    for i in range(1, n_heads):
        left -= row.units[start + i]
    for i in range(n_heads - 1, 0, -1):
        left += row.units[start + i]
        context = c.units_context(model, left, n_heads - i)
        x, top = push_number(x, top, words, tables, counts, context, row.units[start + i])
    if n_heads > 0:
        n_rests = model.m // _N_CLASSES + 1
        symbol = n_picks // n_rests
        context = c.picks_context(n_heads, where, sure)
        x, top = push_uniform(x, top, words, n_picks - symbol * n_rests, n_rests)
        x, top = push_static(x, top, words, tables, context, symbol)
        counts[context, symbol] += 1
    context = c.ROW_HEADS + where * c.CLASSES * c.CLASSES + sure
    x, top = push_number(x, top, words, tables, counts, context, n_heads)
    counts[place, where] += 1
    return push_static(x, top, words, tables, place, where)


@inner
def _pop_counts(x: Any, top: Any, words: Any, model: Any, row: Any, t: Any, place: Any, sure: Any) -> Any:
    """What `_push_counts` wrote: x, top, where the next token is, the number of picks or -1 where it cannot be."""
    tables, starts = model.cumulative, model.start
    x, top, where = pop_static(x, top, words, tables, starts, place)
    context = c.ROW_HEADS + where * c.CLASSES * c.CLASSES + sure
    x, top, n_heads = pop_number(x, top, words, tables, starts, context)
    start, n_picks = row.offsets[t], np.int64(model.m)
    row.heads[t] = n_heads
    if n_heads > 0:
        n_rests = model.m // _N_CLASSES + 1
        x, top, rough = pop_static(x, top, words, tables, starts, c.picks_context(n_heads, where, sure))
        x, top, fine = pop_uniform(x, top, words, n_rests)
        n_picks = rough * n_rests + fine
    least = 1 if where == c.FIRST else (2 if where == c.HEAD else 0)
    if n_heads < least or n_heads + n_picks > model.m + 1 or (where == c.TAIL and n_picks == 0):
        return x, top, where, np.int64(-1)
    left = (model.m - n_picks) * model.grains
    for i in range(1, n_heads):
        x, top, u = pop_number(x, top, words, tables, starts, c.units_context(model, left, n_heads - i))
        row.units[start + i] = u
        left -= u
    if n_heads > 0:
        row.units[start] = left
    for i in range(start + n_heads, start + n_heads + n_picks):
        row.units[i] = model.grains
    return x, top, where, n_picks if left >= 0 else np.int64(-1)


@inner
def _witness_context(where: Any) -> Any:
    return c.ROW_WITNESS + (1 if where == c.TAIL else 0)


@inner
def _bounds(row: Any, t: Any, kind: Any) -> Any:
    """Where the first head, the other heads or the picks stand."""
    start, n_heads, end = row.offsets[t], row.heads[t], row.offsets[t + 1]
    if kind == 0:
        return start, start + min(n_heads, 1)
    return (start + min(n_heads, 1), start + n_heads) if kind == 1 else (start + n_heads, end)


@inner
def _revive(s: Any, row: Any, first: Any, last: Any, alive: Any) -> None:
    """Let members have a weight, or none."""
    for j in range(first, last):
        at = c.slot_of(s.token, row.ids[j])
        s.alive[at] = alive if at > 1 else 0


@inner
def _push_position(x: Any, top: Any, words: Any, model: Any, s: Any, row: Any, t: Any, base: Any) -> Any:
    n = c.find_candidates(model, s, row, t, base)
    place, sure = c.contexts(model, row, t, s)
    where = c.place_of(row, t)
    if where == c.NOWHERE or where == c.TAIL:
        context, code = _witness_context(where), row.witness[t]
        x, top = push_uniform(x, top, words, code & 3, 4)
        x, top = push_static(x, top, words, model.cumulative, context, code >> 2)
        s.counts[context, code >> 2] += 1
    _revive(s, row, row.offsets[t], row.offsets[t] + row.heads[t], 0)
    for kind in range(2, -1, -1):
        first, last = _bounds(row, t, kind)
        if kind < 2:
            _revive(s, row, first, last, 1)
        if last > first:
            x, top = members.push_set(x, top, words, model, s, row, n, kind, sure, first, last, row.upcoming[t])
    x, top = _push_counts(x, top, words, model, s.counts, row, t, where, place, sure)
    c.forget(s, n, 0)
    return x, top


@inner
def _pop_position(x: Any, top: Any, words: Any, model: Any, s: Any, row: Any, t: Any, base: Any) -> Any:
    start, upcoming, drawn = row.offsets[t], row.upcoming[t], s.drawn
    n = c.find_candidates(model, s, row, t, base)
    place, sure = c.contexts(model, row, t, s)
    x, top, where, n_picks = _pop_counts(x, top, words, model, row, t, place, sure)
    row.offsets[t + 1] = start + (row.heads[t] + n_picks if n_picks >= 0 else 0)
    n_strange, fine = np.int64(0), n_picks >= 0 and top + _room(model) < words.shape[0]
    for kind in range(3):
        first, last = _bounds(row, t, kind)
        if fine and last > first:
            own = np.int64(where == kind + 1)  # the next token is one of this set
            k = last - first - own
            if k > 0:
                x, top, n_strange = members.pop_set(x, top, words, model, s, n, n_strange, kind, sure, k)
                fine = n_strange >= 0
            if fine:
                drawn[k] = upcoming
                x, top = members.pop_order(x, top, words, drawn, k, k + own, row.ids, first)
    row.witness[t] = -1
    if fine and (where == c.NOWHERE or where == c.TAIL):
        x, top, high = pop_static(x, top, words, model.cumulative, model.start, _witness_context(where))
        x, top, low = pop_uniform(x, top, words, 4)
        row.witness[t] = high * 4 + low
    c.forget(s, n, n_strange if fine else max(-n_strange - 1, 0))
    return x, top, fine


def _loops(stamp: int) -> tuple[Any, Any]:
    def encode(model: Any, state: Any, words: Any, s: Any, row: Any, before: Any) -> Any:
        """Push a whole row: its last position first; the state and top.  `before` [M] is memory for the history."""
        _ = stamp
        base, states, x, top = c.begin_row(s, row), s.token, np.int64(state), 0
        for t in range(row.current.shape[0]):
            for j in range(row.offsets[t], row.offsets[t + 1]):
                before[j] = states[row.ids[j]]
            c.remember(s, row, t, base)
        for t in range(row.current.shape[0] - 1, -1, -1):
            for j in range(row.offsets[t], row.offsets[t + 1]):
                states[row.ids[j]] = before[j]
            x, top = _push_position(x, top, words, model, s, row, t, base)
        return settle(x, top, words, LOW)

    def decode(model: Any, state: Any, top: Any, words: Any, s: Any, row: Any) -> Any:
        """Pop a whole row; the first position that cannot be, or the number of positions, then the state and top."""
        _ = stamp
        base, x, done = c.begin_row(s, row), np.int64(state), row.current.shape[0]
        row.offsets[0] = 0
        for t in range(row.current.shape[0]):
            x, top, fine = _pop_position(x, top, words, model, s, row, t, base)
            if not fine:
                done = t
                break
            c.remember(s, row, t, base)
        x, top = settle(x, top, words, LOW)
        return done, x, top

    return _outer(encode), _outer(decode)


encode_row, decode_row = _loops(stamp_of(__file__, c.__file__, coder.__file__, members.__file__))
