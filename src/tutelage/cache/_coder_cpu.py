"""The compiled entropy coder under `_row_coder_cpu.py`: a stack of 32-bit words under a state (rANS).

The state is a number x, the stack `words[1]` ... `words[top]`; `words[0]` is 0, which is what a pop from an empty stack
reads.  A symbol that covers [low, low + f) of a total T takes log2(T / f) bits:

    pop    x with T * 2**7 <= x < T * 2**39  ->  f * (x // T) + x % T - low, low <= x % T < low + f
    push   x with f * 2**7 <= x < f * 2**39  ->  T * (x // f) + x % f + low

Each undoes the other, and `settle` brings x into the interval that the next one needs: with the words below it there
is only one number in each interval [least, least * 2**32), so nothing has to be said about when words came and went.
No total has to be scaled to a power of two, a pop is one division, and a decoder may push as well.  That is how the
order of a set costs nothing: the encoder reads it off the bits already written, and the decoder, which sees the order,
writes these bits back.

Everything is int64 (below 2**63 no operation wraps), so that the same functions run as plain Python too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

STATIC = 15  # bits of a probability in a static table
SPARE = 7  # bits of the state above those of a symbol; totals are below 2**24
LOW, WORD = 1 << 31, 32  # the state starts and ends in [LOW, LOW << WORD)
START_SHIFT = 10  # of a point in a static table: where to look for its symbol
_WORD_MASK, _STATIC_MASK = (1 << WORD) - 1, (1 << STATIC) - 1

inner: Callable[[Any], Any] = partial(
    njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False, forceinline=True
)()


@inner
def settle(x: Any, top: Any, words: Any, least: Any) -> Any:
    """The same state and stack with least <= x < least << WORD; the new x and top.

    One word goes at most.  No branch: which way it goes can hardly be foretold.
    """
    words[np.uint64(top + 1)] = x & _WORD_MASK  # above the top, if none is pushed
    longer = x << WORD | np.int64(words[np.uint64(top)])
    few, many = x < least, x >> WORD >= least
    return longer if few else (x >> WORD if many else x), max(top + np.int64(many) - np.int64(few), 0)


@inner
def quotient(x: Any, divisor: Any) -> Any:
    """x // divisor of two numbers that are not negative: signed division costs more."""
    return np.int64(np.uint64(x) // np.uint64(divisor))


@inner
def push(x: Any, top: Any, words: Any, low: Any, f: Any, total: Any) -> Any:
    """A symbol that covers [low, low + f) of `total` < 2**24."""
    x, top = settle(x, top, words, f << SPARE)
    q = quotient(x, f)
    return q * total + (x - q * f) + low, top


@inner
def push_uniform(x: Any, top: Any, words: Any, value: Any, total: Any) -> Any:
    """A value of [0, total), all equally likely; total < 2**24."""
    if total > 1:
        x, top = settle(x, top, words, 1 << SPARE)
        x = x * total + value
    return x, top


@inner
def pop_uniform(x: Any, top: Any, words: Any, total: Any) -> Any:
    """A value of [0, total)."""
    value = x & 0
    if total > 1:
        x, top = settle(x, top, words, total << SPARE)
        q = quotient(x, total)
        x, value = q, x - q * total
    return x, top, value


@inner
def push_static(x: Any, top: Any, words: Any, cumulative: Any, context: Any, symbol: Any) -> Any:
    """A symbol of a table of cumulative frequencies with a total of 2**15."""
    low = np.int64(cumulative[context, symbol])
    return push(x, top, words, low, np.int64(cumulative[context, symbol + 1]) - low, 1 << STATIC)


@inner
def pop_static(x: Any, top: Any, words: Any, cumulative: Any, start: Any, context: Any) -> Any:
    """A symbol of a table of cumulative frequencies; `start` is where to look, by the high bits of a point."""
    x, top = settle(x, top, words, 1 << (STATIC + SPARE))
    point = x & _STATIC_MASK
    at = np.uint64(context)
    symbol = np.int64(start[at, np.uint64(point >> START_SHIFT)])
    low, high = np.int64(cumulative[at, np.uint64(symbol)]), np.int64(cumulative[at, np.uint64(symbol + 1)])
    while high <= point:
        symbol += 1
        low, high = high, np.int64(cumulative[at, np.uint64(symbol + 1)])
    return (high - low) * (x >> STATIC) + point - low, top, symbol


@inner
def number_symbol(value: Any) -> Any:
    """The symbol, the rest and the number of rests of a number: itself below 32, then two symbols an octave."""
    if value < 32:
        return value, 0, 1
    n = 0
    while value >> (n + 6) > 0:
        n += 1
    half = (value >> (n + 4)) & 1
    return 32 + 2 * n + half, value & ((1 << (n + 4)) - 1), 1 << (n + 4)


@inner
def push_number(x: Any, top: Any, words: Any, cumulative: Any, counts: Any, context: Any, value: Any) -> Any:
    """A number >= 0, its symbol by a static table, its rest uniform."""
    symbol, rest, n_rests = number_symbol(value)
    x, top = push_uniform(x, top, words, rest, n_rests)
    counts[context, symbol] += 1
    return push_static(x, top, words, cumulative, context, symbol)


@inner
def pop_number(x: Any, top: Any, words: Any, cumulative: Any, start: Any, context: Any) -> Any:
    """A number >= 0 below 2**20."""
    x, top, symbol = pop_static(x, top, words, cumulative, start, context)
    if symbol >= 32:
        n, half = (symbol - 32) >> 1, symbol & 1
        x, top, rest = pop_uniform(x, top, words, 1 << (n + 4))
        symbol = ((2 + half) << (n + 4)) + rest
    return x, top, symbol
