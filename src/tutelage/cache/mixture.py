"""Stored targets of several teachers, averaged in probability: a sparse distribution a position.

Shape legend: N positions, M entries of all positions, V vocabulary, K kept ids of a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.types import CachedTargets, SampledTargets, TopKTargets

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """N distributions, the entries of each by id; `tail_N` is the mass that no entry has."""

    ids_M: Ints
    p_M: Floats
    offsets: Ints
    tail_N: Floats
    next_logp_N: Floats  # log of the averaged probability of the true next token, as the witnesses have it

    def __len__(self) -> int:
        return len(self.tail_N)

    @property
    def position_of_entries(self) -> Ints:
        """The position of each entry, shape [M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def mixed(
    parts: Sequence[CachedTargets], *, weights: Sequence[float], next_logp: Sequence[Floats], n_vocabulary: int
) -> Mixture:
    """The weighted average of the parts, position by position; weights sum to 1.

    An id that one part kept and another did not has the first one's share alone: what the second says about it is in
    its tail (top-k), or 0 in this draw (sample), so the average of samples is as unbiased as they are.
    """
    sparse = [_entries(part) for part in parts]
    position_M = np.concatenate([one[0] for one in sparse])
    ids_M = np.concatenate([one[1] for one in sparse])
    p_M = np.concatenate([one[2] * weight for one, weight in zip(sparse, weights, strict=True)])
    tail_N = np.sum([one[3] * weight for one, weight in zip(sparse, weights, strict=True)], axis=0)
    place_U, index_M = np.unique(position_M * n_vocabulary + ids_M, return_inverse=True)
    p_U = np.bincount(index_M, weights=p_M, minlength=len(place_U))
    counts_N = np.bincount(place_U // n_vocabulary, minlength=len(tail_N))
    total_N = np.bincount(place_U // n_vocabulary, weights=p_U, minlength=len(tail_N)) + tail_N
    return Mixture(
        ids_M=place_U % n_vocabulary,
        p_M=p_U / np.repeat(total_N, counts_N),  # the parts are float32: their sums are 1 to 1e-7
        offsets=np.concatenate([[0], np.cumsum(counts_N)]),
        tail_N=tail_N / total_N,
        next_logp_N=np.logaddexp.reduce([logp + np.log(w) for logp, w in zip(next_logp, weights, strict=True)]),
    )


def joined(parts: Sequence[Mixture]) -> Mixture:
    """Mixtures one after the other."""
    counts_N = np.concatenate([np.diff(part.offsets) for part in parts])
    return Mixture(
        ids_M=np.concatenate([part.ids_M for part in parts]),
        p_M=np.concatenate([part.p_M for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(counts_N)]),
        tail_N=np.concatenate([part.tail_N for part in parts]),
        next_logp_N=np.concatenate([part.next_logp_N for part in parts]),
    )


def padded(mixture: Mixture, place: slice) -> tuple[Tensor, Tensor]:
    """Ids and probabilities [C, K] of some positions, filled with id 0 and probability 0 at the end."""
    counts_C = np.diff(mixture.offsets[place.start : place.stop + 1])
    entries = slice(int(mixture.offsets[place.start]), int(mixture.offsets[place.stop]))
    used_CK = np.arange(max(1, counts_C.max(initial=1))) < counts_C[:, None]
    ids_CK, p_CK = np.zeros(used_CK.shape, np.int64), np.zeros(used_CK.shape)
    ids_CK[used_CK], p_CK[used_CK] = mixture.ids_M[entries], mixture.p_M[entries]
    return torch.from_numpy(ids_CK), torch.from_numpy(p_CK)


def _entries(part: CachedTargets) -> tuple[Ints, Ints, Floats, Floats]:
    """(position, id, probability) of each entry, and the mass of none."""
    if isinstance(part, SampledTargets):
        counts_N = part.offsets.diff().numpy()
        position_M = np.repeat(np.arange(len(counts_N)), counts_N)
        return position_M, part.ids_M.numpy(), part.weights_M.double().numpy(), np.zeros(len(counts_N))
    assert isinstance(part, TopKTargets), "merge has refused the others"
    n, k = part.ids_NK.shape
    p_M = part.logp_NK.double().exp().reshape(-1).numpy()
    tail_N = part.tail_logp_N.double().exp().numpy()
    return np.repeat(np.arange(n), k), part.ids_NK.reshape(-1).numpy(), p_M, tail_N
