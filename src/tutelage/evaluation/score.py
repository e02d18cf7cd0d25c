"""Models over held-out text, chunk by chunk: one `SequenceScore` a model and sequence, from which every metric follows.

Shape legend: N trained positions of a batch, C positions of a chunk, V vocabulary, D hidden size, R sequences.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import IntegrityError
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import Batch, DenseTargets, LogitTargets, MixtureTargets

N_BINS = 15  # equal-width bins of confidence, as in Guo et al., arXiv:1706.04599

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceScore:
    """What one model did on one held-out sequence: float64 sums over its scored positions.

    A position is scored when each of its numbers is finite; the others are counted in `n_unscored` and are in no sum.
    """

    row: int
    n_tokens: int
    n_unscored: int
    nll_nats: float  # of the true next tokens
    kl_nats: float | None  # KL(teacher || model); None without a teacher
    n_agree: int | None  # the model's first token is the teacher's
    n_correct: int  # the model's first token is the true one
    brier: float  # squared distance of the distribution from the true token, in [0, 2] a position
    bin_n: tuple[int, ...]  # positions in each bin of confidence (the probability of the first token)
    bin_confidence: tuple[float, ...]
    bin_correct: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Positions:
    """One model's numbers at each position, float64 on the CPU; `kl_nats` and `agree` are None without a teacher."""

    nll_nats: NDArray[np.float64]
    kl_nats: NDArray[np.float64] | None
    agree: NDArray[np.float64] | None
    correct: NDArray[np.float64]
    confidence: NDArray[np.float64]
    brier: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Reference:
    """The teacher at the positions of one chunk, worked out once for all models."""

    logp_CV: Tensor
    probability_CV: Tensor
    negative_entropy_C: Tensor
    top_C: Tensor


@dataclass(slots=True)
class _Sums:
    """The sums of one model so far, by row."""

    by_row: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, positions: _Positions, row_N: NDArray[np.int64]) -> None:
        rows_R, inverse_N = np.unique(row_N, return_inverse=True)
        for row, sums in zip(rows_R.tolist(), _sums_by_row(positions, inverse_N, n_rows=len(rows_R)), strict=True):
            self.by_row[row] = self.by_row[row] + sums if row in self.by_row else sums


_N_PLAIN = 7  # columns before the bins: scored, unscored, nll, kl, agree, correct, brier


@torch.no_grad()
def score_models(
    models: Mapping[str, Scored],
    batches: Iterable[tuple[Batch, Tensor]],
    *,
    teacher: str | None,
    n_vocabulary: int,
    chunk: int = 256,
    progress: Progress | None = None,
) -> dict[str, list[SequenceScore]]:
    """The scores of each model, sorted by row, every model on the same positions.

    `batches` yields a batch and `row_N`, the held-out row of each trained position.  Each model runs once over a
    batch; logits live for `chunk` positions only.  `teacher` names the model that KL and agreement refer to.  Models
    run in the precision they are given in: wrap the call in `torch.autocast` for another one.  `progress` is called
    with the number of positions of each finished batch.  Raises IntegrityError[NO_SCORED_TOKENS] when there is no
    position at all.
    """
    assert teacher is None or teacher in models, f"teacher {teacher!r} is not among {sorted(models)}"
    sums = {name: _Sums() for name in models}
    for batch, row_N in batches:
        rows = row_N.cpu().numpy().astype(np.int64)
        assert len(rows) == batch.n_trained, "row_N must name the row of each trained position"
        for name, positions in _score_batch(
            models, batch, teacher=teacher, n_vocabulary=n_vocabulary, chunk=chunk
        ).items():
            sums[name].add(positions, rows)
        if progress is not None:
            progress(batch.n_trained)
    if not any(s.by_row for s in sums.values()):
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            "0 scored tokens in the held-out data; check data.held_out, data.train_on and data.max_length",
        )
    return {name: _finished(s, with_teacher=teacher is not None) for name, s in sums.items()}


def _score_batch(
    models: Mapping[str, Scored], batch: Batch, *, teacher: str | None, n_vocabulary: int, chunk: int
) -> dict[str, _Positions]:
    """Every model's numbers at the trained positions of one batch; each trunk runs once, logits live for one chunk."""
    answers = {name: _answer(model, batch, n_vocabulary=n_vocabulary) for name, model in models.items()}
    next_ids = {name: batch.view.next_ids_N.to(_device(answer)) for name, answer in answers.items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    for start in range(0, batch.n_trained, chunk):
        here = slice(start, start + chunk)
        reference = _reference(_logp(answers[teacher], here)) if teacher else None
        for name in models:
            own = reference is not None and name == teacher
            logp_CV = reference.logp_CV if reference is not None and own else _logp(answers[name], here)
            parts[name].append(_chunk_numbers(logp_CV, next_ids[name][here], reference=reference))
    return {name: _positions(pieces, with_teacher=teacher is not None) for name, pieces in parts.items()}


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


def _logp(answer: Whole, place: slice) -> Tensor:
    """Log-probabilities [C, V], float32 or wider."""
    if isinstance(answer, LogitTargets):
        return torch.log_softmax(answer.logits_NV[place], dim=-1)
    if isinstance(answer, MixtureTargets):
        return answer.logp(place)
    return torch.log_softmax(answer.head.logits(answer.hidden_ND[place]), dim=-1)


def _reference(logp_CV: Tensor) -> _Reference:
    probability_CV = logp_CV.exp()
    return _Reference(logp_CV, probability_CV, _dot(probability_CV, logp_CV), logp_CV.argmax(-1))


def _chunk_numbers(logp_CV: Tensor, next_ids_C: Tensor, *, reference: _Reference | None) -> Tensor:
    """Columns nll, confidence, correct, brier, then kl and agree with a teacher: [C, 4 or 6], float64 on the CPU."""
    top_C = logp_CV.argmax(-1)
    true_logp_C = _at(logp_CV, next_ids_C)
    norm_C = torch.linalg.vector_norm(logp_CV.exp(), dim=-1).double()
    columns = [
        -true_logp_C,
        _at(logp_CV, top_C).double().exp(),
        top_C == next_ids_C,
        norm_C.square() - 2 * true_logp_C.double().exp() + 1,
    ]
    if reference is not None:
        columns += [_kl(reference, logp_CV), top_C == reference.top_C.to(top_C.device)]
    return torch.stack([c.double() for c in columns], dim=-1).cpu()


def _kl(reference: _Reference, logp_CV: Tensor) -> Tensor:
    """KL(teacher || model) a position, shape [C], in nats: exactly 0 for equal distributions."""
    probability_CV = reference.probability_CV.to(logp_CV.device)
    wide = torch.promote_types(probability_CV.dtype, logp_CV.dtype)  # a stored teacher may be float32, a student wider
    probability_CV, logp_CV = probability_CV.to(wide), logp_CV.to(wide)
    return reference.negative_entropy_C.to(logp_CV.device) - _dot(probability_CV, logp_CV)


def _dot(probability_CV: Tensor, logp_CV: Tensor) -> Tensor:
    """Sum of p * logp, shape [C]; a token with p = 0 adds nothing, also where its log-probability is -inf."""
    sums_C: Tensor = torch.linalg.vecdot(probability_CV, logp_CV)
    if bool(sums_C.isnan().any()):  # rare, so the usual path is spared two passes over [C, V]
        sums_C = (probability_CV * logp_CV).masked_fill(probability_CV == 0, 0.0).sum(-1)
    return sums_C


def _at(logp_CV: Tensor, ids_C: Tensor) -> Tensor:
    return logp_CV.gather(-1, ids_C[:, None]).squeeze(-1)


def _positions(pieces: list[Tensor], *, with_teacher: bool) -> _Positions:
    columns = torch.cat(pieces).numpy().T if pieces else np.zeros((6 if with_teacher else 4, 0))
    kl_nats, agree = (columns[4], columns[5]) if with_teacher else (None, None)
    return _Positions(columns[0], kl_nats, agree, columns[2], columns[1], columns[3])


def _sums_by_row(positions: _Positions, inverse_N: NDArray[np.int64], *, n_rows: int) -> NDArray[np.float64]:
    """Sums [R, 7 + 3 bins] of one batch; positions with a number that is not finite are only counted."""
    zeros_N = np.zeros_like(positions.nll_nats)
    kl_N = positions.kl_nats if positions.kl_nats is not None else zeros_N
    agree_N = positions.agree if positions.agree is not None else zeros_N
    finite_N = np.isfinite(positions.nll_nats) & np.isfinite(kl_N) & np.isfinite(positions.confidence)
    finite_N &= np.isfinite(positions.brier)

    def by_row(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(inverse_N, np.where(finite_N, values_N, 0.0), minlength=n_rows).astype(np.float64)

    def by_row_and_bin(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        cell_N = inverse_N * N_BINS + bin_N
        sums_RK = np.bincount(cell_N, np.where(finite_N, values_N, 0.0), minlength=n_rows * N_BINS)
        return sums_RK.astype(np.float64).reshape(n_rows, N_BINS)

    confidence_N = np.where(finite_N, positions.confidence, 0.0)
    bin_N = np.clip(np.ceil(confidence_N * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    ones_N = np.ones_like(zeros_N)
    unscored_R = np.bincount(inverse_N, (~finite_N).astype(np.float64), minlength=n_rows)
    plain = [by_row(ones_N), unscored_R, by_row(positions.nll_nats), by_row(kl_N)]
    plain += [by_row(agree_N), by_row(positions.correct), by_row(positions.brier)]
    bins = [by_row_and_bin(ones_N), by_row_and_bin(confidence_N), by_row_and_bin(positions.correct)]
    return np.concatenate([np.stack(plain, axis=-1), *bins], axis=-1)


def _finished(sums: _Sums, *, with_teacher: bool) -> list[SequenceScore]:
    return [_score(row, sums.by_row[row], with_teacher=with_teacher) for row in sorted(sums.by_row)]


def _score(row: int, sums: NDArray[np.float64], *, with_teacher: bool) -> SequenceScore:
    n, unscored, nll, kl, agree, correct, brier = sums[:_N_PLAIN].tolist()
    bin_n, bin_confidence, bin_correct = sums[_N_PLAIN:].reshape(3, N_BINS).tolist()
    return SequenceScore(
        row=row,
        n_tokens=int(n),
        n_unscored=int(unscored),
        nll_nats=nll,
        kl_nats=kl if with_teacher else None,
        n_agree=int(agree) if with_teacher else None,
        n_correct=int(correct),
        brier=brier,
        bin_n=tuple(int(x) for x in bin_n),
        bin_confidence=tuple(bin_confidence),
        bin_correct=tuple(int(x) for x in bin_correct),
    )
