"""A rival's targets: draws with replacement from the teacher's distribution (Sparse Logit Sampling, arXiv:2503.16870).

Shape legend: N trained positions, n of a chunk, V vocabulary, R draws, M entries.
"""

import torch

from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.randomness import derive_seed
from tutelage.teachers.live import LiveTeacher
from tutelage.types import Batch, SampledTargets


class DrawnTeacher:
    """What a cache of `n_draws` draws with replacement would hold: each id weighs its count / n_draws."""

    def __init__(self, teacher: LiveTeacher, *, n_draws: int, seed: int) -> None:
        self._teacher, self._n_draws, self._seed = teacher, n_draws, seed

    @torch.no_grad()
    def targets(self, batch: Batch) -> SampledTargets:
        """A sample for each trained position, seeded by the rows of the batch."""
        whole = self._teacher.targets(batch)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "draws", *batch.row_keys))
        ids, weights, lengths = [], [], []
        for chunk in chunks_of(len(whole.hidden_ND)):
            p_nV = log_probabilities(whole.hidden_ND[chunk], head=whole.head).exp().cpu()
            drawn_nR = torch.multinomial(p_nV, self._n_draws, replacement=True, generator=generator)
            keys = torch.arange(len(drawn_nR))[:, None] * p_nV.shape[1] + drawn_nR
            unique_M, counts_M = keys.reshape(-1).unique(return_counts=True)
            ids.append(unique_M % p_nV.shape[1])
            weights.append(counts_M / self._n_draws)
            lengths.append(torch.bincount(unique_M // p_nV.shape[1], minlength=len(drawn_nR)))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
        return SampledTargets(ids_M=torch.cat(ids), weights_M=torch.cat(weights), offsets=offsets, temperature=1.0)
