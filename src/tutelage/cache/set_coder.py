"""Rows of weighted sets to bytes and back: the tables as the compiled coder wants them, and the seal of a row.

A row, little-endian; a row without positions has no bytes:

    uint16      CRC-32 of the words, its halves xored: cut and flipped bytes are seen
    uint32 * n  the words of the stack from its bottom, then the two halves of the state

The state starts from a hash of the row's tokens.  Decoding ends with that state and an empty stack, or the row was made
for other tokens: those it is decoded with are the context of every symbol.

Shape legend: n positions and m entries of one row, V vocabulary.
"""

import threading
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage.cache import _row_coder_cpu as compiled
from tutelage.cache._coder_cpu import LOW, WORD
from tutelage.cache._set_coder_cpu import Model, Row, Scratch, scratch
from tutelage.cache.codec import Mismatch

Ints = npt.NDArray[np.int64]
_SEAL_BYTES = 2
_LAST_CLOCK = 1 << 35  # of the positions that a thread reads: a state has 36 bits for it
_local = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """Weighted sets at the positions of a row or of several: what a sampler makes and the coder keeps.

    The entries of position n are `offsets[n]:offsets[n + 1]`: its first head (the largest), the other heads by id, the
    picks by id.  `units` are weights in grains.  `witness_N` is 0 ... 255 where the next token is no head, else -1.
    """

    ids_M: Ints
    units_M: Ints
    offsets: Ints
    n_heads_N: Ints
    witness_N: Ints


def memory(model: Model) -> Scratch:
    """This thread's scratch memory for a model; clean between rows."""
    if getattr(_local, "model", None) is not model or _local.scratch.clock[0] > _LAST_CLOCK:
        _local.model, _local.scratch = model, scratch(model.class_V, int(model.m))
    held: Scratch = _local.scratch
    return held


def encode_row(model: Model, sets: Sets, *, current_ids_n: Ints, next_ids_n: Ints) -> bytes:
    """The bytes of one row."""
    n = len(next_ids_n)
    if n == 0:
        return b""
    words = np.zeros(64 + n * compiled.WORDS + len(sets.ids_M) * compiled.WORDS_OF_MEMBER, np.uint32)
    row = Row(
        current=current_ids_n, upcoming=next_ids_n, same=np.empty(n, np.int64), heads=sets.n_heads_N,
        offsets=sets.offsets, ids=sets.ids_M, units=sets.units_M, witness=sets.witness_N,
    )  # fmt: skip
    state = _first_state(current_ids_n, next_ids_n)
    state, top = compiled.encode_row(model, state, words, memory(model), row, np.empty(len(sets.ids_M), np.int64))
    said = np.append(words[1 : 1 + top], np.array([state & 0xFFFFFFFF, state >> 32], np.uint32)).astype("<u4").tobytes()
    return _seal(said) + said


def decode_row(
    model: Model, data: npt.NDArray[np.uint8], *, current_ids_n: Ints, next_ids_n: Ints, row_number: int
) -> Sets:
    """The sets of one row; `Mismatch` for bytes that are damaged or belong to other tokens."""
    n = len(next_ids_n)
    if n == 0 or len(data) < _SEAL_BYTES + 8 or len(data) % 4 != _SEAL_BYTES:
        if n == len(data) == 0:
            nothing = np.zeros(0, np.int64)
            return Sets(
                ids_M=nothing, units_M=nothing, offsets=np.zeros(1, np.int64), n_heads_N=nothing, witness_N=nothing
            )
        raise Mismatch(row_number, f"{len(data)} bytes cannot hold its {n} positions", damaged=True)
    raw = np.ascontiguousarray(data).tobytes()
    if _seal(raw[_SEAL_BYTES:]) != raw[:_SEAL_BYTES]:
        raise Mismatch(row_number, f"the checksum of its {len(data)} bytes is wrong", damaged=True)
    said = np.frombuffer(raw, "<u4", offset=_SEAL_BYTES)
    words = np.zeros(len(said) + 1024 + n + 2 * compiled.room(model), np.uint32)
    words[1 : len(said) - 1], state = said[:-2], int(said[-1]) << WORD | int(said[-2])
    ids, units = _room_for(n * (int(model.m) + 1))
    row = Row(
        current=current_ids_n, upcoming=next_ids_n, same=np.empty(n, np.int64), heads=np.empty(n, np.int64),
        offsets=np.empty(n + 1, np.int64), ids=ids, units=units, witness=np.empty(n, np.int64),
    )  # fmt: skip
    done, top = -1, 0
    if LOW <= state < 1 << 63:
        done, state, top = compiled.decode_row(model, state, len(said) - 2, words, memory(model), row)
    if done < n or state != _first_state(current_ids_n, next_ids_n) or words[1 : 1 + top].any():
        raise Mismatch(row_number, f"was made for other tokens (seen at position {max(done, 0)} of {n})")
    end = row.offsets[n]
    return Sets(
        ids_M=ids[:end].copy(), units_M=units[:end].copy(), offsets=row.offsets, n_heads_N=row.heads,
        witness_N=row.witness,
    )  # fmt: skip


def _room_for(n_entries: int) -> tuple[Ints, Ints]:
    """This thread's memory for the most entries that a row can have: pages that are new cost more than decoding."""
    held: Ints | None = getattr(_local, "entries", None)
    if held is None or held.shape[1] < n_entries:
        held = _local.entries = np.empty((2, n_entries), np.int64)
    return held[0], held[1]


def _seal(words: bytes) -> bytes:
    crc = zlib.crc32(words)
    return ((crc ^ crc >> 16) & 0xFFFF).to_bytes(2, "little")


def _first_state(current_ids_n: Ints, next_ids_n: Ints) -> int:
    """2**31 + 31 bits of a hash of the row's tokens."""
    crc = zlib.crc32(np.ascontiguousarray(current_ids_n, "<i8").tobytes())
    crc = zlib.crc32(np.ascontiguousarray(next_ids_n, "<i8").tobytes(), crc)
    return LOW | (crc & (LOW - 1))
