"""The compiled loops over the positions of a row: `encode_row`, `decode_row` and `observe_rows`, which fits weights."""

from typing import Any  # numba is untyped: its array types are Any to the checker

from numba import njit

from tutelage.cache import _coder_cpu as coder
from tutelage.cache import _members_cpu as members
from tutelage.cache import _set_coder_cpu as c
from tutelage.cache._coder_cpu import (
    inner,
    pop_number,
    pop_static,
    pop_uniform,
    push_number,
    push_static,
    push_uniform,
    stamp_of,
)

_outer = njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
_N_CLASSES = 60  # of the number of picks


@inner
def _push_counts(model: Any, stack: Any, s: Any, row: Any, t: Any, where: Any, place: Any, sure: Any) -> None:
    """Where the next token is, the numbers of heads and picks, and the weights of all heads but the first."""
    start, n_heads = row.offsets[t], row.heads[t]
    n_picks = row.offsets[t + 1] - start - n_heads
    n_units = model.m * model.grains
    left = n_units - n_picks * model.grains
    for i in range(1, n_heads):
        left -= row.units[start + i]
    for i in range(n_heads - 1, 0, -1):
        left += row.units[start + i]
        context = c.units_context(left, n_heads - i, n_units)
        push_number(stack, model.cumulative, s.counts, context, row.units[start + i])
    if n_heads > 0:
        n_rests = model.m // _N_CLASSES + 1
        symbol = n_picks // n_rests
        context = c.picks_context(n_heads, where, sure)
        push_uniform(stack, n_picks - symbol * n_rests, n_rests)
        push_static(stack, model.cumulative, context, symbol)
        s.counts[context, symbol] += 1
    push_number(stack, model.cumulative, s.counts, c.ROW_HEADS + where * c.CLASSES * c.CLASSES + sure, n_heads)
    push_static(stack, model.cumulative, place, where)
    s.counts[place, where] += 1


@inner
def _pop_counts(model: Any, stack: Any, row: Any, t: Any, place: Any, sure: Any) -> Any:
    """What `_push_counts` wrote; where the next token is and the number of picks, -1 where they cannot be."""
    where = pop_static(stack, model.cumulative, place)
    n_heads = pop_number(stack, model.cumulative, c.ROW_HEADS + where * c.CLASSES * c.CLASSES + sure)
    start, n_picks, n_units = row.offsets[t], model.m, model.m * model.grains
    row.heads[t] = n_heads
    if n_heads > 0:
        n_rests = model.m // _N_CLASSES + 1
        n_picks = pop_static(stack, model.cumulative, c.picks_context(n_heads, where, sure)) * n_rests
        n_picks += pop_uniform(stack, n_rests)
    least = 1 if where == c.FIRST else (2 if where == c.HEAD else 0)
    if n_heads < least or n_heads + n_picks > model.m + 1 or (where == c.TAIL and n_picks == 0):
        return where, -1
    left = n_units - n_picks * model.grains
    for i in range(1, n_heads):
        u = pop_number(stack, model.cumulative, c.units_context(left, n_heads - i, n_units))
        row.units[start + i] = u
        left -= u
    if left < 0:
        return where, -1
    if n_heads > 0:
        row.units[start] = left
    for i in range(n_heads, n_heads + n_picks):
        row.units[start + i] = model.grains
    return where, n_picks


@inner
def _push_witness(model: Any, stack: Any, s: Any, code: Any, where: Any) -> None:
    context = c.ROW_WITNESS + (1 if where == c.TAIL else 0)
    push_uniform(stack, code & 3, 4)
    push_static(stack, model.cumulative, context, code >> 2)
    s.counts[context, code >> 2] += 1


@inner
def _pop_witness(model: Any, stack: Any, where: Any) -> Any:
    high = pop_static(stack, model.cumulative, c.ROW_WITNESS + (1 if where == c.TAIL else 0))
    return high * 4 + pop_uniform(stack, 4)


@inner
def _push_position(model: Any, stack: Any, s: Any, row: Any, t: Any) -> None:
    start, n_heads, end = row.offsets[t], row.heads[t], row.offsets[t + 1]
    n, level = c.find_candidates(model, s, row, t)
    place, sure = c.contexts(model, row, t, s, level)
    where = c.place_of(row, t)
    if where == c.NOWHERE or where == c.TAIL:
        _push_witness(model, stack, s, row.witness[t], where)
    for j in range(start, start + n_heads):
        at = c.slot_of(s, row.ids[j])
        if at >= 0:
            s.saved[j - start], s.logw[at] = s.logw[at], 0
    if end > start + n_heads:
        members.push_set(model, stack, s, n, row.ids[start + n_heads : end], row.upcoming[t], 2, sure)
    for j in range(start + 1, start + n_heads):
        at = c.slot_of(s, row.ids[j])
        if at >= 0:
            s.logw[at] = s.saved[j - start]
    if n_heads > 1:
        members.push_set(model, stack, s, n, row.ids[start + 1 : start + n_heads], row.upcoming[t], 1, sure)
    if n_heads > 0 and where != c.FIRST:
        at = c.slot_of(s, row.ids[start])
        if at >= 0:
            s.logw[at] = s.saved[0]
        total = members.lay_out(model, s, n, 0, sure)
        members.push_member(model, stack, s, n, row.ids[start], total)
    _push_counts(model, stack, s, row, t, where, place, sure)
    c.forget(s, n)


@inner
def _pop_position(model: Any, stack: Any, s: Any, row: Any, t: Any) -> Any:
    start, upcoming = row.offsets[t], row.upcoming[t]
    n, level = c.find_candidates(model, s, row, t)
    place, sure = c.contexts(model, row, t, s, level)
    where, n_picks = _pop_counts(model, stack, row, t, place, sure)
    n_heads, fine = row.heads[t], n_picks >= 0
    if fine and n_heads > 0:
        row.ids[start] = upcoming
        if where != c.FIRST:
            total = members.lay_out(model, s, n, 0, sure)
            row.ids[start], at = members.pop_member(model, stack, s, n, total)
            fine = at >= 0 and row.ids[start] != upcoming
            if 0 <= at < n:
                s.logw[at] = 0
    if fine and n_heads > 1:
        k = n_heads - 1 - (1 if where == c.HEAD else 0)
        fine = members.pop_set(
            model, stack, s, n, row.ids[start + 1 :], k, 1, sure, row.ids[start : start + 1], upcoming
        )
        if where == c.HEAD:
            members.insert(row.ids[start + 1 :], k, upcoming)
    if fine and n_picks > 0:
        k = n_picks - (1 if where == c.TAIL else 0)
        fine = members.pop_set(
            model, stack, s, n, row.ids[start + n_heads :], k, 2, sure, row.ids[start : start + n_heads], upcoming
        )
        if where == c.TAIL:
            members.insert(row.ids[start + n_heads :], k, upcoming)
    row.witness[t] = -1
    if fine and (where == c.NOWHERE or where == c.TAIL):
        row.witness[t] = _pop_witness(model, stack, where)
    row.offsets[t + 1] = start + n_heads + max(n_picks, 0) if fine else start
    c.forget(s, n)
    return fine


def _loops(stamp: int) -> tuple[Any, Any]:
    def encode(model: Any, stack: Any, s: Any, row: Any, last: Any) -> None:
        """Push a whole row: its last position first.  `last` [M] is memory for the history."""
        _ = stamp
        n = row.current.shape[0]
        c.find_same(s, row)
        for t in range(n):
            place = slice(row.offsets[t], row.offsets[t + 1])
            c.remember(s, row.ids[place], t, last[place])
        for t in range(n - 1, -1, -1):
            place = slice(row.offsets[t], row.offsets[t + 1])
            c.unremember(s, row.ids[place], last[place])
            _push_position(model, stack, s, row, t)

    def decode(model: Any, stack: Any, s: Any, row: Any, last: Any) -> Any:
        """Pop a whole row; the first position that cannot be, or the number of positions."""
        _ = stamp
        n = row.current.shape[0]
        c.find_same(s, row)
        row.offsets[0] = 0
        done = n
        for t in range(n):
            if not _pop_position(model, stack, s, row, t):
                done = t
                break
            place = slice(row.offsets[t], row.offsets[t + 1])
            c.remember(s, row.ids[place], t, last[place])
        for t in range(done - 1, -1, -1):
            place = slice(row.offsets[t], row.offsets[t + 1])
            c.unremember(s, row.ids[place], last[place])
        return done

    return _outer(encode), _outer(decode)


encode_row, decode_row = _loops(stamp_of(__file__, c.__file__, coder.__file__, members.__file__))
