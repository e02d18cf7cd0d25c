"""The loss of one model, or of several that learn together, over hidden states and heads, chunk by chunk.

A [tokens, vocabulary] tensor is never whole: the gradient of a few hundred positions is formed while their logits live.
Each head's product is made once a chunk, and serves the model's own cross-entropy and whoever learns from it: see
`groups.py`.  The two products of the backward pass stand in `gradients.py` once, for every divergence; what differs is
only the gradient with respect to the chunk's product, which comes from autograd on the plain functions (`plain_chunk`),
or in closed form (`closed_form.py`) for the common blends.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.losses import gates
from tutelage.losses.gradients import Gradients, Workspace
from tutelage.losses.groups import Group
from tutelage.losses.job import ChunkFunction, Job, Part, by_source
from tutelage.losses.stored import metric_name, refuse_unservable
from tutelage.losses.support import wide
from tutelage.losses.targets import Stored, check, kind_of
from tutelage.losses.terms import Scale, Term
from tutelage.roles import TEACHER
from tutelage.types import DenseTargets, Head, SampledTargets, Targets

CHUNK_POSITIONS = 512
GROUP_POSITIONS = 1024  # positions whose gradients wait for one product into the weight; a constant, not the batch


def chunked_loss(
    hidden_ND: Tensor,
    *,
    student_head: Head,
    targets: Targets | None,
    next_ids_N: Tensor,
    terms: Sequence[Term],
    scales: Mapping[str, Scale],
    chunk_positions: int = CHUNK_POSITIONS,
    chunk: ChunkFunction | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total, sums): the scaled loss with a graph to hidden states and head, and each term's plain sum in nats.

    `hidden_ND` [N, D] are the student's hidden states at the trained positions, `next_ids_N` [N] the true next tokens
    (int64, none of them -100), `targets` the teacher's hidden states at the same positions with its head, or what a
    cache holds of it (None when no term needs a teacher).  total = sum over terms of `scales[NAME].factor` *
    sums[NAME], 0-dim, float32 or wider; `sums[NAME]` is detached and has neither weight nor T**k in it, NAME is
    `Term.name`, but `soft_cross_entropy` for the forward KL of sampled targets.  `scale_of` makes a scale.
    Gradients are formed in the forward, so backward works once and has no second derivative.
    `workspace` keeps the large tensors from call to call: give one and the same at every step.
    N = 0 gives a zero that still depends on the student, so that backward works on every rank.

    Raises ValueError when shapes, targets, scales or terms do not fit together, IndexError for an id outside the head,
    ConfigError for a term that stored targets cannot serve (`refuse_unservable`).
    """
    total, sums = joint_loss(
        {"": Part(hidden_ND=hidden_ND, head=student_head, terms=tuple(terms), scales=scales)},
        targets={TEACHER: targets} if targets is not None else {},
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        chunk=chunk,
        workspace=workspace,
    )
    return total, sums[""]


def joint_loss(
    parts: Mapping[str, Part],
    *,
    targets: Mapping[str, Targets],
    next_ids_N: Tensor,
    chunk_positions: int = CHUNK_POSITIONS,
    chunk: ChunkFunction | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """`chunked_loss` of several models at once: the sum of their scaled losses, and each one's sums.

    A term learns from `Term.source`: another of `parts`, as it is at this step and without a gradient to it, or what
    stands under that name in `targets`.  What a model computes does not depend on who else is there, bit for bit.
    """
    if chunk_positions < 1:
        raise ValueError(f"chunk_positions {chunk_positions}, expected at least 1")
    for part in parts.values():
        _check(part, parts=parts, targets=targets, next_ids_N=next_ids_N)
    job = Job(
        parts=dict(parts),
        targets=dict(targets),
        offsets={name: t.offsets.cpu() for name, t in targets.items() if isinstance(t, SampledTargets)},
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        workspace=workspace or Workspace(),
        needs_gradient=torch.is_grad_enabled()
        and any(p.hidden_ND.requires_grad or p.head.weight_VD.requires_grad for p in parts.values()),
        chunk=chunk,
    )
    tensors = [t for p in parts.values() for t in (p.hidden_ND, p.head.weight_VD, p.head.bias_V)]
    total: Tensor = _JointLoss.apply(job, *tensors)  # type: ignore[no-untyped-call]
    return total, {name: _named(part, job=job, sums=job.sums[name]) for name, part in parts.items()}


def _named(part: Part, *, job: Job, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for term in part.terms:
        targets = job.targets.get(term.source)
        named[metric_name(term, kind=kind_of(targets) if targets is not None else None)] = sums[term.name]
        if term.name + gates.TRUSTED in sums:
            named[term.name + gates.TRUSTED] = sums[term.name + gates.TRUSTED]
    return named


def _check(part: Part, *, parts: Mapping[str, Part], targets: Mapping[str, Targets], next_ids_N: Tensor) -> None:
    """ValueError, IndexError or ConfigError for what does not fit together."""
    for source, terms in by_source(part.terms) or [(None, ())]:
        given: Targets | None = targets.get(source) if source is not None else targets.get(TEACHER)
        if source is not None and source in parts:
            given = DenseTargets(hidden_ND=parts[source].hidden_ND, head=parts[source].head)
        check(
            part.hidden_ND,
            given,
            student_head=part.head,
            next_ids_N=next_ids_N,
            terms=part.terms,
            asking=terms,
            scales=part.scales,
        )
        if isinstance(given, Stored):
            if any(term.trust == "per_token" for term in terms):
                raise ValueError("trust per_token needs the whole distribution of a teacher, found stored entries")
            refuse_unservable(terms, kind=kind_of(given), temperature=given.temperature, scales=part.scales)


class _JointLoss(torch.autograd.Function):
    """Forms every gradient in its forward, group by group; backward only multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx, job: Job, *tensors: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        gradients = {
            name: Gradients.zero(part.hidden_ND, part.head.weight_VD, part.head.bias_V)
            for name, part in job.parts.items()
            if job.needs_gradient
        }
        hidden = {name: part.hidden_ND.to(part.head.weight_VD.dtype) for name, part in job.parts.items()}
        n_positions = job.next_ids_N.shape[0]
        group_positions = max(1, GROUP_POSITIONS // job.chunk_positions) * job.chunk_positions
        for start in range(0, n_positions, group_positions):
            group = Group(job=job, hidden=hidden, place=slice(start, min(start + group_positions, n_positions)))
            for name in job.order:
                gradient_NV, part = group.learn(name), job.parts[name]
                if job.needs_gradient:
                    gradients[name].add(
                        gradient_NV, group.place, head=part.head, hidden_ND=part.hidden_ND, workspace=job.workspace
                    )
        ctx.gradients = [
            g for n, p in job.parts.items() if job.needs_gradient for g in gradients[n].finish(p.head.weight_VD.dtype)
        ]
        first = next(iter(job.parts.values())).hidden_ND
        total = first.new_zeros((), dtype=wide(first.dtype))
        for name, part in job.parts.items():
            for term in part.terms:
                total = total + part.scales[term.name].factor * job.sums[name][term.name]
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):  # type: ignore[no-untyped-def]
        is_one = grad_total.device.type == "cpu" and grad_total.item() == 1.0
        gradients = [g if g is None or is_one else g.mul_(grad_total.to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return (None, *gradients)
