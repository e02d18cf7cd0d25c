"""The tokens of a cache's rows, as far as the stores that it was labelled from are still on this machine.

A cache holds no tokens: its rows are known by the hash of theirs, and most codecs need them to decode.

Shape legend: N trained positions, R rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tutelage.cache.manifest import Manifest
from tutelage.cache.rows import RowSet, as_scalars
from tutelage.data import store
from tutelage.home import home

Ints = npt.NDArray[np.int64]
_GROUP_POSITIONS = 4_096  # about so many are decoded at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Whole rows with their tokens: what `TeacherCache.targets` asks for."""

    keys: tuple[bytes, ...]
    counts_R: Ints
    current_ids_N: Ints
    next_ids_N: Ints


def stored_rows(manifests: Sequence[Manifest]) -> tuple[RowSet, ...]:
    """All rows of the stores that caches were labelled from, a set for each store that is still there, verified."""
    names = dict.fromkeys(name for manifest in manifests for name in manifest.stores)
    folders = [home() / "data" / name for name in names if name == (home() / "data" / name).name]
    opened = [store.open_store(folder) for folder in folders if (folder / store.MANIFEST).is_file()]
    return tuple(RowSet.of([(one, np.arange(len(one)))]) for one in opened)


def find(stored: Sequence[RowSet], keys_R: npt.NDArray[np.uint8]) -> RowSet | None:
    """Those of the rows [R, 32] whose tokens are known, sorted by key; None when none are.

    All come from one store if one has them all: forward passes are then made up as when they were labelled.
    """
    chosen = [own.take(np.isin(as_scalars(own.keys_R), as_scalars(keys_R))) for own in stored]
    whole = [rows for rows in chosen if len(rows) == len(keys_R)]
    if whole:
        return whole[0]
    some = [(rows.stores[0], rows.numbers_R) for rows in chosen if len(rows)]
    return RowSet.of(some) if some else None


def tokens_of(rows: RowSet) -> Tokens:
    """The ids at the trained positions of the rows, and those that follow."""
    current, following = [], []
    for source, number in zip(rows.sources_R.tolist(), rows.numbers_R.tolist(), strict=True):
        row = rows.stores[source].row(number)
        trained = np.flatnonzero(row.loss_mask[1:])
        current.append(row.ids[trained])
        following.append(row.ids[trained + 1])
    return Tokens(
        keys=tuple(key.tobytes() for key in rows.keys_R),
        counts_R=rows.n_trained,
        current_ids_N=_joined(current),
        next_ids_N=_joined(following),
    )


def groups(rows: RowSet) -> Iterator[RowSet]:
    """The rows a few at a time, whole rows, about 4,096 positions."""
    n_R = rows.n_trained
    group_R = (np.cumsum(n_R) - n_R) // _GROUP_POSITIONS
    edges = [0, *(np.flatnonzero(np.diff(group_R)) + 1).tolist(), len(rows)]
    for begin, end in pairwise(edges):
        if end > begin:
            yield rows.take(slice(begin, end))


def _joined(parts: Sequence[npt.NDArray[np.uint32]]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
