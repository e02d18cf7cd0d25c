"""The held-out rows of a merged cache: those of every teacher, read together and averaged in probability.

Their hidden states live in spaces of their own and cannot be averaged; their distributions can, when they are read.

Shape legend: N trained positions, C positions of a chunk, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.cache.manifest import Manifest
from tutelage.cache.reader import TeacherCache
from tutelage.types import CachedTargets, DenseTargets, LogitTargets

Ints = npt.NDArray[np.int64]


class HeldOut(Protocol):
    """Held-out rows with whole distributions: of one teacher, or of several."""

    @property
    def manifest(self) -> Manifest:
        """Who was asked."""
        ...

    def has(self, keys_R: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which of the keys [R, 32] are here."""
        ...

    def has_all(self, keys: Sequence[str]) -> bool:
        """Whether every one of the keys (hexadecimal) is here."""
        ...

    def targets(
        self, keys: Sequence[bytes], *, current_ids_N: Ints, next_ids_N: Ints, draws: Sequence[int]
    ) -> CachedTargets:
        """As `TeacherCache.targets`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutEnsemble:
    """Several teachers' held-out rows as one; `manifest` is that of the merged cache."""

    manifest: Manifest
    members: tuple[TeacherCache, ...]
    weights: tuple[float, ...]

    def has(self, keys_R: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which of the keys [R, 32] every member has."""
        everywhere_R: npt.NDArray[np.bool_] = np.logical_and.reduce([member.has(keys_R) for member in self.members])
        return everywhere_R

    def has_all(self, keys: Sequence[str]) -> bool:
        """Whether every member has every one of the keys (hexadecimal)."""
        return all(member.has_all(keys) for member in self.members)

    @torch.no_grad()
    def targets(
        self, keys: Sequence[bytes], *, current_ids_N: Ints, next_ids_N: Ints, draws: Sequence[int]
    ) -> LogitTargets:
        """Log-probabilities [N, V] of the average, whole: for a batch, never for all rows."""
        mean_NV = torch.empty(0)
        for member, weight in zip(self.members, self.weights, strict=True):
            own = member.targets(keys, current_ids_N=current_ids_N, next_ids_N=next_ids_N, draws=draws)
            assert isinstance(own, DenseTargets), "held-out rows are stored with the hidden codec"
            for place in chunks_of(len(next_ids_N)):
                logp_CV = log_probabilities(own.hidden_ND[place], head=own.head) + math.log(weight)
                if not mean_NV.numel():
                    mean_NV = logp_CV.new_full((len(next_ids_N), logp_CV.shape[1]), -math.inf)
                mean_NV[place] = torch.logaddexp(mean_NV[place], logp_CV.to(mean_NV))
        return LogitTargets(logits_NV=mean_NV)


def held_out_of(cache: TeacherCache) -> HeldOut | None:
    """The held-out rows beside a cache, those of a merged one read together; None where none were labelled."""
    members = cache.manifest.members
    if not members or not all(member.held_out for member in members):
        return cache.held_out
    return HeldOutEnsemble(
        manifest=cache.manifest,
        members=tuple(TeacherCache(cache.folder / member.held_out) for member in members),
        weights=tuple(member.weight for member in members),
    )
