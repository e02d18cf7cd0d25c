"""What stored targets can serve, and their sums: a sampled distribution, and the k most likely tokens with a tail.

Shape legend: N positions, V vocabulary, K kept ids, S = K + 1 with the tail, M entries of all positions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.errors import ConfigError
from tutelage.losses import divergences
from tutelage.losses.schedules import Schedule
from tutelage.losses.support import log_softmax, merge_tail
from tutelage.losses.targets import Kind
from tutelage.losses.terms import Scale, Term
from tutelage.types import SampledTargets, TopKTargets

_ONE_TEMPERATURE: dict[Kind, str] = {"sample": "a sampled cache", "top_k": "a top-k cache"}


def refuse_unservable(
    terms: Sequence[Term], *, kind: Kind, temperature: float, scales: Mapping[str, Scale] | None = None
) -> None:
    """Raise ConfigError for terms that targets of this kind, stored at `temperature`, cannot serve.

    A sample is right in expectation only where the loss is linear in it: `forward_kl`, and cross-entropy on the truth.
    A sample and a top-k cache hold one temperature, for the whole schedule or, with `scales`, for this step.
    """
    if kind not in _ONE_TEMPERATURE:
        return
    for term in terms:
        if kind == "sample" and term.needs_teacher and term.divergence != "forward_kl":
            raise ConfigError(
                "CODEC_CANNOT",
                f"{term.name} asked of a sampled cache (codec threshold), which is unbiased in forward_kl and "
                "cross_entropy alone; take one of them, or label again with a codec that serves it: "
                "tutelage label RECIPE cache.codec=hidden (or dense, topk)",
            )
        if term.kind != "divergence":
            continue
        asked = _only_value(term.temperature) if scales is None else scales[term.name].temperature
        if asked != temperature:
            run = f"T={asked}" if asked is not None else "several temperatures"
            raise ConfigError(
                "CACHE_TEMPERATURE",
                f"{_ONE_TEMPERATURE[kind]} was made at T={temperature}, {term.name} in this run asks {run}; set its "
                f"temperature to {temperature}, or label again: tutelage label RECIPE "
                + (f"cache.temperature={asked}, or " if asked is not None else "")
                + "with cache.codec=hidden (or dense), which serves any",
            )


def _only_value(schedule: Schedule) -> float | None:
    """The value of a schedule that never changes, else None."""
    stays = schedule.kind == "constant" or schedule.start == schedule.end
    return schedule.start if stays and schedule.warmup == 0 else None


def metric_name(term: Term, *, kind: Kind | None) -> str:
    """The name that a term's sum is reported under: a sample gives the soft cross-entropy in place of forward KL.

    The two differ by the teacher's entropy, which a sample does not know; their gradients are the same.
    """
    return "soft_cross_entropy" if kind == "sample" and term.divergence == "forward_kl" else term.name


def soft_cross_entropy(targets: SampledTargets, student_logits_NV: Tensor) -> Tensor:
    """Sum over positions and their entries of -weight * log q_T(id), 0-dim, in nats, with a graph to the logits."""
    student_logp_NV = log_softmax(student_logits_NV, temperature=targets.temperature)
    picked_M = student_logp_NV[positions_of(targets), targets.ids_M]
    return -(targets.weights_M.to(picked_M.dtype) * picked_M).sum()


def positions_of(targets: SampledTargets) -> Tensor:
    """The position that each entry belongs to, shape [M], int64."""
    offsets, n_entries = targets.offsets, targets.ids_M.shape[0]
    each_N = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(each_N, offsets.diff(), output_size=n_entries)


def merged_divergence(term: Term, *, targets: TopKTargets, student_logits_NV: Tensor) -> Tensor:
    """Sum of a divergence on the merged support of kept ids and tail, 0-dim, in nats, with a graph to the logits.

    At most the divergence over the vocabulary; it grows with K, and equals that at K = V.
    """
    student_logp_NV = log_softmax(student_logits_NV, temperature=targets.temperature)
    teacher_logp_NS = torch.cat([targets.logp_NK, targets.tail_logp_N[:, None]], dim=-1).to(student_logp_NV.dtype)
    if term.divergence == "forward_kl":
        total: Tensor = _MergedForwardKL.apply(student_logp_NV, teacher_logp_NS, targets.ids_NK)  # type: ignore[no-untyped-call]
        return total
    student_logp_NS = merge_tail(student_logp_NV, targets.ids_NK)
    return divergences.function(term.divergence)(teacher_logp_NS, student_logp_NS, **term.parameters).sum()


class _MergedForwardKL(torch.autograd.Function):
    """Sum of forward KL on K kept ids and a tail, from the student's log-probabilities.

    The gradient with respect to log q is -p for a kept id and -p_tail * q / q_tail for each other one: log_softmax
    below makes q * (mass of p) - p, and q * (mass of p - p_tail / q_tail), of it.
    """

    @staticmethod
    def forward(ctx, student_logp_NV: Tensor, teacher_logp_NS: Tensor, ids_NK: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        student_logp_NS = merge_tail(student_logp_NV, ids_NK)
        ctx.save_for_backward(student_logp_NV, student_logp_NS[:, -1:], teacher_logp_NS, ids_NK)
        return divergences.forward_kl(teacher_logp_NS, student_logp_NS).sum()

    @staticmethod
    def backward(ctx, grad_sum: Tensor):  # type: ignore[no-untyped-def]
        student_logp_NV, tail_logp_N1, teacher_logp_NS, ids_NK = ctx.saved_tensors
        some_left_N1 = teacher_logp_NS[:, -1:] > -torch.inf
        log_ratio_N1 = torch.where(some_left_N1, teacher_logp_NS[:, -1:] - tail_logp_N1, -torch.inf)
        gradient_NV = (student_logp_NV + log_ratio_N1).exp_()
        gradient_NV.scatter_(-1, ids_NK, teacher_logp_NS[:, :-1].exp())
        return gradient_NV.mul_(-grad_sum), None, None
