"""The compiled coder of a position's members: sets of tokens, each by its slot among the candidates or by escape.

A set of k members is popped in the order in which it was drawn: k slots, the tokens of those that escaped, then the
order is pushed back, as one number in chunks below 2**24 (see `_coder_cpu.py`: the order of a set costs nothing).
There is no branch on what is read, and no loop ends early on it: it cannot be foretold, and each miss costs as much as
a division.
"""

from typing import Any  # numba is untyped: its array types are Any to the checker

import numpy as np

from tutelage.cache._coder_cpu import SPARE, inner, pop_uniform, push, push_uniform, quotient, settle
from tutelage.cache._set_coder_cpu import ESCAPE_SHIFT, LANES, MOST_WEIGHT, SLOT, SLOT_MASK, slot_of

MOST_MEMBERS, FEW = 512, 16
_NEVER = (1 << 31) - 1


def _chunks() -> tuple[Any, Any]:
    """For the number of members before one: how many values its chunk of the order has up to it, and if it ends it."""
    radix, ends = np.ones(MOST_MEMBERS, np.int64), np.zeros(MOST_MEMBERS, np.bool_)
    for j in range(1, MOST_MEMBERS):
        radix[j] = (1 if ends[j - 1] else radix[j - 1]) * (j + 1)
        ends[j] = radix[j] * (j + 2) >= 1 << 24
    return radix, ends


_RADIX, _ENDS = _chunks()


@inner
def lay_out(model: Any, s: Any, n: Any, kind: Any, sure: Any) -> Any:
    """Weights of one kind for all candidates and the escape, with their running sums; the number of blocks."""
    alive, weight, upto, product = s.alive, s.weight, s.upto, s.product[kind]
    for i in range(n):
        weight[i] = max(np.int32(min(product[i], np.float32(MOST_WEIGHT))), np.int32(1)) * alive[i]
    weight[n] = model.escape[np.uint64(sure), np.uint64(kind)]
    total = np.int32(0)
    for i in range(n + 1):
        total = np.int32(total + weight[i])
        upto[i] = total
    for i in range(n + 1, n + LANES):
        upto[i] = _NEVER
    return (n + LANES) // LANES


@inner
def slot_at(upto: Any, n_blocks: Any, point: Any) -> Any:
    """The slot that a point falls in: the number of running sums up to it."""
    point, above = np.int32(point), np.int32(0)
    for i in range(n_blocks * LANES):
        above = np.int32(above + np.int32(upto[i] > point))
    return n_blocks * LANES - np.int64(above)


@inner
def shift(upto: Any, n_blocks: Any, at: Any, by: Any) -> None:
    """Add to the weight of a slot."""
    first, by = np.int32(at), np.int32(by)
    for i in range(n_blocks * LANES):
        upto[i] += by if np.int32(i) >= first else np.int32(0)


@inner
def pop_slots(x: Any, top: Any, words: Any, s: Any, n: Any, n_blocks: Any, k: Any) -> Any:
    """k slots, one after the other without putting back (but the escape, slot n), to `s.slots`."""
    weight, upto, slots = s.weight, s.upto, s.slots
    total = np.int64(upto[n])
    for j in range(k):
        x, top = settle(x, top, words, total << SPARE)
        q = quotient(x, total)
        point = x - q * total
        at = slot_at(upto, n_blocks, point)
        w = np.int64(weight[np.uint64(at)])
        x = w * q + point - (np.int64(upto[np.uint64(at)]) - w)
        slots[j] = at
        out = w if at < n else 0
        shift(upto, n_blocks, at, -out)
        total -= out
    return x, top


@inner
def pop_escape(x: Any, top: Any, words: Any, model: Any) -> Any:
    """A token of the whole vocabulary."""
    upto = model.escape_upto
    n_codes = upto.shape[0]
    total = np.int64(upto[n_codes - 1])
    x, top = settle(x, top, words, total << SPARE)
    q = quotient(x, total)
    point = x - q * total
    code = np.int64(model.escape_start[np.uint64(point >> ESCAPE_SHIFT)])
    while np.int64(upto[np.uint64(code)]) <= point:
        code += 1
    w, low = np.int64(model.escape_weight[code]), np.int64(model.escape_low[code])
    index = quotient(point - low, w)
    x = w * q + point - low - index * w
    return x, top, np.int64(model.escape_order[model.escape_first[code] + index])


@inner
def push_escape(x: Any, top: Any, words: Any, model: Any, token: Any) -> Any:
    """A token of the whole vocabulary."""
    code = np.int64(model.escape_code[token])
    w, index = np.int64(model.escape_weight[code]), model.escape_place[token] - model.escape_first[code]
    total = np.int64(model.escape_upto[model.escape_upto.shape[0] - 1])
    return push(x, top, words, np.int64(model.escape_low[code]) + index * w, w, total)


@inner
def ranks(drawn: Any, token: Any, j: Any, n_lanes: Any) -> Any:
    """How many are less than the j-th, and how many of those before it."""
    below, before = np.int32(0), np.int32(0)
    for i in range(n_lanes):
        less = np.int32(drawn[i] < token)
        below = np.int32(below + less)
        before = np.int32(before + (less if np.int32(i) < np.int32(j) else np.int32(0)))
    return np.int64(below), np.int64(before)


@inner
def pop_order(x: Any, top: Any, words: Any, drawn: Any, k: Any, size: Any, out: Any, first: Any) -> Any:
    """Put `size` tokens to out[first:] in rising order, and push back the order in which the first k were drawn."""
    n_lanes = FEW if size <= FEW else (size + LANES - 1) // LANES * LANES
    for j in range(size, n_lanes):
        drawn[j] = _NEVER
    value = np.int64(0)
    for j in range(size):
        token = drawn[j]
        below, before = ranks(drawn, token, j, FEW) if size <= FEW else ranks(drawn, token, j, n_lanes)
        out[np.uint64(first + below)] = token
        if j < k:
            value = value * (j + 1) + before
            if _ENDS[j] or j == k - 1:
                x, top = push_uniform(x, top, words, value, _RADIX[j])
                value = np.int64(0)
    return x, top


@inner
def pop_set(
    x: Any, top: Any, words: Any, model: Any, s: Any, n: Any, n_strange: Any, kind: Any, sure: Any, k: Any
) -> Any:
    """k members to `s.drawn`; x, top, the number of members that escaped so far, negative where one is twice.

    Who was drawn has no weight in the sets that follow; `SLOT_MASK` marks who escaped.
    """
    n_blocks = lay_out(model, s, n, kind, sure)
    x, top = pop_slots(x, top, words, s, n, n_blocks, k)
    states, cand, slots, drawn, alive, strange = s.token, s.cand, s.slots, s.drawn, s.alive, s.strange
    escaped = n_strange
    for j in range(k):
        at = np.uint64(slots[j])
        drawn[j], alive[at] = cand[at], 0
        strange[np.uint64(escaped)] = j
        escaped += np.int64(slots[j] == n)
    for i in range(n_strange, escaped):
        x, top, token = pop_escape(x, top, words, model)
        if slot_of(states, token) > 0:
            return x, top, -i - 1
        states[token] |= SLOT_MASK << SLOT
        drawn[strange[i]] = token
        strange[i] = token
    return x, top, escaped


@inner
def push_set(
    x: Any, top: Any, words: Any, model: Any, s: Any, row: Any, n: Any, kind: Any, sure: Any, first: Any, last: Any,
    upcoming: Any,
) -> Any:  # fmt: skip
    """The members of row.ids[first:last] but the next token; those of other sets have no weight already."""
    ids, weight, upto, members, slots, kept = row.ids, s.weight, s.upto, s.drawn, s.slots, s.kept
    n_blocks, k, value = lay_out(model, s, n, kind, sure), 0, np.int64(0)
    for j in range(first, last):
        if ids[j] != upcoming:
            members[k] = ids[j]
            k += 1
    for left in range(k, 0, -1):  # kept: in the order of drawing
        if left == k or _ENDS[left - 1]:
            x, top, value = pop_uniform(x, top, words, _RADIX[left - 1])
        i = value - quotient(value, left) * left
        value = quotient(value, left)
        token = kept[left - 1] = members[i]
        at = slot_of(s.token, token)
        slots[left - 1] = at if at > 0 else n
        if at > 0:
            shift(upto, n_blocks, at, -weight[at])
        for j in range(i, left - 1):
            members[j] = members[j + 1]
    for j in range(k - 1, -1, -1):
        if slots[j] == n:
            x, top = push_escape(x, top, words, model, kept[j])
            s.escapes[kept[j]] += 1
    for j in range(k - 1, -1, -1):
        at = slots[j]
        w = np.int64(weight[at])
        if at < n:
            shift(upto, n_blocks, at, w)
        x, top = push(x, top, words, np.int64(upto[at]) - w, w, np.int64(upto[n]))
    return x, top
