"""The compiled coder of a row's weighted sets, over `_coder_cpu.py`: what is likely at a position, and the sets in it.

A position is decoded in this order, and encoded in the reverse:

    where the next token is (NOWHERE, in the FIRST head, in another HEAD, in the TAIL), the number of heads, of picks,
    the weights of all heads but the first, the first head, the other heads, the picks, the witness.

Members come from a short list of candidates with integer weights, or by escape from the whole vocabulary.  Candidates
are what the sample saw beside this current token and beside this next token, and the sets of a few earlier positions
of the row; the weight of each is 2 to the sum of what its features say.  `Model` is all that the sample taught.
"""

from typing import Any, NamedTuple  # numba is untyped: its array types are Any to the checker

import numpy as np

from tutelage.cache._coder_cpu import inner

NOWHERE, FIRST, HEAD, TAIL = 0, 1, 2, 3  # where the next token is
MOST_CANDIDATES, WINDOW, BLOCK = 480, 1, 16
N_FACTORS, N_INDEX, ESCAPE_SHIFT = 4, 196, 12
LEVELS, AGES, COUNTS, SAMES, CLASSES = 14, 8, 6, 4, 8  # values of each feature
AGE_STEPS, COUNT_STEPS = 66, 18
FIELD, FIELD_MASK, BIAS, N_EXP = 20, (1 << 20) - 1, 1 << 14, 481  # packed log-weights, 1/32 octave
SLOT, COUNT, LAST = 4, 16, 38  # where the fields of a token's state begin; its class is below
SLOT_MASK, COUNT_MASK = (1 << 12) - 1, (1 << 22) - 1
_FREE = ~(SLOT_MASK << SLOT)
SYMBOLS = 64  # of a static table
ROW_NEXT, N_NEXT = 0, LEVELS * AGES
ROW_HEADS, N_HEADS = ROW_NEXT + N_NEXT, 4 * CLASSES * CLASSES
ROW_PICKS, N_PICKS = ROW_HEADS + N_HEADS, 4 * 12 * CLASSES
ROW_UNITS, N_UNITS = ROW_PICKS + N_PICKS, 4 * 32
ROW_WITNESS, N_WITNESS = ROW_UNITS + N_UNITS, 2
STATIC_ROWS = ROW_WITNESS + N_WITNESS


class Model(NamedTuple):
    """What the sample taught, ready to be read; integers only.  V vocabulary, K keys with a list of their own."""

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
    beside: Any  # [SAMES * 256] packed log-weights of what the lists and earlier sets say (see `code`)
    history: Any  # [CLASSES * 64] packed log-weights of class, age and count
    age: Any  # [AGE_STEPS] class of a distance
    count: Any  # [COUNT_STEPS] class of a count
    escape: Any  # [CLASSES * CLASSES, 3] weight of the escape
    exp: Any  # [N_EXP] weight of a log-weight
    escape_cumulative: Any  # [V + 1]
    escape_start: Any  # where to look in it, by the high bits of a point
    cumulative: Any  # [STATIC_ROWS, SYMBOLS + 1]


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
    """Memory of one thread: the state of each token (class, slot, count and last in the row), the candidates, and
    what an encoder counts."""

    token: Any
    previous: Any  # [V] where a current token was last
    cand: Any
    code: Any  # level beside the current token + 16 * beside the next + 256 * same
    past: Any  # index of class, age and count
    logw: Any
    weight: Any
    block: Any
    members: Any
    kept: Any
    saved: Any
    counts: Any
    escapes: Any  # [V]


def scratch(class_V: Any, m: int) -> Scratch:
    """Memory for one thread."""
    n_vocabulary = len(class_V)
    return Scratch(
        token=class_V.astype(np.int64),
        previous=np.full(n_vocabulary, -1, np.int32),
        cand=np.zeros(MOST_CANDIDATES, np.int64),
        code=np.zeros(MOST_CANDIDATES, np.int64),
        past=np.zeros(MOST_CANDIDATES, np.int64),
        logw=np.zeros(MOST_CANDIDATES, np.int64),
        weight=np.zeros(MOST_CANDIDATES + BLOCK, np.int64),
        block=np.zeros(MOST_CANDIDATES // BLOCK + 2, np.int64),
        members=np.zeros(m + 2, np.int64),
        kept=np.zeros(m + 2, np.int64),
        saved=np.zeros(m + 2, np.int64),
        counts=np.zeros((STATIC_ROWS, SYMBOLS), np.int64),
        escapes=np.zeros(n_vocabulary, np.int64),
    )


@inner
def slot_of(s: Any, token: Any) -> Any:
    """The slot of a token among the candidates, -1: none."""
    return ((s.token[token] >> SLOT) & SLOT_MASK) - 1


@inner
def past_of(model: Any, state: Any, t: Any) -> Any:
    """The index of a token's class, age and count in the row."""
    last = state >> LAST
    age = model.age[min(t - last + 1, AGE_STEPS - 1) if last > 0 else 0]
    count = model.count[min((state >> COUNT) & COUNT_MASK, COUNT_STEPS - 1)]
    return (state & 15) * 64 + age * 8 + count


@inner
def add(s: Any, age_of: Any, count_of: Any, n: Any, token: Any, code: Any, t: Any) -> Any:
    """Say `code` of a token, which becomes a candidate if there is room; the number of candidates.

    `s` holds the arrays themselves: a NamedTuple that is passed on costs twice the time here (numba 0.66).
    """
    states, cand, codes, past = s
    state = states[token]
    slot = (state >> SLOT) & SLOT_MASK
    is_new = slot == 0  # whether it is can hardly be foretold: no branch
    at = n if is_new else slot - 1
    if at == MOST_CANDIDATES:
        return n
    states[token] = state | (at + 1) << SLOT
    codes[at] = (0 if is_new else codes[at]) | code
    last = state >> LAST
    age = age_of[min(t - last + 1, AGE_STEPS - 1) if last > 0 else 0]
    cand[at], past[at] = (
        token,
        (state & 15) * 64 + age * 8 + count_of[min((state >> COUNT) & COUNT_MASK, COUNT_STEPS - 1)],
    )
    return n + np.int64(is_new)


@inner
def find_candidates(model: Any, s: Any, row: Any, t: Any) -> Any:
    """The candidates of a position, with features; their number, and the level of the next token among them."""
    n: Any = 0
    level: Any = 0
    arrays, age, count = (s.token, s.cand, s.code, s.past), model.age, model.count
    codes, past, logw, beside, history = s.code, s.past, s.logw, model.beside, model.history
    ids, offsets, same = row.ids, row.offsets, row.same
    items, upcoming = model.cur_list, row.upcoming[t]
    key = model.cur_of_V[row.current[t]]
    if key >= 0:
        for j in range(model.cur_start[key], model.cur_start[key + 1]):
            item = np.int64(items[j])
            if item >> 4 == upcoming:
                level = item & 15
            else:
                n = add(arrays, age, count, n, item >> 4, item & 15, t)
    items, key = model.next_list, model.next_of_V[upcoming]
    if key >= 0:
        for j in range(model.next_start[key], model.next_start[key + 1]):
            item = np.int64(items[j])
            if item >> 4 != upcoming:
                n = add(arrays, age, count, n, item >> 4, (item & 15) << 4, t)
    p = t
    for back in (1, 2):  # bits of `same`
        p = same[p]
        if p < 0:
            break
        for j in range(offsets[p], offsets[p + 1]):
            if ids[j] != upcoming:
                n = add(arrays, age, count, n, ids[j], back << 8, t)
    for j in range(offsets[max(t - WINDOW, 0)], offsets[t]):
        if ids[j] != upcoming:
            n = add(arrays, age, count, n, ids[j], 0, t)
    for i in range(n):
        logw[i] = beside[codes[i]] + history[past[i]]
    return n, level


@inner
def contexts(model: Any, row: Any, t: Any, s: Any, level: Any) -> Any:
    """The static context of the next token, and how sure the teacher is beside these two tokens."""
    current, upcoming = row.current[t], row.upcoming[t]
    age = (past_of(model, s.token[upcoming], t) >> 3) & 7
    sure = model.sure_V[current, 0] * CLASSES + model.sure_V[upcoming, 1]
    return ROW_NEXT + level * AGES + age, sure


@inner
def forget(s: Any, n: Any) -> None:
    """Free the slots of a position."""
    token, cand = s.token, s.cand
    for i in range(n):
        token[cand[i]] &= _FREE


@inner
def picks_context(n_heads: Any, where: Any, sure: Any) -> Any:
    """The static context of the number of picks."""
    heads = n_heads if n_heads < 6 else min(6 + (n_heads - 6) // 3, 11)
    both = (sure // CLASSES + sure % CLASSES + 1) // 2
    return ROW_PICKS + (where * 12 + heads) * CLASSES + both


@inner
def units_context(left: Any, n_left: Any, n_units: Any) -> Any:
    """The static context of a head's weight."""
    return ROW_UNITS + min(n_left - 1, 3) * 32 + max(left, 0) * 31 // n_units


@inner
def remember(s: Any, members: Any, t: Any, before: Any) -> None:
    """Note the set of a position in the row's history; `before` keeps what that replaced."""
    states = s.token
    for i in range(members.shape[0]):
        state = states[members[i]]
        before[i] = state
        states[members[i]] = (state & ((1 << LAST) - 1)) + (1 << COUNT) | (t + 1) << LAST


@inner
def unremember(s: Any, members: Any, before: Any) -> None:
    """Undo `remember`; the sets noted later must be undone before."""
    states = s.token
    for i in range(members.shape[0]):
        states[members[i]] = before[i]


@inner
def find_same(s: Any, row: Any) -> None:
    """Where the current token of each position was before in the row."""
    for t in range(row.current.shape[0]):
        row.same[t] = s.previous[row.current[t]]
        s.previous[row.current[t]] = t
    for t in range(row.current.shape[0]):
        s.previous[row.current[t]] = -1


@inner
def place_of(row: Any, t: Any) -> Any:
    """Where the next token of a position is."""
    for j in range(row.offsets[t], row.offsets[t + 1]):
        if row.ids[j] == row.upcoming[t]:
            i = j - row.offsets[t]
            return FIRST if i == 0 and row.heads[t] > 0 else (HEAD if i < row.heads[t] else TAIL)
    return NOWHERE
