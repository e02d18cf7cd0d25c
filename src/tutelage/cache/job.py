"""What is to be labelled, who is asked, and how the answers of a forward pass are taken apart by row.

Shape legend: N trained positions, R rows, D hidden size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tutelage.cache.codec import Positions
from tutelage.cache.manifest import Asked
from tutelage.cache.rows import RowSet
from tutelage.types import Batch, DenseTargets

Ints = npt.NDArray[np.int64]
_CPU_TOKENS, _ACCELERATOR_TOKENS = 2_048, 16_384  # of one forward pass


def windows_of_pass(max_length: int, *, device: str) -> int:
    """Windows of `max_length` tokens that one forward pass takes."""
    tokens = _CPU_TOKENS if device == "cpu" else _ACCELERATOR_TOKENS
    return max(1, tokens // max_length)


class Teacher(Protocol):
    """Who is asked: hidden states and head at a batch's trained positions."""

    def targets(self, batch: Batch) -> DenseTargets:
        """Hidden states [N, D] and the head; the same for the same batch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass: whole rows (their places in the row set), and the teacher's answer at their positions."""

    places_R: Ints
    positions: Positions  # of the first draw
    targets: DenseTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be written; `windows` of a forward pass are part of what makes two caches the same bytes."""

    rows: RowSet
    asked: Asked
    teacher: Teacher
    windows: int
    fingerprint: str
    pad_id: int
    packed: bool = True  # several rows in a window
    probe: bool = True  # keep some positions in full, to measure the codec's error against
    shard_positions: int | None = None  # None: a share of the data
    head: bool = True  # store the head beside the probe: not where the held-out rows' cache has it already

    def passes(self, rows: RowSet, *, wanted: Callable[[], bool] = lambda: True) -> Iterator[Pass]:
        """The forward passes over some of the rows: the same batches for the same rows, whoever asks.

        `wanted` is called once for each of them, and those for which it says no are left out.
        """
        counts_R = rows.n_trained
        for places_R, item in rows.batches(
            max_length=self.asked.max_length,
            windows=self.windows,
            fingerprint=self.fingerprint,
            pad_id=self.pad_id,
            packed=self.packed,
        ):
            if not wanted():
                continue
            current_ids_N, next_ids_N = ids_of(item.batch)
            positions = Positions(
                current_ids_N=current_ids_N,
                next_ids_N=next_ids_N,
                counts_R=counts_R[places_R],
                seeds_R=rows.take(places_R).seeds(draw=0, teacher=self.asked.teacher.weights),
            )
            yield Pass(places_R=places_R, positions=positions, targets=self.teacher.targets(item.batch))


def ids_of(batch: Batch) -> tuple[Ints, Ints]:
    """(token at each trained position, true next token), int64 on the CPU."""
    view = batch.view
    current_ids_N = view.ids_BT.reshape(-1)[view.index_N]
    return current_ids_N.cpu().numpy().astype(np.int64), view.next_ids_N.cpu().numpy().astype(np.int64)
