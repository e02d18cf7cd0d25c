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

from tutelage.cache._coder_cpu import drop_share, inner, peek_share, pop_uniform, push_share, push_uniform

NOWHERE, FIRST, HEAD, TAIL = 0, 1, 2, 3  # where the next token is
MOST_CANDIDATES, WINDOW, BLOCK = 480, 3, 16
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
def add(model: Any, s: Any, n: Any, token: Any, code: Any, t: Any) -> Any:
    """Say `code` of a token, which becomes a candidate if there is room; the number of candidates."""
    state = s.token[token]
    slot = (state >> SLOT) & SLOT_MASK
    is_new = slot == 0  # whether it is can hardly be foretold: no branch
    at = n if is_new else slot - 1
    if at == MOST_CANDIDATES:
        return n
    s.token[token] = state | (at + 1) << SLOT
    s.code[at] = (0 if is_new else s.code[at]) | code
    s.cand[at], s.past[at] = token, past_of(model, state, t)
    return n + np.int64(is_new)


@inner
def find_candidates(model: Any, s: Any, row: Any, t: Any) -> Any:
    """The candidates of a position, with features; their number, and the level of the next token among them."""
    n: Any = 0
    level: Any = 0
    current, upcoming = row.current[t], row.upcoming[t]
    key = model.cur_of_V[current]
    if key >= 0:
        for j in range(model.cur_start[key], model.cur_start[key + 1]):
            item = np.int64(model.cur_list[j])
            if item >> 4 == upcoming:
                level = item & 15
            else:
                n = add(model, s, n, item >> 4, item & 15, t)
    key = model.next_of_V[upcoming]
    if key >= 0:
        for j in range(model.next_start[key], model.next_start[key + 1]):
            item = np.int64(model.next_list[j])
            if item >> 4 != upcoming:
                n = add(model, s, n, item >> 4, (item & 15) << 4, t)
    p = t
    for back in (1, 2):  # bits of `same`
        p = row.same[p]
        if p < 0:
            break
        for j in range(row.offsets[p], row.offsets[p + 1]):
            if row.ids[j] != upcoming:
                n = add(model, s, n, row.ids[j], back << 8, t)
    for j in range(row.offsets[max(t - WINDOW, 0)], row.offsets[t]):
        if row.ids[j] != upcoming:
            n = add(model, s, n, row.ids[j], 0, t)
    for i in range(n):
        s.logw[i] = model.beside[s.code[i]] + model.history[s.past[i]]
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
    for i in range(n):
        s.token[s.cand[i]] &= _FREE


@inner
def lay_out(model: Any, s: Any, n: Any, kind: Any, sure: Any) -> Any:
    """Weights of one kind for all candidates, then the escape, with block sums; their total."""
    total = np.int64(0)
    shift = FIELD * kind
    for b in range(n // BLOCK + 1):
        part = np.int64(0)
        for i in range(b * BLOCK, min((b + 1) * BLOCK, n)):
            logw = s.logw[i]
            w = model.exp[min(max(((logw >> shift) & FIELD_MASK) - BIAS, 1), N_EXP - 1)]
            w = w if logw > 0 else 0
            s.weight[i] = w
            part += w
        s.block[b] = part
        total += part
    w = np.int64(model.escape[sure, kind])
    s.weight[n] = w
    s.block[n // BLOCK] += w
    return total + w


@inner
def exclude(s: Any, at: Any) -> Any:
    """Take a candidate's weight out; how much it was."""
    w = s.weight[at]
    s.weight[at] = 0
    s.block[at // BLOCK] -= w
    return w


@inner
def push_member(model: Any, stack: Any, s: Any, n: Any, token: Any, total: Any) -> None:
    """A member, by its slot or by escape."""
    at = slot_of(s, token)
    if at < 0:
        at = n
        low = np.int64(model.escape_cumulative[token])
        n_tokens = model.escape_cumulative.shape[0] - 1
        push_share(stack, low, model.escape_cumulative[token + 1] - low, model.escape_cumulative[n_tokens])
        s.escapes[token] += 1
    low = np.int64(0)
    for b in range(at // BLOCK):
        low += s.block[b]
    for i in range(at // BLOCK * BLOCK, at):
        low += s.weight[i]
    push_share(stack, low, s.weight[at], total)


@inner
def pop_member(model: Any, stack: Any, s: Any, n: Any, total: Any) -> Any:
    """A member and its slot; an escape has slot n, or -1 where it cannot be one."""
    point = peek_share(stack, total)
    b, low = 0, np.int64(0)
    while low + s.block[b] <= point:
        low += s.block[b]
        b += 1
    at = b * BLOCK
    while low + s.weight[at] <= point:
        low += s.weight[at]
        at += 1
    drop_share(stack, low, s.weight[at], total)
    if at < n:
        return s.cand[at], at
    n_tokens = model.escape_cumulative.shape[0] - 1
    total = np.int64(model.escape_cumulative[n_tokens])
    point = peek_share(stack, total)
    j = point >> ESCAPE_SHIFT
    a, z = np.int64(model.escape_start[j]), np.int64(model.escape_start[j + 1]) + 1
    while z - a > 1:
        middle = (a + z) >> 1
        if model.escape_cumulative[middle] <= point:
            a = middle
        else:
            z = middle
    low = np.int64(model.escape_cumulative[a])
    drop_share(stack, low, model.escape_cumulative[a + 1] - low, total)
    return a, (n if slot_of(s, a) < 0 else -1)


@inner
def push_set(model: Any, stack: Any, s: Any, n: Any, members: Any, skipped: Any, kind: Any, sure: Any) -> None:
    """A set of tokens in rising order, without `skipped`; the candidates of other sets are out already."""
    total = lay_out(model, s, n, kind, sure)
    k = 0
    for token in members:
        if token != skipped:
            s.members[k] = token
            at = slot_of(s, token)
            if at >= 0:
                s.kept[k] = exclude(s, at)
                total -= s.kept[k]
            k += 1
    for left in range(k, 0, -1):
        i = pop_uniform(stack, left)
        token, w = s.members[i], s.kept[i]
        for j in range(i, left - 1):
            s.members[j], s.kept[j] = s.members[j + 1], s.kept[j + 1]
        at = slot_of(s, token)
        if at >= 0:
            s.weight[at] = w
            s.block[at // BLOCK] += w
            total += w
        push_member(model, stack, s, n, token, total)


@inner
def is_in(members: Any, token: Any) -> Any:
    """Whether a token is among some."""
    for member in members:  # noqa: SIM110  # numba compiles no generators here
        if member == token:
            return True
    return False


@inner
def pop_set(
    model: Any, stack: Any, s: Any, n: Any, out: Any, k: Any, kind: Any, sure: Any, others: Any, upcoming: Any
) -> Any:
    """k tokens to `out` in rising order; False where one occurs twice, among `others` too, or is the next token."""
    total = lay_out(model, s, n, kind, sure)
    for done in range(k):
        token, at = pop_member(model, stack, s, n, total)
        if at < 0:
            return False
        if at < n:
            total -= exclude(s, at)
            s.logw[at] = 0
        elif token == upcoming or is_in(others, token):
            return False
        i = done
        while i > 0 and out[i - 1] >= token:
            if out[i - 1] == token:
                return False
            out[i] = out[i - 1]
            i -= 1
        out[i] = token
        push_uniform(stack, i, done + 1)
    return True


@inner
def insert(out: Any, k: Any, token: Any) -> None:
    """Put a token among k others in rising order."""
    i = k
    while i > 0 and out[i - 1] > token:
        out[i] = out[i - 1]
        i -= 1
    out[i] = token


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
    for i in range(members.shape[0]):
        token = members[i]
        state = s.token[token]
        before[i] = state
        s.token[token] = (state & ((1 << LAST) - 1)) + (1 << COUNT) | (t + 1) << LAST


@inner
def unremember(s: Any, members: Any, before: Any) -> None:
    """Undo `remember`; the sets noted later must be undone before."""
    for i in range(members.shape[0]):
        s.token[members[i]] = before[i]


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
