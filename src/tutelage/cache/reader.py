"""Reading a cache: rows by content, memory-mapped, every byte verified before it is used.

Shape legend: N trained positions of a batch, R rows, n rows asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from tutelage import plugins, reading
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import CODECS, Codec, Mismatch, Positions
from tutelage.cache.manifest import Manifest, Shard, damaged, read_manifest
from tutelage.cache.rows import as_scalars, draw_seeds
from tutelage.cache.shard import Bytes, ShardFile
from tutelage.errors import IntegrityError
from tutelage.types import CachedTargets

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """Where each key is: sorted first words, and shard and row of each; 16 bytes a row of memory."""

    files: tuple[ShardFile, ...]
    words: npt.NDArray[np.uint64]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]

    @classmethod
    def of(cls, folder: Path, shards: Sequence[Shard]) -> "KeyIndex":
        """The index of all shards; their keys are verified."""
        files = tuple(ShardFile(folder, shard) for shard in shards)
        words = np.concatenate([_words(file.keys) for file in files] or [np.zeros(0, np.uint64)])
        shard = np.concatenate(
            [np.full(len(f.keys), n, np.int32) for n, f in enumerate(files)] or [np.zeros(0, np.int32)]
        )
        row = np.concatenate([np.arange(len(f.keys), dtype=np.int32) for f in files] or [np.zeros(0, np.int32)])
        order = np.argsort(words, kind="stable")
        return cls(files, words[order], shard[order], row[order])

    def find(self, key: bytes) -> tuple[int, int] | None:
        """(shard, row) of a key, None when it is not there."""
        word = np.frombuffer(key[:8], dtype=">u8").astype(np.uint64)[0]
        place = int(np.searchsorted(self.words, word))
        while place < len(self.words) and self.words[place] == word:
            shard, row = int(self.shard[place]), int(self.row[place])
            if self.files[shard].keys[row].tobytes() == key:
                return shard, row
            place += 1
        return None

    def has(self, keys_R: Keys) -> npt.NDArray[np.bool_]:
        """Which of the keys [R, 32] are there."""
        if not len(self.words):
            return np.zeros(len(keys_R), dtype=np.bool_)
        known = np.concatenate([file.keys for file in self.files])
        return np.isin(as_scalars(keys_R), as_scalars(known))


def _words(keys_R: Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys_R[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def read_tables(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The codec's tables, verified."""
    return read_tensors(folder, manifests.TABLES, manifest)


def read_tensors(folder: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    """One of the files beside the shards, verified."""
    path, expected = folder / name, manifest.files[name]
    found = reading.sha256_file(path) if path.is_file() else "missing"
    if found != expected:
        raise damaged(folder, f"{name} sha256 {found[:12]}, expected {expected[:12]}")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


class TeacherCache:
    """An open cache; rows are asked for by key, whatever batch they stand in."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ConfigError or IntegrityError when there is none, or it is unfinished, damaged or newer."""
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._index = KeyIndex.of(self.folder, self.manifest.shards)

    @cached_property
    def codec(self) -> Codec:
        """The codec's module."""
        codec: Codec = plugins.load(CODECS, self.manifest.asked.codec)
        return codec

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """The codec's tables."""
        return read_tables(self.folder, self.manifest)

    @cached_property
    def held_out(self) -> "TeacherCache | None":
        """The cache of the held-out rows beside this one."""
        folder = self.folder / manifests.HELD_OUT
        return TeacherCache(folder) if (folder / manifests.MANIFEST).is_file() else None

    @property
    def shards(self) -> tuple[ShardFile, ...]:
        """The shards, in the order of the manifest."""
        return self._index.files

    def row(self, key: bytes, *, draw: int = 0) -> Bytes:
        """One draw of a row as it is stored; IntegrityError[NO_SOFT_TARGETS] when it is not here."""
        shard, row = self._place(key, 0, 1)
        return self._index.files[shard].row(row, draw=draw)

    def has(self, keys_R: Keys) -> npt.NDArray[np.bool_]:
        """Which of the keys [R, 32] are here."""
        return self._index.has(keys_R)

    def has_all(self, keys: Sequence[str]) -> bool:
        """Whether every one of the keys (hexadecimal) is here."""
        return all(self._index.find(bytes.fromhex(key)) is not None for key in keys)

    def verify(self) -> None:
        """IntegrityError[CHECKSUM] unless every byte of every file is what the manifest says."""
        for name in self.manifest.files:
            read_tensors(self.folder, name, self.manifest)
        for file in self._index.files:
            assert len(file.keys) == file.record.n_rows
            file.verify()

    def targets(
        self, keys: Sequence[bytes], *, current_ids_N: Ints, next_ids_N: Ints, draws: Sequence[int]
    ) -> CachedTargets:
        """Targets at the trained positions of whole rows, one row after the other, as the batch has them.

        The ids are those of the batch: bytes that belong to other tokens are refused.  `draws` names a draw for each
        row, counted round where the cache has fewer.  Raises
        IntegrityError[CACHE_MISS] for a row that is not here, [CACHE_SHIFT] for targets that do not belong to these
        tokens, [CHECKSUM] for damaged bytes.
        """
        places = [self._place(key, n, len(keys)) for n, key in enumerate(keys)]
        files = self._index.files
        counts_R = np.array([files[shard].count(row) for shard, row in places], dtype=np.int64)
        if counts_R.sum() != len(next_ids_N):
            found = f"{int(counts_R.sum())} stored positions for {len(next_ids_N)} of the batch"
            raise IntegrityError("CACHE_SHIFT", f"{self.folder}: {found}; rebuild the cache: tutelage label RECIPE")
        n_draws = self.manifest.asked.draws
        of_draw = [draw % n_draws for draw in draws]
        positions = Positions(
            current_ids_N=current_ids_N,
            next_ids_N=next_ids_N,
            counts_R=counts_R,
            seeds_R=draw_seeds(keys, of_draw, teacher=self.manifest.asked.teacher.weights),
        )
        try:
            return self.codec.decode(
                [files[shard].row(row, draw=draw) for (shard, row), draw in zip(places, of_draw, strict=True)],
                positions=positions,
                n_vocabulary=self.manifest.asked.n_vocabulary,
                temperature=self.manifest.asked.temperature,
                settings=self.manifest.settings,
                tables=self.tables,
            )
        except Mismatch as error:
            raise self._mismatch(error, places) from error

    def _place(self, key: bytes, number: int, n_rows: int) -> tuple[int, int]:
        place = self._index.find(key)
        if place is None:
            raise IntegrityError(
                "NO_SOFT_TARGETS",
                f"row {number} of {n_rows} ({key.hex()[:12]}) has no targets in {self.folder}; "
                "extend it: tutelage label RECIPE",
            )
        return place

    def _mismatch(self, error: Mismatch, places: Sequence[tuple[int, int]]) -> IntegrityError:
        shard, row = places[error.row]
        where = f"{self._index.files[shard].record.name} row {row}"
        if error.damaged:
            return damaged(self.folder, f"{where}: {error.what}")
        return IntegrityError("CACHE_SHIFT", f"{self.folder}: {where}: {error.what}; rebuild it: tutelage label RECIPE")
