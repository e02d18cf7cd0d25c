"""The rows that a cache is to hold, by content: where each stands in the stores, sorted by key, each key once.

Shape legend: R rows.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage.data.loader import EvaluationBatch, evaluation_batches
from tutelage.data.store import Store

Ints = npt.NDArray[np.int64]
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSet:
    """Rows of one or several stores; `sources_R` says which store, `numbers_R` which of its rows."""

    stores: tuple[Store, ...]
    sources_R: Ints
    numbers_R: Ints
    keys_R: npt.NDArray[np.uint8]  # [R, 32]

    @classmethod
    def of(cls, parts: Sequence[tuple[Store, Ints]]) -> "RowSet":
        """The rows of several stores; rows of equal content become one."""
        sources = np.concatenate([np.full(len(rows), n) for n, (_, rows) in enumerate(parts)]).astype(np.int64)
        numbers = np.concatenate([np.asarray(rows) for _, rows in parts]).astype(np.int64)
        keys = np.concatenate([store.keys[rows].reshape(-1, KEY_BYTES) for store, rows in parts])
        _, first = np.unique(as_scalars(keys), return_index=True)
        return cls(
            stores=tuple(store for store, _ in parts),
            sources_R=sources[first],
            numbers_R=numbers[first],
            keys_R=np.ascontiguousarray(keys[first]),
        )

    def __len__(self) -> int:
        return len(self.numbers_R)

    def take(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> "RowSet":
        """Some of the rows, in the order of their keys."""
        return RowSet(
            stores=self.stores,
            sources_R=self.sources_R[chosen],
            numbers_R=self.numbers_R[chosen],
            keys_R=self.keys_R[chosen],
        )

    @property
    def lengths(self) -> Ints:
        """Tokens of each row."""
        return self._of_store("lengths")

    @property
    def n_trained(self) -> Ints:
        """Trained positions of each row."""
        return self._of_store("n_trained")

    def _of_store(self, column: str) -> Ints:
        values = np.zeros(len(self), dtype=np.int64)
        for n, store in enumerate(self.stores):
            own = self.sources_R == n
            values[own] = getattr(store, column)[self.numbers_R[own]]
        return values

    def seeds(self, *, draw: int, teacher: str) -> npt.NDArray[np.uint64]:
        """The seed of one draw of each row."""
        return draw_seeds((key.tobytes() for key in self.keys_R), [draw] * len(self), teacher=teacher)

    def sha256(self) -> str:
        """Of the keys: two row sets with the same answer hold the same content."""
        return hashlib.sha256(self.keys_R.tobytes()).hexdigest()

    def batches(
        self, *, max_length: int, windows: int, fingerprint: str, pad_id: int, packed: bool = True
    ) -> Iterator[tuple[Ints, EvaluationBatch]]:
        """(places of the batch's rows in this set, batch): every row once, the same batches for the same rows."""
        for n, store in enumerate(self.stores):
            places = np.flatnonzero(self.sources_R == n)
            place_of_key = {self.keys_R[place].tobytes().hex(): int(place) for place in places}
            for item in evaluation_batches(
                store,
                rows=self.numbers_R[places],
                max_length=max_length,
                micro_batch=windows,
                fingerprint=fingerprint,
                pad_id=pad_id,
                packed=packed,
            ):
                yield np.array([place_of_key[key] for key in item.batch.row_keys], dtype=np.int64), item


def as_scalars(keys_R: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """Keys [R, 32] as one comparable value each, ordered as their bytes are."""
    scalars: npt.NDArray[np.void] = np.ascontiguousarray(keys_R).view(f"V{KEY_BYTES}").reshape(-1)
    return scalars


def draw_seeds(keys: Iterable[bytes], draws: Iterable[int], *, teacher: str) -> npt.NDArray[np.uint64]:
    """The seed of a draw of each row: a function of the row's content, the draw's number and the teacher alone.

    Of the teacher too, so that the draws of two teachers are independent and their errors average out in an ensemble.
    """
    digests = (
        hashlib.sha256(f"tutelage cache draw {draw} of {teacher}".encode() + key).digest()
        for key, draw in zip(keys, draws, strict=True)
    )
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)
