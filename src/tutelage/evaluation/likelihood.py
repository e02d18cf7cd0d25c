"""The log-probability of whole rows under one model: for texts that are scored by themselves, such as pairs.

Shape legend: R rows, B rows of a batch, T positions, N trained positions of a batch, C positions of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.tokenize import TokenRow
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import IGNORED, CausalLM, Head, TokenView

_BATCH_TOKENS = 4_096  # with padding
_CHUNK = 256  # positions whose logits are alive at once


@dataclass(frozen=True, slots=True)
class RowLogp:
    """Of each row the sum of the log-probabilities of its trained tokens, in nats, and how many these are."""

    logp_R: NDArray[np.float64]
    n_tokens_R: NDArray[np.int64]


@torch.no_grad()
def row_logp(
    model: CausalLM,
    rows: Sequence[TokenRow],
    *,
    n_vocabulary: int,
    progress: Callable[[int], object] = lambda n: None,
) -> RowLogp:
    """Sums over each row's trained tokens, its first token never one of them; independent of the order of the rows."""
    head = head_of(model, n_vocabulary=n_vocabulary)
    logp_R, n_tokens_R = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    for batch in _batches(rows):
        view = _view([rows[n] for n in batch])
        logp_N = _next_logp(model, view, head)
        owner_N = (view.index_N // view.ids_BT.shape[1]).numpy()
        logp_R[batch] = np.bincount(owner_N, logp_N, minlength=len(batch))
        n_tokens_R[batch] = np.bincount(owner_N, minlength=len(batch))
        progress(len(batch))
    return RowLogp(logp_R, n_tokens_R)


def _batches(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Places of rows, similar lengths together."""
    batches: list[list[int]] = []
    for n in sorted(range(len(rows)), key=lambda n: (len(rows[n].ids), n)):
        if batches and (len(batches[-1]) + 1) * len(rows[n].ids) <= _BATCH_TOKENS:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches


def _view(rows: Sequence[TokenRow]) -> TokenView:
    """Rows side by side, padded at their ends, where no trained token can see it."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids_BT, labels_BT = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = row.ids
        labels_BT[b, 1 : len(row.ids)] = np.where(row.loss_mask[1:], row.ids[1:].astype(np.int64), IGNORED)
    return TokenView.of(torch.from_numpy(ids_BT), torch.from_numpy(labels_BT))


def _next_logp(model: CausalLM, view: TokenView, head: Head) -> NDArray[np.float64]:
    """Log-probabilities [N] of the trained tokens."""
    placed = view.to(head.weight_VD.device)
    hidden_ND = trained_hidden(model, placed)
    parts: list[Tensor] = []
    for begin in range(0, len(hidden_ND), _CHUNK):
        logits_CV = head.logits(hidden_ND[begin : begin + _CHUNK])
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        next_C = placed.next_ids_N[begin : begin + _CHUNK]
        parts.append((logits_CV.gather(-1, next_C[:, None]).squeeze(-1) - logits_CV.logsumexp(-1)).double().cpu())
    logp_N: NDArray[np.float64] = torch.cat(parts).numpy() if parts else np.zeros(0)
    return logp_N
