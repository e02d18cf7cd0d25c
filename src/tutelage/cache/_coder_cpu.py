"""The compiled entropy coder under `_set_coder_cpu.py`: a stack of 32-bit words with a 63-bit state (rANS).

`stack[0]` is the state x, 2**31 <= x < 2**63; `stack[1]` the number of words; the words follow.  Decoding pops a symbol
of probability f / 2**24, encoding pushes it back: each undoes the other exactly, so a decoder may push as well.  That
is how the order of a set costs nothing: the encoder lets the bits already written choose which member comes next, and
the decoder, which sees the choice, writes these bits back.  A pop from an empty stack reads zeros, which the decoder
finds as zeros at its end.

Everything is int64 (below 2**63 no operation wraps), so that the same functions run as plain Python too.
"""

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from numba import njit

PRECISION = 24  # bits of a probability
STATIC = 15  # bits of a probability in a static table
LOW, WORD = 1 << 31, 32
_MASK, _WORD_MASK, _STATIC_MASK = (1 << PRECISION) - 1, (1 << WORD) - 1, (1 << STATIC) - 1

inner: Callable[[Any], Any] = partial(
    njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False
)()


def stamp_of(*files: str) -> int:
    """A number that changes with the text of source files.

    numba (0.66) keeps compiled code until the file of the outer function changes, whatever the others that it calls
    do; a number that the function closes over is part of its key.
    """
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))


@inner
def push(stack: Any, low: Any, f: Any, bits: Any) -> None:
    """A symbol that covers [low, low + f) of 2**bits; f < 2**bits."""
    x = stack[0]
    if x >= f << (63 - bits) and stack[1] + 2 < stack.shape[0]:  # damaged bytes may ask for more than there is
        stack[2 + stack[1]] = x & _WORD_MASK
        stack[1] += 1
        x >>= WORD
    stack[0] = ((x // f) << bits) + x % f + low


@inner
def drop(stack: Any, low: Any, f: Any, bits: Any) -> None:
    """Take the symbol that covers [low, low + f) off the state."""
    x = stack[0]
    x = f * (x >> bits) + (x & ((1 << bits) - 1)) - low
    if x < LOW:
        word = 0
        if stack[1] > 0:
            stack[1] -= 1
            word = stack[2 + stack[1]]
        x = x << WORD | word
    stack[0] = x


@inner
def push_share(stack: Any, low: Any, f: Any, total: Any) -> None:
    """A symbol that covers [low, low + f) of `total` <= 2**24, scaled to 2**24 as `peek_share` undoes."""
    if f < total:
        first = (low << PRECISION) // total
        push(stack, first, ((low + f) << PRECISION) // total - first, PRECISION)


@inner
def peek_share(stack: Any, total: Any) -> Any:
    """The point of [0, total) that the state shows."""
    return (((stack[0] & _MASK) + 1) * total - 1) >> PRECISION


@inner
def drop_share(stack: Any, low: Any, f: Any, total: Any) -> None:
    """Take off the symbol that covers [low, low + f) of `total`."""
    if f < total:
        first = (low << PRECISION) // total
        drop(stack, first, ((low + f) << PRECISION) // total - first, PRECISION)


@inner
def push_uniform(stack: Any, value: Any, total: Any) -> None:
    """A value of [0, total), all equally likely."""
    push_share(stack, value, 1, total)


@inner
def pop_uniform(stack: Any, total: Any) -> Any:
    """A value of [0, total)."""
    value = peek_share(stack, total) if total > 1 else 0
    drop_share(stack, value, 1, total)
    return value


@inner
def push_static(stack: Any, cumulative: Any, context: Any, symbol: Any) -> None:
    """A symbol of a table of cumulative frequencies with a total of 2**15."""
    low = np.int64(cumulative[context, symbol])
    push(stack, low, np.int64(cumulative[context, symbol + 1]) - low, STATIC)


@inner
def pop_static(stack: Any, cumulative: Any, context: Any) -> Any:
    """A symbol of a table of cumulative frequencies with a total of 2**15."""
    point = stack[0] & _STATIC_MASK
    low, high = 0, cumulative.shape[1] - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if np.int64(cumulative[context, middle]) <= point:
            low = middle
        else:
            high = middle
    first = np.int64(cumulative[context, low])
    drop(stack, first, np.int64(cumulative[context, low + 1]) - first, STATIC)
    return low


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
def push_number(stack: Any, cumulative: Any, counts: Any, context: Any, value: Any) -> None:
    """A number >= 0, its symbol by a static table, its rest uniform."""
    symbol, rest, n_rests = number_symbol(value)
    push_uniform(stack, rest, n_rests)
    push_static(stack, cumulative, context, symbol)
    counts[context, symbol] += 1


@inner
def pop_number(stack: Any, cumulative: Any, context: Any) -> Any:
    """A number >= 0 below 2**20."""
    symbol = pop_static(stack, cumulative, context)
    if symbol < 32:
        return symbol
    n, half = (symbol - 32) >> 1, symbol & 1
    return ((2 + half) << (n + 4)) + pop_uniform(stack, 1 << (n + 4))
