"""The compiled coder of a position's members: sets of tokens, each by its slot among the candidates or by escape.

The order of a set costs nothing: see `_coder_cpu.py`.  Arrays are handed on by themselves where time counts: a
NamedTuple that is passed on costs twice the time (numba 0.66).
"""

from typing import Any  # numba is untyped: its array types are Any to the checker

import numpy as np

from tutelage.cache._coder_cpu import drop_share, inner, peek_share, pop_uniform, push_share, push_uniform
from tutelage.cache._set_coder_cpu import (
    BIAS,
    BLOCK,
    ESCAPE_SHIFT,
    FIELD,
    FIELD_MASK,
    N_EXP,
    SLOT,
    SLOT_MASK,
    slot_of,
)


@inner
def lay_out(model: Any, s: Any, n: Any, kind: Any, sure: Any) -> Any:
    """Weights of one kind for all candidates, then the escape, with block sums; their total."""
    return fill(s.logw, model.exp, s.weight, s.block, n, FIELD * kind, np.int64(model.escape[sure, kind]))


@inner
def fill(logw: Any, exp: Any, weight: Any, block: Any, n: Any, shift: Any, escape: Any) -> Any:
    """See `lay_out`."""
    for i in range(n):
        x = ((logw[i] >> shift) & np.int64(FIELD_MASK)) - np.int64(BIAS)
        x = np.int64(N_EXP - 1) if x > N_EXP - 1 else x
        x = np.int64(1) if x < 1 else x
        w = np.int64(exp[x])
        weight[i] = w if logw[i] > 0 else np.int64(0)
    weight[n] = escape
    for i in range(n + 1, (n // BLOCK + 1) * BLOCK):
        weight[i] = 0
    total = np.int64(0)
    for b in range(n // BLOCK + 1):
        part = np.int64(0)
        for i in range(BLOCK):
            part += weight[b * BLOCK + i]
        block[b] = part
        total += part
    return total


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
    at = pop_slot(stack, s.weight, s.block, total)
    if at < n:
        return s.cand[at], at
    token = pop_escape(stack, model.escape_cumulative, model.escape_start)
    return token, (n if slot_of(s, token) < 0 else -1)


@inner
def pop_slot(stack: Any, weight: Any, block: Any, total: Any) -> Any:
    """The slot that the state shows."""
    point = peek_share(stack, total)
    b, low = 0, np.int64(0)
    while low + block[b] <= point:
        low += block[b]
        b += 1
    at = b * BLOCK
    while low + weight[at] <= point:
        low += weight[at]
        at += 1
    drop_share(stack, low, weight[at], total)
    return at


@inner
def pop_escape(stack: Any, cumulative: Any, start: Any) -> Any:
    """A token of the whole vocabulary."""
    total = np.int64(cumulative[cumulative.shape[0] - 1])
    point = peek_share(stack, total)
    j = point >> ESCAPE_SHIFT
    a, z = np.int64(start[j]), np.int64(start[j + 1]) + 1
    while z - a > 1:
        middle = (a + z) >> 1
        if np.int64(cumulative[middle]) <= point:
            a = middle
        else:
            z = middle
    low = np.int64(cumulative[a])
    drop_share(stack, low, np.int64(cumulative[a + 1]) - low, total)
    return a


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
    weight, block, logw, cand, states = s.weight, s.block, s.logw, s.cand, s.token
    cumulative, escape_start = model.escape_cumulative, model.escape_start
    total = fill(logw, model.exp, weight, block, n, FIELD * kind, np.int64(model.escape[sure, kind]))
    for done in range(k):
        at = pop_slot(stack, weight, block, total)
        if at < n:
            token, w = cand[at], weight[at]
            total -= w
            block[at // BLOCK] -= w
            weight[at] = logw[at] = 0
        else:
            token = pop_escape(stack, cumulative, escape_start)
            if (states[token] >> SLOT) & SLOT_MASK or token == upcoming or is_in(others, token):
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
