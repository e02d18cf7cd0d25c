"""`teacher: {cache: PATH}`: the teacher was asked once, its answers are on disk.

Shape legend: N trained positions.
"""

from dataclasses import dataclass

import torch

from tutelage.cache.ensemble import HeldOut, held_out_of
from tutelage.cache.job import ids_of
from tutelage.cache.reader import TeacherCache
from tutelage.types import Batch, DenseTargets, LogitTargets, Targets


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The teacher on held-out rows, as its cache has it: whole distributions, no weights."""

    cache: HeldOut
    device: str

    @property
    def n_parameters(self) -> int:
        """Parameters of the model that was asked."""
        return self.cache.manifest.asked.teacher.parameters

    @property
    def parameter_bytes(self) -> int:
        """Their bytes as it ran."""
        return self.cache.manifest.asked.teacher.parameter_bytes

    def targets(self, batch: Batch) -> DenseTargets | LogitTargets:
        """Whole distributions at the batch's trained positions; the rows must be held-out rows of the cache."""
        targets = _read(self.cache, batch)
        assert isinstance(targets, DenseTargets | LogitTargets), "held-out rows are stored whole"
        return targets.to(self.device)


class CachedTeacher:
    """What a live teacher would have said, from its cache: sparse for training rows, whole for held-out rows."""

    def __init__(self, cache: TeacherCache, *, device: torch.device | str) -> None:
        self.cache = cache
        self._device = str(device)
        self._held_out = held_out_of(cache)

    @property
    def stored(self) -> StoredModel | None:
        """The teacher on held-out rows, None where none were labelled."""
        return StoredModel(self._held_out, self._device) if self._held_out is not None else None

    def targets(self, batch: Batch) -> Targets:
        """Targets at the batch's trained positions, on the device.

        Of several draws a row is read from the one of its epoch.  Raises IntegrityError[NO_SOFT_TARGETS] for a row
        that is neither a training row nor a held-out row of the cache, and what `TeacherCache.targets` raises.
        """
        if self.stored is not None and not self.cache.has_all(batch.row_keys) and self._are_held_out(batch):
            return self.stored.targets(batch)
        return _read(self.cache, batch).to(self._device)

    def _are_held_out(self, batch: Batch) -> bool:
        return self._held_out is not None and self._held_out.has_all(batch.row_keys)


def _read(cache: TeacherCache | HeldOut, batch: Batch) -> Targets:
    current_ids_N, next_ids_N = ids_of(batch)
    keys = [bytes.fromhex(key) for key in batch.row_keys]
    draws = batch.row_visits or (0,) * len(keys)
    return cache.targets(keys, current_ids_N=current_ids_N, next_ids_N=next_ids_N, draws=draws)
