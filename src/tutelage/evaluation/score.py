"""Models over held-out text, chunk by chunk: one `SequenceScore` a model and sequence, from which every metric follows.

Shape legend: N trained positions of a batch, C positions of a chunk, V vocabulary, D hidden size, R rows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import IntegrityError
from tutelage.evaluation.cells import TokenFacts, cells_of, positions_in_row
from tutelage.evaluation.positions import Columns, Product, numbers
from tutelage.evaluation.sums import N_BINS, Ints, Positions, SequenceScore, Totals
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import Batch, DenseTargets, Head, LogitTargets, MixtureTargets

__all__ = ["N_BINS", "Scored", "SequenceScore", "Stored", "score_models"]

Progress = Callable[[int], None]

Whole: TypeAlias = DenseTargets | LogitTargets | MixtureTargets


class Stored(Protocol):
    """What answers without being one model: the teacher on held-out rows from its cache, or an ensemble."""

    @property
    def n_parameters(self) -> int:
        """Parameters of the model."""

    @property
    def parameter_bytes(self) -> int:
        """Their bytes as it ran."""

    def targets(self, batch: Batch) -> Whole:
        """Whole distributions at the batch's trained positions."""


Scored: TypeAlias = nn.Module | Stored


@torch.no_grad()
def score_models(
    models: Mapping[str, Scored],
    batches: Iterable[tuple[Batch, Tensor]],
    *,
    teacher: str | None,
    n_vocabulary: int,
    chunk: int = 256,
    progress: Progress | None = None,
    tokens: TokenFacts | None = None,
) -> dict[str, list[SequenceScore]]:
    """The scores of each model, sorted by row, every model on the same positions.

    `batches` yields a batch and `row_N`, the held-out row of each trained position.  Each model runs once over a
    batch; logits live for `chunk` positions only.  `teacher` names the model that KL and agreement refer to.  Models
    run in the precision they are given in: wrap the call in `torch.autocast` for another one.  `progress` is called
    with the number of positions of each finished batch.  `tokens` says how many bytes each token stands for and how
    rare it is; without it there are no bits per byte and no slices by rarity.  Raises IntegrityError[NO_SCORED_TOKENS]
    when there is no position at all.
    """
    assert teacher is None or teacher in models, f"teacher {teacher!r} is not among {sorted(models)}"
    totals = {name: Totals() for name in models}
    buffers: dict[str, Tensor] = {}
    n_positions = 0
    for batch, row_N in batches:
        rows = row_N.cpu().numpy().astype(np.int64)
        assert len(rows) == batch.n_trained, "row_N must name the row of each trained position"
        if batch.n_trained:
            columns = _score_batch(
                models, batch, teacher=teacher, n_vocabulary=n_vocabulary, chunk=chunk, buffers=buffers
            )
            for name, found in _placed(columns, batch, rows, teacher=teacher, tokens=tokens or TokenFacts()).items():
                totals[name].add(found)
        n_positions += batch.n_trained
        if progress is not None:
            progress(batch.n_trained)
    if not n_positions:
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            "0 scored tokens in the held-out data; check data.held_out, data.train_on and data.max_length",
        )
    return {name: found.scores() for name, found in totals.items()}


def _placed(
    columns: Mapping[str, Columns], batch: Batch, row_N: Ints, *, teacher: str | None, tokens: TokenFacts
) -> dict[str, Positions]:
    """The columns of each model with what is the same for all: rows, places, cells and bytes."""
    position_N = positions_in_row(batch)
    next_ids_N = batch.view.next_ids_N.cpu().numpy()
    confidence_N = columns[teacher]["confidence"] if teacher is not None else None
    cells = cells_of(position_N, next_ids_N, tokens=tokens, confidence_N=confidence_N)
    n_bytes_N = tokens.n_bytes_V[next_ids_N] if tokens.n_bytes_V is not None else None
    return {
        name: Positions(columns=found, row_N=row_N, position_N=position_N, cells=cells, n_bytes_N=n_bytes_N)
        for name, found in columns.items()
    }


def _score_batch(
    models: Mapping[str, Scored],
    batch: Batch,
    *,
    teacher: str | None,
    n_vocabulary: int,
    chunk: int,
    buffers: dict[str, Tensor],
) -> dict[str, Columns]:
    """Every model's numbers at the trained positions of one batch; each trunk runs once, logits live for one chunk."""
    answers = {name: _answer(model, batch, n_vocabulary=n_vocabulary) for name, model in models.items()}
    next_ids = {name: batch.view.next_ids_N.to(_device(answer)) for name, answer in answers.items()}
    parts: dict[str, list[Columns]] = {name: [] for name in models}
    for start in range(0, batch.n_trained, chunk):
        here = slice(start, min(start + chunk, batch.n_trained))
        reference = _product(answers[teacher], here, buffers=buffers, use="teacher") if teacher is not None else None
        for name, answer in answers.items():
            own = reference is not None and name == teacher
            product = reference if own and reference else _product(answer, here, buffers=buffers, use="model")
            parts[name].append(numbers(product, reference, next_ids[name][here]))
    return {
        name: {column: np.concatenate([piece[column] for piece in pieces]) for column in pieces[0]}
        for name, pieces in parts.items()
    }


def _answer(model: Scored, batch: Batch, *, n_vocabulary: int) -> Whole:
    """Hidden states [N, D] at the trained positions, and the head; of several teachers logits [N, V]."""
    if not isinstance(model, nn.Module):
        return model.targets(batch)
    head = head_of(model, n_vocabulary=n_vocabulary)
    return DenseTargets(hidden_ND=trained_hidden(model, batch.view.to(head.weight_VD.device)), head=head)


def _device(answer: Whole) -> torch.device:
    if isinstance(answer, LogitTargets):
        return answer.logits_NV.device
    return (answer.parts[0] if isinstance(answer, MixtureTargets) else answer).head.weight_VD.device


def _product(answer: Whole, place: slice, *, buffers: dict[str, Tensor], use: str) -> Product:
    """Logits [C, V] of a chunk; a bare product of the head where it is not soft-capped, in a buffer of its own."""
    if isinstance(answer, LogitTargets):
        return Product(answer.logits_NV[place])
    if isinstance(answer, MixtureTargets):
        return Product(answer.logp(place))
    head, hidden_CD = answer.head, answer.hidden_ND[place]
    if head.soft_cap is not None or head.scale <= 0:
        return Product(head.logits(hidden_CD))
    return Product(head.product(hidden_CD, out_NV=_buffer(head, len(hidden_CD), buffers=buffers, use=use)), head.scale)


def _buffer(head: Head, n_rows: int, *, buffers: dict[str, Tensor], use: str) -> Tensor | None:
    """Where a product goes on a CPU: fresh memory of this size costs as much as the product itself."""
    weight_VD = head.weight_VD
    if weight_VD.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    shape, kept = (n_rows, head.n_vocabulary), buffers.get(use)
    if kept is None or kept.dtype != weight_VD.dtype or kept.shape[1] != shape[1] or kept.shape[0] < n_rows:
        kept = buffers[use] = torch.empty(shape, dtype=weight_VD.dtype)
    return kept[:n_rows]
