"""The error that a cache puts into the student's gradient, in the two columns that codecs are compared by.

For position i: p_i the teacher, p^_i the distribution that the gradient of the stored target points to, q_i the
student, W the rows of the teacher's head.  The full gradient in hidden space is g_i = (q_i - p_i) W, what the cache
changes in it e_i = (p^_i - p_i) W, both as ratios to rms |g|:

    per_position   rms_i |e_i| / rms_i |g_i|
    batch          |mean_i e_i| / rms_i |g_i|: of the mean over n positions.  An unbiased codec falls as 1 / sqrt(n),
                   a biased one ends on a floor; compare at the same n only

The reference student is the probe's mean teacher distribution (`unigram`): it needs no model.  Its mean g is 0, hence
the denominator of `batch`.  For what the student sees of a target that does not name all tokens:

    sampled        the weights; what they lack to 1 goes to q_i (as in the gradient of sum_v w_v (-log q_v))
    top-k + tail   the tail's mass is spread over the tokens that are not kept, in proportion to q_i
    top-k          with a tail of -inf, the kept probabilities alone, as stored

Soft-capping of the head is left out of W (its slope is between 0 and 1); both sides of the ratio lack it.  Of several
teachers p_i is the weighted average and W the head of the one with the most weight: a space to measure in.

Shape legend: N positions, C positions of a chunk, V vocabulary, D hidden size, K kept ids, M entries of all positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.types import CachedTargets, DenseTargets, Head, LogitTargets, SampledTargets, TopKTargets

_GATHERED = 1 << 23  # numbers of gathered head rows held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheError:
    """Both columns over `n` positions, the mean teacher probability of the stored ids, KL(teacher || stored)."""

    per_position: float
    batch: float
    n: int
    kept_mass: float
    kl_nats: float | None  # where the whole distribution is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A head's distributions at N positions, reduced to what sparse targets need of them."""

    hidden_ND: Tensor
    head: Head
    temperature: float
    log_partition_N: Tensor
    pull_ND: Tensor  # probabilities times head rows

    def at(self, ids_M: Tensor, position_M: Tensor) -> Tensor:
        """Probabilities of some tokens at some positions, shape [M]."""
        step = max(1, _GATHERED // self.hidden_ND.shape[1])
        parts = [
            self._at(ids_M[start : start + step], position_M[start : start + step])
            for start in range(0, len(ids_M), step)
        ]
        return torch.cat(parts) if parts else self.pull_ND.new_zeros(0)

    def _at(self, ids_M: Tensor, position_M: Tensor) -> Tensor:
        weight_VD = _wide(self.head.weight_VD)
        logits_M = (weight_VD[ids_M] * self.hidden_ND[position_M].to(weight_VD.dtype)).sum(-1)
        if self.head.bias_V is not None:
            logits_M = logits_M + self.head.bias_V[ids_M]
        return torch.exp(self.head.finish(logits_M) / self.temperature - self.log_partition_N[position_M])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Average:
    """Several teachers as one; `pull_ND` is through `head`, that of the one with the most weight."""

    models: tuple[_Model, ...]
    weights: tuple[float, ...]
    head: Head
    pull_ND: Tensor

    def at(self, ids_M: Tensor, position_M: Tensor) -> Tensor:
        """Probabilities of some tokens at some positions, shape [M]."""
        parts = [w * model.at(ids_M, position_M) for w, model in zip(self.weights, self.models, strict=True)]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unigram:
    """A student that always says the same."""

    q_V: Tensor
    pull_ND: Tensor  # [1, D]

    def at(self, ids_M: Tensor, position_M: Tensor) -> Tensor:
        """Probabilities of some tokens, shape [M]."""
        return self.q_V[ids_M]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Teacher and student at N positions: made once, for any number of targets there."""

    teacher: _Model | _Average
    student: _Model | _Unigram


@torch.no_grad()
def unigram(hidden_ND: Tensor, *, head: Head, temperature: float = 1.0) -> Tensor:
    """The mean teacher distribution over the positions, shape [V]: the reference student."""
    total_V = torch.zeros(head.n_vocabulary, dtype=torch.float64, device=hidden_ND.device)
    for place in chunks_of(len(hidden_ND)):
        logp_CV = log_probabilities(hidden_ND[place], head=head, temperature=temperature)
        total_V += logp_CV.exp_().sum(0)
    return (total_V / max(1, len(hidden_ND))).to(_wide(head.weight_VD).dtype)


@torch.no_grad()
def probe(
    hidden_ND: Tensor, *, head: Head, temperature: float = 1.0, student: Tensor | DenseTargets | None = None
) -> Probe:
    """The positions of a measurement; `student` is a unigram [V], hidden states with a head, or these positions'."""
    teacher, mean_V = _model(hidden_ND, head=head, temperature=temperature)
    if isinstance(student, DenseTargets):
        other, _ = _model(student.hidden_ND, head=student.head, temperature=temperature)
        # The pull of a student is through the teacher's head: both gradients live in the teacher's hidden space.
        pull_ND = _pull_through(student, head=head, temperature=temperature)
        return Probe(teacher=teacher, student=replace(other, pull_ND=pull_ND))
    q_V = mean_V if student is None else student.to(mean_V)
    return Probe(teacher=teacher, student=_unigram_of(q_V, head=head))


@torch.no_grad()
def probe_of_average(parts: Sequence[DenseTargets], *, weights: Sequence[float], temperature: float = 1.0) -> Probe:
    """The positions of a measurement where the teacher is a weighted average; weights sum to 1.

    The student is the unigram of these positions.
    """
    made = [_model(part.hidden_ND, head=part.head, temperature=temperature) for part in parts]
    heaviest = max(range(len(parts)), key=lambda n: weights[n])
    head = parts[heaviest].head
    pulls = [
        model.pull_ND if n == heaviest else _pull_through(parts[n], head=head, temperature=temperature)
        for n, (model, _) in enumerate(made)
    ]
    average = _Average(
        models=tuple(model for model, _ in made),
        weights=tuple(weights),
        head=head,
        pull_ND=torch.stack([w * pull for w, pull in zip(weights, pulls, strict=True)]).sum(0),
    )
    q_V = torch.stack([w * mean_V for w, (_, mean_V) in zip(weights, made, strict=True)]).sum(0)
    return Probe(teacher=average, student=_unigram_of(q_V, head=head))


def _unigram_of(q_V: Tensor, *, head: Head) -> _Unigram:
    return _Unigram(q_V=q_V, pull_ND=(q_V @ _real_rows(head))[None])


def _model(hidden_ND: Tensor, *, head: Head, temperature: float) -> tuple[_Model, Tensor]:
    weight_VD = _real_rows(head)
    pull_ND = weight_VD.new_empty(len(hidden_ND), weight_VD.shape[1])
    log_partition_N = weight_VD.new_empty(len(hidden_ND))
    total_V = torch.zeros(head.n_vocabulary, dtype=torch.float64, device=hidden_ND.device)
    for place in chunks_of(len(hidden_ND)):
        logits_CV = head.logits(hidden_ND[place])
        p_CV = torch.log_softmax(logits_CV / temperature if temperature != 1.0 else logits_CV, -1)
        # A logsumexp would be another pass of exponentials; the largest of both is exact enough and always finite.
        log_partition_N[place] = logits_CV.amax(-1) / temperature - p_CV.amax(-1)
        total_V += p_CV.exp_().sum(0)
        pull_ND[place] = p_CV @ weight_VD
    model = _Model(
        hidden_ND=hidden_ND, head=head, temperature=temperature, log_partition_N=log_partition_N, pull_ND=pull_ND
    )
    return model, (total_V / max(1, len(hidden_ND))).to(weight_VD.dtype)


def _pull_through(student: DenseTargets, *, head: Head, temperature: float) -> Tensor:
    parts = [
        log_probabilities(student.hidden_ND[place], head=student.head, temperature=temperature).exp_()
        @ _real_rows(head)
        for place in chunks_of(len(student.hidden_ND))
    ]
    return torch.cat(parts)


class Accumulator:
    """Sums over any number of probes, in float64: for a stream of positions that never lies in memory whole."""

    def __init__(self) -> None:
        self._n = 0
        self._error_sum_D: Tensor | None = None
        self._error_squares = self._gradient_squares = self._kept = self._kl = 0.0
        self._has_kl = False

    @torch.no_grad()
    def add(self, targets: CachedTargets, *, probe: Probe) -> None:
        """Take in the targets at the positions of a probe."""
        if isinstance(targets, (DenseTargets, LogitTargets)):
            assert isinstance(probe.teacher, _Model), "averages are stored as samples or top-k"
            error_ND, kl_nats = _dense_error(targets, teacher=probe.teacher)
            self._kl, self._has_kl, kept = self._kl + kl_nats, True, float(len(error_ND))
        else:
            error_ND, kept = _sparse_error(targets, probe=probe)
        gradient_ND = probe.student.pull_ND.double() - probe.teacher.pull_ND.double()
        total_D = error_ND.sum(0)
        self._error_sum_D = total_D if self._error_sum_D is None else self._error_sum_D + total_D
        self._error_squares += error_ND.square().sum().item()
        self._gradient_squares += gradient_ND.square().sum().item()
        self._kept += kept
        self._n += len(error_ND)

    def result(self) -> CacheError:
        """The error over everything taken in so far."""
        assert self._error_sum_D is not None and self._n, "nothing was measured"
        gradient_rms = (self._gradient_squares / self._n) ** 0.5
        return CacheError(
            per_position=(self._error_squares / self._n) ** 0.5 / gradient_rms,
            batch=self._error_sum_D.norm().item() / self._n / gradient_rms,
            n=self._n,
            kept_mass=self._kept / self._n,
            kl_nats=self._kl / self._n if self._has_kl else None,
        )


def measure(
    targets: CachedTargets,
    *,
    hidden_ND: Tensor,
    head: Head,
    temperature: float = 1.0,
    student: Tensor | DenseTargets | None = None,
) -> CacheError:
    """The error of stored targets against the teacher's full distribution at the same positions."""
    sums = Accumulator()
    sums.add(targets, probe=probe(hidden_ND, head=head, temperature=temperature, student=student))
    return sums.result()


# --- what the student sees -------------------------------------------------------------------------------------------


def _dense_error(targets: DenseTargets | LogitTargets, *, teacher: _Model) -> tuple[Tensor, float]:
    """(p^ - p) W, shape [N, D] in float64, and the sum of KL(p || p^) in nats."""
    weight_VD = _real_rows(teacher.head)
    error_ND = torch.empty(len(teacher.hidden_ND), weight_VD.shape[1], dtype=torch.float64, device=weight_VD.device)
    kl_nats = 0.0
    for place in chunks_of(len(teacher.hidden_ND)):
        true_CV = log_probabilities(teacher.hidden_ND[place], head=teacher.head, temperature=teacher.temperature)
        stored_CV = _stored(targets, place, temperature=teacher.temperature).to(true_CV)
        p_CV = true_CV.exp()
        kl_nats += torch.where(p_CV > 0, p_CV * (true_CV - stored_CV), 0.0).sum(dtype=torch.float64).item()
        error_ND[place] = ((stored_CV.exp_() - p_CV) @ weight_VD).double()
    return error_ND, kl_nats


def _stored(targets: DenseTargets | LogitTargets, place: slice, *, temperature: float) -> Tensor:
    if isinstance(targets, DenseTargets):
        return log_probabilities(targets.hidden_ND[place], head=targets.head, temperature=temperature)
    wide_CV = targets.logits_NV[place].to(torch.promote_types(targets.logits_NV.dtype, torch.float32))
    return torch.log_softmax(wide_CV / temperature, dim=-1)


def _sparse_error(targets: SampledTargets | TopKTargets, *, probe: Probe) -> tuple[Tensor, float]:
    """(p^ - p) W, shape [N, D] in float64, and the sum over positions of the teacher's probability of stored ids."""
    rows_VD, device = _real_rows(probe.teacher.head), probe.teacher.pull_ND.device
    if isinstance(targets, TopKTargets):
        n, k = targets.ids_NK.shape
        ids_M, offsets = targets.ids_NK.reshape(-1).to(device), torch.arange(0, n * k + 1, k, device=device)
    else:
        ids_M, offsets, n = targets.ids_M.to(device), targets.offsets.to(device), len(targets.offsets) - 1
    position_M = torch.repeat_interleave(torch.arange(n, device=device), offsets.diff())
    if isinstance(targets, TopKTargets):
        weights_M, to_student_N = _merged_weights(targets, probe.student.at(ids_M, position_M))
    else:
        weights_M = targets.weights_M.to(device)
        to_student_N = 1.0 - _sums(weights_M, position_M, n=n)
    pull_ND = torch.nn.functional.embedding_bag(
        ids_M, rows_VD, offsets[:-1], mode="sum", per_sample_weights=weights_M.to(rows_VD)
    )
    stored_ND = pull_ND.double() + to_student_N[:, None] * probe.student.pull_ND.double()
    return stored_ND - probe.teacher.pull_ND.double(), probe.teacher.at(ids_M, position_M).double().sum().item()


def _merged_weights(targets: TopKTargets, q_M: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the kept ids, [M], and how much of the student's whole distribution comes on top, [N]: float64."""
    p_NK, tail_N = targets.logp_NK.to(q_M.device).double().exp(), targets.tail_logp_N.to(q_M.device).double().exp()
    q_NK = q_M.double().view(p_NK.shape)
    q_rest_N = 1.0 - q_NK.sum(-1)
    share_N = torch.where(tail_N > 0, tail_N / q_rest_N.clamp_min(1e-12), 0.0)
    missing_N = 1.0 - p_NK.sum(-1) - tail_N
    return (p_NK - share_N[:, None] * q_NK).reshape(-1), share_N + missing_N


def _sums(values_M: Tensor, position_M: Tensor, *, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.float64, device=values_M.device).index_add_(0, position_M, values_M.double())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _real_rows(head: Head) -> Tensor:
    return _wide(head.weight_VD[: head.n_vocabulary]).detach()
