"""One shard: the rows of a part of the data, as one safetensors file.

    keys     uint8  [R, 32]  SHA-256 of each row's ids and mask, sorted
    counts   int32  [R]      trained positions of each row
    lengths  int32  [R, S]   bytes of each row's S draws
    data     uint8  [bytes]  the rows one after the other, the draws of a row side by side, as the codec wrote them

Shape legend: R rows, S draws.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tutelage import io, reading, tensor_file
from tutelage.cache.manifest import SHARDS, Shard, damaged
from tutelage.errors import IntegrityError
from tutelage.models.safety import read_safetensors_header

Bytes = npt.NDArray[np.uint8]
_TENSORS = {("keys", "U8"), ("counts", "I32"), ("lengths", "I32"), ("data", "U8")}


def shard_name(number: int) -> str:
    """The file of the n-th shard."""
    return f"shard-{number:05d}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of one shard before they are written."""

    keys_R: Bytes  # [R, 32]
    counts_R: npt.NDArray[np.int64]
    draws: list[list[bytes]]  # a row's draws
    witness_bytes: float
    nll_nats: float


def write_shard(folder: Path, number: int, rows: Rows) -> Shard:
    """Write one shard, whole or not at all; its line of the manifest."""
    lengths_RS = np.array([[len(d) for d in row] for row in rows.draws], dtype=np.int32).reshape(len(rows.draws), -1)
    data = b"".join(d for row in rows.draws for d in row)
    tensors = {
        "keys": torch.from_numpy(np.ascontiguousarray(rows.keys_R)),
        "counts": torch.from_numpy(rows.counts_R.astype(np.int32)),
        "lengths": torch.from_numpy(lengths_RS),
        "data": torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8),
    }
    digest = io.write_pieces(folder / SHARDS / shard_name(number), tensor_file.pieces(tensors))
    return Shard(
        name=shard_name(number),
        sha256=digest.sha256,
        keys_sha256=hashlib.sha256(rows.keys_R.tobytes()).hexdigest(),
        n_rows=len(rows.draws),
        n_positions=int(rows.counts_R.sum()),
        row_bytes=len(data),
        witness_bytes=rows.witness_bytes,
        file_bytes=digest.n_bytes,
        nll_nats=rows.nll_nats,
    )


class ShardFile:
    """One shard, memory-mapped; verified as a whole before the first row is given out."""

    def __init__(self, folder: Path, record: Shard) -> None:
        self.record, self._folder = record, folder
        self._path = folder / SHARDS / record.name
        if not self._path.is_file() or self._path.stat().st_size != record.file_bytes:
            found = f"{self._path.stat().st_size} bytes" if self._path.is_file() else "missing"
            raise damaged(folder, f"{record.name} is {found}, expected {record.file_bytes} bytes")
        self._verified = False

    @cached_property
    def _tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Views of the file."""
        try:
            entries = read_safetensors_header(self._path)
        except IntegrityError as error:
            raise damaged(self._folder, f"the header of {self.record.name} is not what was written") from error
        if {(entry.name, entry.dtype) for entry in entries} != _TENSORS:
            raise damaged(self._folder, f"the header of {self.record.name} is not what was written")
        kinds = {"U8": np.uint8, "I32": np.int32}
        mapped = np.memmap(self._path, dtype=np.uint8, mode="r")
        return {e.name: mapped[e.start : e.end].view(kinds[e.dtype]).reshape(e.shape) for e in entries}

    @cached_property
    def keys(self) -> Bytes:
        """Keys [R, 32]; their checksum is verified here, the shard's when a row is read."""
        keys: Bytes = self._tensors["keys"].view(np.uint8)
        if hashlib.sha256(keys.tobytes()).hexdigest() != self.record.keys_sha256:
            raise damaged(self._folder, f"the keys of {self.record.name} do not have their checksum")
        return keys

    @cached_property
    def _index(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(trained positions of each row, where each draw of each row begins, one more at the end)."""
        self.verify()
        counts_R = self._tensors["counts"].astype(np.int64)
        lengths = self._tensors["lengths"].astype(np.int64).reshape(-1)
        return counts_R, np.concatenate([[0], np.cumsum(lengths)])

    def verify(self) -> None:
        """IntegrityError[CHECKSUM] unless every byte of the file is what the manifest says; once."""
        if self._verified:
            return
        found = reading.sha256_file(self._path)
        if found != self.record.sha256:
            raise damaged(self._folder, f"{self.record.name} sha256 {found[:12]}, expected {self.record.sha256[:12]}")
        self._verified = True

    def count(self, row: int) -> int:
        """Trained positions of a row."""
        return int(self._index[0][row])

    def row(self, row: int, *, draw: int) -> Bytes:
        """The bytes of one draw of a row: a view of the file."""
        counts_R, begins = self._index
        n_draws = (len(begins) - 1) // max(1, len(counts_R))
        here = row * n_draws + draw % n_draws
        data: Bytes = self._tensors["data"].view(np.uint8)
        return data[begins[here] : begins[here + 1]]
