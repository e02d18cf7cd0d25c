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
LEVELS, AGES, COUNTS, SAMES, CLASSES = 14, 8, 6, 3, 8  # values of each feature
FIELD, FIELD_MASK, BIAS, N_EXP = 20, (1 << 20) - 1, 1 << 14, 481  # packed log-weights, 1/32 octave; 0 is no weight
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
    cur_ids: Any
    cur_levels: Any
    next_of_V: Any
    next_start: Any
    next_ids: Any
    next_levels: Any
    class_V: Any  # how common: CLASSES values
    cur_class_V: Any  # how many picks the teacher makes after this token: CLASSES values
    next_class_V: Any
    factors: Any  # [F, size] packed log-weights of the three kinds (first head, heads, picks)
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
    """Memory of one thread: by token (slot, age, count, stamp), by candidate, and what an encoder counts."""

    slot: Any
    last: Any
    count: Any
    stamp: Any
    cand: Any
    feature: Any  # [candidates, 4]
    index: Any  # [candidates, N_FACTORS] what a candidate's features select
    logw: Any
    weight: Any
    block: Any
    members: Any
    kept: Any
    saved: Any
    previous: Any  # [V] where a current token was last
    counts: Any
    escapes: Any  # [V]


def scratch(n_vocabulary: int, m: int) -> Scratch:
    """Memory for one thread."""
    return Scratch(
        slot=np.full(n_vocabulary, -1, np.int64),
        last=np.full(n_vocabulary, -1, np.int64),
        count=np.zeros(n_vocabulary, np.int64),
        stamp=np.full(n_vocabulary, -1, np.int64),
        cand=np.zeros(MOST_CANDIDATES, np.int64),
        feature=np.zeros((MOST_CANDIDATES, 3), np.int64),
        index=np.zeros((MOST_CANDIDATES, N_FACTORS), np.int64),
        logw=np.zeros(MOST_CANDIDATES, np.int64),
        weight=np.zeros(MOST_CANDIDATES + BLOCK, np.int64),
        block=np.zeros(MOST_CANDIDATES // BLOCK + 2, np.int64),
        kept=np.zeros(m + 2, np.int64),
        saved=np.zeros(m + 2, np.int64),
        members=np.zeros(m + 2, np.int64),
        previous=np.full(n_vocabulary, -1, np.int64),
        counts=np.zeros((STATIC_ROWS, SYMBOLS), np.int64),
        escapes=np.zeros(n_vocabulary, np.int64),
    )


@inner
def log_class(value: Any, most: Any) -> Any:
    """0 for 0, else 1 + floor(log2), at most `most`."""
    n = 0
    while value > 0 and n < most:
        value >>= 1
        n += 1
    return n


@inner
def add_candidate(s: Any, n: Any, token: Any) -> Any:
    """The slot of a token, a new one where it has none; -1 when there is no room."""
    at = s.slot[token]
    if at < 0 and n < MOST_CANDIDATES:
        s.slot[token] = at = n
        s.cand[n] = token
        s.feature[n, 0] = s.feature[n, 1] = s.feature[n, 2] = 0
    return at


@inner
def add_set(s: Any, n: Any, members: Any, upcoming: Any, same: Any) -> Any:
    """The members of an earlier set as candidates; their number."""
    for token in members:
        if token != upcoming:
            at = add_candidate(s, n, token)
            if at >= 0:
                n = max(n, at + 1)
                s.feature[at, 2] = max(s.feature[at, 2], same)
    return n


@inner
def find_candidates(model: Any, s: Any, row: Any, t: Any) -> Any:
    """The candidates of a position, with features; their number, and the level of the next token among them."""
    n, level, current, upcoming = 0, 0, row.current[t], row.upcoming[t]
    key = model.cur_of_V[current]
    if key >= 0:
        for j in range(model.cur_start[key], model.cur_start[key + 1]):
            if model.cur_ids[j] == upcoming:
                level = np.int64(model.cur_levels[j])
            else:
                at = add_candidate(s, n, model.cur_ids[j])
                if at >= 0:
                    n = max(n, at + 1)
                    s.feature[at, 0] = model.cur_levels[j]
    key = model.next_of_V[upcoming]
    if key >= 0:
        for j in range(model.next_start[key], model.next_start[key + 1]):
            if model.next_ids[j] != upcoming:
                at = add_candidate(s, n, model.next_ids[j])
                if at >= 0:
                    n = max(n, at + 1)
                    s.feature[at, 1] = model.next_levels[j]
    p = t
    for back in range(1, SAMES):
        p = row.same[p]
        if p < 0:
            break
        n = add_set(s, n, row.ids[row.offsets[p] : row.offsets[p + 1]], upcoming, SAMES - back)
    for p in range(max(t - WINDOW, 0), t):
        n = add_set(s, n, row.ids[row.offsets[p] : row.offsets[p + 1]], upcoming, 0)
    return n, level


@inner
def weigh(model: Any, s: Any, n: Any, t: Any) -> None:
    """The packed log-weights of the candidates."""
    for i in range(n):
        token = s.cand[i]
        age = log_class(t - s.last[token], AGES - 1) if s.last[token] >= 0 else 0
        count = log_class(s.count[token], COUNTS - 1)
        f = s.feature[i]
        s.index[i, 0] = f[0] * LEVELS + f[1]
        s.index[i, 1] = age * COUNTS + count
        s.index[i, 2] = f[2] * LEVELS + f[0]
        s.index[i, 3] = model.class_V[token] * COUNTS + count
        logw = np.int64(0)
        for k in range(N_FACTORS):
            logw += model.factors[k, s.index[i, k]]
        s.logw[i] = logw


@inner
def contexts(model: Any, row: Any, t: Any, s: Any, level: Any) -> Any:
    """The static context of the next token, the two of how sure the teacher is, and that of the escape."""
    current, upcoming = row.current[t], row.upcoming[t]
    age = log_class(t - s.last[upcoming], AGES - 1) if s.last[upcoming] >= 0 else 0
    sure = model.cur_class_V[current] * CLASSES + model.next_class_V[upcoming]
    return ROW_NEXT + level * AGES + age, sure


@inner
def forget(s: Any, n: Any) -> None:
    """Free the slots of a position."""
    for i in range(n):
        s.slot[s.cand[i]] = -1


@inner
def lay_out(model: Any, s: Any, n: Any, kind: Any, sure: Any) -> Any:
    """Weights of one kind for all candidates, then the escape, with block sums; their total."""
    total = np.int64(0)
    shift = FIELD * kind
    for b in range(n // BLOCK + 1):
        part = np.int64(0)
        for i in range(b * BLOCK, min((b + 1) * BLOCK, n)):
            w = model.exp[min(max(((s.logw[i] >> shift) & FIELD_MASK) - BIAS, 0), N_EXP - 1)]
            s.weight[i] = w
            part += w
        s.block[b] = part
        total += part
    s.weight[n] = model.escape[sure, kind]
    s.block[n // BLOCK] += s.weight[n]
    return total + s.weight[n]


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
    at = s.slot[token]
    if at < 0 or s.weight[at] == 0:
        at = n
        low = model.escape_cumulative[token]
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
    """A member, by its slot or by escape."""
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
        return s.cand[at]
    n_tokens = model.escape_cumulative.shape[0] - 1
    total = model.escape_cumulative[n_tokens]
    point = peek_share(stack, total)
    j = point >> ESCAPE_SHIFT
    a, z = model.escape_start[j], model.escape_start[j + 1] + 1
    while z - a > 1:
        middle = (a + z) >> 1
        if model.escape_cumulative[middle] <= point:
            a = middle
        else:
            z = middle
    low = model.escape_cumulative[a]
    drop_share(stack, low, model.escape_cumulative[a + 1] - low, total)
    return a


@inner
def push_set(model: Any, stack: Any, s: Any, n: Any, members: Any, skipped: Any, kind: Any, sure: Any) -> None:
    """A set of tokens in rising order, without `skipped`; the candidates of other sets are out already."""
    total = lay_out(model, s, n, kind, sure)
    k = 0
    for token in members:
        if token != skipped:
            s.members[k] = token
            k += 1
            at = s.slot[token]
            if at >= 0:
                s.kept[k - 1] = exclude(s, at)
                total -= s.kept[k - 1]
    for left in range(k, 0, -1):
        i = pop_uniform(stack, left)
        token, w = s.members[i], s.kept[i]
        for j in range(i, left - 1):
            s.members[j], s.kept[j] = s.members[j + 1], s.kept[j + 1]
        at = s.slot[token]
        if at >= 0:
            s.weight[at] = w
            s.block[at // BLOCK] += w
            total += w
        push_member(model, stack, s, n, token, total)


@inner
def pop_set(model: Any, stack: Any, s: Any, n: Any, out: Any, k: Any, added: Any, kind: Any, sure: Any, t: Any) -> Any:
    """k tokens to `out` in rising order, and `added` (-1: none) among them; False where a token occurs twice."""
    total = lay_out(model, s, n, kind, sure)
    for done in range(k + 1):
        if done < k:
            token = pop_member(model, stack, s, n, total)
            at = s.slot[token]
            if at >= 0:
                total -= exclude(s, at)
                s.logw[at] = 0
            if s.stamp[token] == t:
                return False
            s.stamp[token] = t
        elif added >= 0:
            token = added
        else:
            break
        i = done
        while i > 0 and out[i - 1] > token:
            out[i] = out[i - 1]
            i -= 1
        out[i] = token
        if done < k:
            push_uniform(stack, i, done + 1)
    return True


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
def remember(s: Any, members: Any, t: Any, last: Any) -> None:
    """Note the set of a position in the row's history; `last` keeps what that replaced."""
    for i in range(members.shape[0]):
        token = members[i]
        last[i] = s.last[token]
        s.last[token] = t
        s.count[token] += 1


@inner
def unremember(s: Any, members: Any, last: Any) -> None:
    """Undo `remember`."""
    for i in range(members.shape[0]):
        s.last[members[i]] = last[i]
        s.count[members[i]] -= 1


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
