"""What the compiled coder of a row's weighted sets knows at a position: its candidates, the row's history, contexts.

A position is decoded in this order, and encoded in the reverse:

    where the next token is (NOWHERE, in the FIRST head, in another HEAD, in the TAIL), the number of heads, of picks,
    the weights of all heads but the first, the first head, the other heads, the picks, the witness.

Members come from a short list of candidates with integer weights, or by escape from the whole vocabulary.  Candidates
are what the sample saw beside this current token and beside this next token, and the sets of a few earlier positions
of the row.  The weight of each is a product of two numbers, one of what the lists and the earlier sets say of it, one
of how common it is and of its history in the row: one IEEE product, the same on every machine.  `Model` is all that
the sample taught.

Slots number the candidates of a position: 0 is nobody's, 1 the next token's, which is coded by itself and has no
weight, and the one behind the last stands for the escape.
"""

from typing import Any, NamedTuple  # numba is untyped: its array types are Any to the checker

import numpy as np

from tutelage.cache._coder_cpu import inner

NOWHERE, FIRST, HEAD, TAIL = 0, 1, 2, 3  # where the next token is
MOST_CANDIDATES, LANES = 480, 32  # LANES: loops run over whole multiples, so that compiled ones have no rests
N_FACTORS, N_INDEX = 4, 196
LEVELS, AGES, COUNTS, SAMES, CLASSES = 14, 8, 6, 4, 8  # values of each feature
MOST_WEIGHT = 1 << 15  # of a candidate: all of them and the escape stay below 2**24
CLASS, SLOT, COUNT, LAST = 6, 10, 22, 27  # where the fields of a token's state begin
SLOT_MASK, COUNT_MASK = (1 << 12) - 1, (1 << 5) - 1
CLASS_FIELD, PAST_FIELD = (CLASSES - 1) << CLASS, (1 << 9) - 1
_FREE = ~(SLOT_MASK << SLOT)
_STEPS = np.array([min(n.bit_length(), COUNTS - 1) + (n << COUNT) for n in range(COUNT_MASK + 1)])  # of a count
SYMBOLS = 64  # of a static table
ESCAPE_SHIFT = 12  # of a point among all tokens: where to look for its code
ROW_NEXT, N_NEXT = 0, LEVELS * AGES
ROW_HEADS, N_HEADS = ROW_NEXT + N_NEXT, 4 * CLASSES * CLASSES
ROW_PICKS, N_PICKS = ROW_HEADS + N_HEADS, 4 * 12 * CLASSES
ROW_UNITS, N_UNITS = ROW_PICKS + N_PICKS, 4 * 32
ROW_WITNESS, N_WITNESS = ROW_UNITS + N_UNITS, 2
STATIC_ROWS = ROW_WITNESS + N_WITNESS


class Model(NamedTuple):
    """What the sample taught, ready to be read.  V vocabulary, C codes of how likely a token is to escape."""

    m: Any
    grains: Any  # tau in grains
    cur_of_V: Any  # list of a current token, -1: none
    cur_start: Any
    cur_list: Any  # id * 16 + level
    next_of_V: Any
    next_start: Any
    next_list: Any
    class_V: Any  # how common: CLASSES values
    sure_V: Any  # [V, 2] how many picks the teacher makes after this token, and before it: CLASSES values
    beside: Any  # [SAMES * 256, 4] float32, what the lists and earlier sets say, by `Scratch.code`
    history: Any  # [CLASSES * 64, 4] float32, what class, age and count say, by `Scratch.past`
    escape: Any  # [CLASSES * CLASSES, 3] weight of the escape
    escape_order: Any  # [V] tokens by code
    escape_place: Any  # [V] where a token is in it
    escape_code: Any  # [V]
    escape_first: Any  # [C] place of the first token of a code
    escape_low: Any  # [C] weight of all tokens before it
    escape_upto: Any  # [C] weight of all tokens up to the last of a code
    escape_start: Any  # the code of a point, or one before it, by its high bits
    escape_weight: Any  # [C] of one token
    left: Any  # [m * grains + 1] step of what is left of the weight
    cumulative: Any  # [STATIC_ROWS, SYMBOLS + 1]
    start: Any  # [STATIC_ROWS, 32] where to look in it


class Row(NamedTuple):
    """One row: its tokens, and its sets as they are decoded or to be encoded."""

    current: Any
    upcoming: Any
    same: Any  # the position before with the same current token, -1: none
    heads: Any  # their number
    offsets: Any
    ids: Any  # of a position: the first head, the other heads rising, the picks rising
    units: Any
    witness: Any  # 0 ... 255


class Scratch(NamedTuple):
    """Memory of one thread, and what an encoder counts.

    The state of a token: class of its count in the row, how common it is, slot, count, and the clock when it was last
    in a set.  The clock goes on from row to row: what was last before a row began is not in it.
    """

    token: Any  # [V]
    previous: Any  # [V] the clock when a current token was last
    clock: Any  # [1]
    cand: Any
    code: Any  # level beside the current token + 16 * beside the next + 256 * same; zeros between positions
    seen: Any  # state
    past: Any  # index of class, age and count
    alive: Any  # 1, or 0 for who has no weight
    product: Any  # [3, candidates] weights before they are whole
    weight: Any
    upto: Any  # running sums of the weights
    slots: Any
    drawn: Any
    strange: Any  # members that escaped
    kept: Any
    counts: Any
    escapes: Any  # [V]


def scratch(class_V: Any, m: int) -> Scratch:
    """Memory for one thread."""
    n_vocabulary, room, most = len(class_V), MOST_CANDIDATES + 2 * LANES, m + 2 + LANES
    return Scratch(
        token=class_V.astype(np.int64) << CLASS,
        previous=np.zeros(n_vocabulary, np.int64),
        clock=np.ones(1, np.int64),
        cand=np.zeros(room, np.int32),
        code=np.zeros(room, np.int32),
        seen=np.zeros(room, np.int64),
        past=np.zeros(room, np.int32),
        alive=np.zeros(room, np.int32),
        product=np.zeros((3, room), np.float32),
        weight=np.zeros(room, np.int32),
        upto=np.zeros(room, np.int32),
        slots=np.zeros(most, np.int32),
        drawn=np.zeros(most, np.int32),
        strange=np.zeros(most, np.int32),
        kept=np.zeros(most, np.int32),
        counts=np.zeros((STATIC_ROWS, SYMBOLS), np.int64),
        escapes=np.zeros(n_vocabulary, np.int64),
    )


@inner
def slot_of(states: Any, token: Any) -> Any:
    """The slot of a token among the candidates, 0: none."""
    return (states[token] >> SLOT) & SLOT_MASK


@inner
def add(arrays: Any, n: Any, token: Any, code: Any) -> Any:
    """Say `code` of a token, which becomes a candidate in slot n if it is none; the next free slot.

    The arrays themselves: a NamedTuple that is passed on costs twice the time here (numba 0.66).
    """
    states, cand, codes, seen = arrays
    place = np.uint64(token)
    state = states[place]
    slot = (state >> SLOT) & SLOT_MASK
    at = n if slot == 0 else slot  # no branch: whether it is new can hardly be foretold
    states[place] = state | at << SLOT
    codes[np.uint64(at)] |= code
    cand[np.uint64(at)] = token
    seen[np.uint64(at)] = state
    return n + np.int64(slot == 0)


@inner
def add_list(arrays: Any, n: Any, items: Any, first: Any, last: Any, shift: Any) -> Any:
    """Add a list, as far as there is room."""
    for j in range(first, min(last, first + MOST_CANDIDATES - n)):
        item = np.int64(items[np.uint64(j)])
        n = add(arrays, n, item >> 4, (item & 15) << shift)
    return n


@inner
def add_set(arrays: Any, n: Any, row: Any, p: Any, code: Any) -> Any:
    """Add the set of an earlier position, as far as there is room."""
    ids, first = row.ids, row.offsets[p]
    for j in range(first, min(row.offsets[p + 1], first + MOST_CANDIDATES - n)):
        n = add(arrays, n, ids[np.uint64(j)], code)
    return n


@inner
def find_candidates(model: Any, s: Any, row: Any, t: Any, base: Any) -> Any:
    """The candidates of a position, with features; how many slots they fill.  `base` is the clock of its row."""
    arrays, upcoming, n = (s.token, s.cand, s.code, s.seen), row.upcoming[t], np.int64(1)
    n = add(arrays, n, upcoming, 0)
    key = model.cur_of_V[row.current[t]]
    if key >= 0:
        n = add_list(arrays, n, model.cur_list, model.cur_start[key], model.cur_start[key + 1], 0)
    key = model.next_of_V[upcoming]
    if key >= 0:
        n = add_list(arrays, n, model.next_list, model.next_start[key], model.next_start[key + 1], 4)
    p = row.same[t]
    if p >= 0:
        n = add_set(arrays, n, row, p, 1 << 8)
        p = row.same[p]
        if p >= 0:
            n = add_set(arrays, n, row, p, 2 << 8)
    if t > 0:
        n = add_set(arrays, n, row, t - 1, 0)
    weigh(model, s, n, base, t)
    return n


@inner
def weigh(model: Any, s: Any, n: Any, base: Any, t: Any) -> None:
    """Past and weights, of all kinds, of all candidates."""
    seen, past, alive, code, product = s.seen, s.past, s.alive, s.code, s.product
    beside, history = model.beside, model.history
    for i in range(n):
        past[i] = past_of(seen[i], base, t)
        alive[i] = 1
    alive[0] = alive[1] = 0
    for i in range(n):
        a, b = np.uint64(code[i]), np.uint64(past[i])
        first, second, third = beside[a, 0] * history[b, 0], beside[a, 1] * history[b, 1], beside[a, 2] * history[b, 2]
        product[0, i], product[1, i], product[2, i] = first, second, third


@inner
def past_of(state: Any, base: Any, t: Any) -> Any:
    """The index of a token's class, age (its bits) and count in the row."""
    last = state >> LAST
    d = base + t + 1 - last
    age = 1 + (d >= 2) + (d >= 4) + (d >= 8) + (d >= 16) + (d >= 32) + (d >= 64)
    return (state & PAST_FIELD) + (age << 3) if last > base else state & CLASS_FIELD


@inner
def contexts(model: Any, row: Any, t: Any, s: Any) -> Any:
    """The static context of the next token, and how sure the teacher is beside these two tokens."""
    sure = np.int64(model.sure_V[row.current[t], 0]) * CLASSES + np.int64(model.sure_V[row.upcoming[t], 1])
    return ROW_NEXT + np.int64(s.code[1] & 15) * AGES + ((np.int64(s.past[1]) >> 3) & 7), sure


@inner
def forget(s: Any, n: Any, n_strange: Any) -> None:
    """Free the slots of a position."""
    states, cand, codes, strange = s.token, s.cand, s.code, s.strange
    for i in range(1, n):
        states[np.uint64(cand[i])] &= _FREE
    for i in range(n_strange):
        states[np.uint64(strange[i])] &= _FREE
    for i in range(n):
        codes[i] = 0


@inner
def picks_context(n_heads: Any, where: Any, sure: Any) -> Any:
    """The static context of the number of picks."""
    heads = n_heads if n_heads < 6 else min(6 + (n_heads - 6) // 3, 11)
    both = (sure // CLASSES + sure % CLASSES + 1) // 2
    return ROW_PICKS + (where * 12 + heads) * CLASSES + both


@inner
def units_context(model: Any, left: Any, n_left: Any) -> Any:
    """The static context of a head's weight."""
    return ROW_UNITS + min(n_left - 1, 3) * 32 + np.int64(model.left[max(left, 0)])


@inner
def remember(s: Any, row: Any, t: Any, base: Any) -> None:
    """Note the set of a position in the row's history."""
    states, ids = s.token, row.ids
    for j in range(row.offsets[t], row.offsets[t + 1]):
        place = np.uint64(ids[np.uint64(j)])
        state = states[place]
        n = min(((state >> COUNT) & COUNT_MASK if state >> LAST > base else 0) + 1, COUNT_MASK)
        states[place] = (state & CLASS_FIELD) + _STEPS[np.uint64(n)] + ((base + t + 1) << LAST)


@inner
def begin_row(s: Any, row: Any) -> Any:
    """Find where the current token of each position was before in the row; the clock of the row."""
    base, n = s.clock[0], row.current.shape[0]
    for t in range(n):
        row.same[t] = max(s.previous[row.current[t]] - base - 1, -1)
        s.previous[row.current[t]] = base + t + 1
    s.clock[0] = base + n + 1
    return base


@inner
def place_of(row: Any, t: Any) -> Any:
    """Where the next token of a position is."""
    for j in range(row.offsets[t], row.offsets[t + 1]):
        if row.ids[j] == row.upcoming[t]:
            i = j - row.offsets[t]
            return FIRST if i == 0 and row.heads[t] > 0 else (HEAD if i < row.heads[t] else TAIL)
    return NOWHERE
