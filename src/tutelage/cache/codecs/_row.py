"""What the codecs of fixed width share: rows that are sealed, the alignment witness, the teacher's numbers row by row.

A row is the codec's payload and six bytes more, little-endian:

    uint16   hash of the row's next tokens: a row that belongs to other tokens is seen (65,535 times of 65,536)
    uint32   CRC-32 of everything before it: cut and flipped bytes are seen

The witness of a position is one byte, round(255 * sqrt(-log p(next) / 32)): 32 nats and less share the last code.  It
gives the teacher's loss to 0.06 nats a position at 2 nats, and finer where the teacher is sure.

Shape legend: N trained positions of several rows, R rows, C positions of a chunk, V vocabulary, D hidden size.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache.codec import Mismatch, Positions, chunks_of, log_probabilities
from tutelage.errors import NumericError
from tutelage.types import Head

Floats: TypeAlias = npt.NDArray[np.floating[Any]]  # float16 as stored, float64 as computed

SEAL_BYTES = 6
_HASH = slice(-6, -4)
_CRC = slice(-4, None)
_LEAST_LOGP = -32.0


def sealed(payload: bytes, next_ids_n: npt.NDArray[np.int64]) -> bytes:
    """The bytes of one row."""
    body = payload + _token_hash(next_ids_n).to_bytes(2, "little")
    return body + zlib.crc32(body).to_bytes(4, "little")


def opened(
    rows: Sequence[npt.NDArray[np.uint8]], *, positions: Positions, payload_bytes: Callable[[int], int]
) -> list[npt.NDArray[np.uint8]]:
    """The payloads of the rows; `Mismatch` for bytes that are damaged or belong to other tokens."""
    payloads = []
    for row, (data, place) in enumerate(zip(rows, slices_of(positions), strict=True)):
        body = np.ascontiguousarray(data)
        crc = int.from_bytes(body[_CRC].tobytes(), "little")
        if len(body) < SEAL_BYTES or zlib.crc32(body[: _CRC.start].data) != crc:
            raise Mismatch(row, f"the checksum of its {len(body)} bytes is wrong", damaged=True)
        next_ids_n = positions.next_ids_N[place]
        expected = payload_bytes(len(next_ids_n))
        if len(body) - SEAL_BYTES != expected:
            raise Mismatch(row, f"holds {len(body) - SEAL_BYTES} bytes, its {len(next_ids_n)} tokens need {expected}")
        if int.from_bytes(body[_HASH].tobytes(), "little") != _token_hash(next_ids_n):
            raise Mismatch(row, "was made for other tokens")
        payloads.append(body[: _HASH.start])
    return payloads


def _token_hash(ids_n: npt.NDArray[np.int64]) -> int:
    crc = zlib.crc32(np.ascontiguousarray(ids_n, dtype="<i8").tobytes())
    return (crc ^ crc >> 16) & 0xFFFF


def slices_of(positions: Positions) -> list[slice]:
    """Where the positions of each row lie among the N."""
    ends_R = np.cumsum(positions.counts_R)
    return [slice(int(end - n), int(end)) for end, n in zip(ends_R, positions.counts_R, strict=True)]


def row_of(position: int, *, positions: Positions) -> int:
    """The row that one of the N positions belongs to."""
    return int(np.searchsorted(np.cumsum(positions.counts_R), position, side="right"))


def distributions(
    hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities [C, V] of a chunk and its place among the N, for all chunks.

    No chunk holds positions of two rows and each begins in memory of its own: matrix products round differently for
    other shapes and alignments, and a row's bytes may not depend on its neighbours.
    """
    for row in slices_of(positions):
        for part in chunks_of(row.stop - row.start):
            place = slice(row.start + part.start, row.start + part.stop)
            logp_CV = log_probabilities(hidden_ND[place].clone(), head=head, temperature=temperature)
            if logp_CV[:, 0].isnan().any():
                raise NumericError("NONFINITE", "the teacher gives NaN or infinite logits; get the model again")
            yield place, logp_CV


def next_logp(logp_CV: Tensor, *, positions: Positions, place: slice) -> npt.NDArray[np.float64]:
    """The teacher's log-probability of each true next token of a chunk, float64."""
    next_ids_C1 = torch.from_numpy(positions.next_ids_N[place]).to(logp_CV.device)[:, None]
    found_C: npt.NDArray[np.float64] = logp_CV.gather(-1, next_ids_C1)[:, 0].double().cpu().numpy()
    return found_C


def witness_codes(logp_N: Floats) -> npt.NDArray[np.uint8]:
    """One byte for each log-probability (nats); falling with it."""
    share_N = np.clip(logp_N.astype(np.float64), _LEAST_LOGP, 0.0) / _LEAST_LOGP
    return np.rint(255.0 * np.sqrt(share_N)).astype(np.uint8)


def witness_logp(codes_N: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The log-probabilities (nats) that the codes stand for."""
    return _LEAST_LOGP * (codes_N.astype(np.float64) / 255.0) ** 2


def id_bits(n_vocabulary: int) -> int:
    """Bits that every id below `n_vocabulary` fits in, at least one."""
    return max(1, (n_vocabulary - 1).bit_length())


def packed_bytes(n_ids: int, *, bits: int) -> int:
    """Bytes of `n_ids` ids of `bits` bits, one after the other."""
    return math.ceil(n_ids * bits / 8)


def packed(ids_M: npt.NDArray[np.int64], *, bits: int) -> bytes:
    """Ids as one stream of bits, the lowest bit of each first; the last byte is filled with zeros."""
    bits_M = (ids_M[:, None] >> np.arange(bits)) & 1
    return np.packbits(bits_M.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpacked(data: npt.NDArray[np.uint8], n_ids: int, *, bits: int) -> npt.NDArray[np.int64]:
    """The ids of `packed`, int64: each is cut out of the eight bytes where it begins."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    starts_M = np.arange(n_ids, dtype=np.int64) * bits
    first_M, shift_M = starts_M >> 3, starts_M & 7
    value_M = np.zeros(n_ids, np.int64)
    for byte in range((bits + 14) // 8):
        value_M |= padded[first_M + byte].astype(np.int64) << (8 * byte)
    ids_M: npt.NDArray[np.int64] = (value_M >> shift_M) & ((1 << bits) - 1)
    return ids_M
