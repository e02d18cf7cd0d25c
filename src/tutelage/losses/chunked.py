"""The loss over hidden states and heads, a few hundred positions at a time.

A [tokens, vocabulary] tensor of either model is never whole: the gradient of a chunk is formed while its logits are
alive.  The two products of the backward pass (into the hidden states and into the head's weight) stand here once, for
every divergence; what differs is only the gradient with respect to the chunk's product, which comes from autograd on
the plain functions (`plain_chunk`), or in closed form (`losses/fused.py`) for the common blends.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses import divergences, fused
from tutelage.losses.support import log_softmax
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import DenseTargets, Head

CHUNK_POSITIONS = 512


def term_sums(
    terms: Sequence[Term],
    *,
    scales: Mapping[str, Scale],
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor | None,
    next_ids_N: Tensor,
) -> dict[str, Tensor]:
    """Each term's sum over the positions, with a graph to the student's logits: the readable definition of the loss."""
    sums: dict[str, Tensor] = {}
    for term in terms:
        if term.kind == "divergence":
            assert teacher_logits_NV is not None
            temperature = scales[term.name].temperature
            if term.divergence == "forward_kl":
                sums[term.name] = _ForwardKL.apply(student_logits_NV, teacher_logits_NV, temperature)  # type: ignore[no-untyped-call]
                continue
            teacher_logp_NV = log_softmax(teacher_logits_NV, temperature=temperature)
            student_logp_NV = log_softmax(student_logits_NV, temperature=temperature)
            divergence = divergences.function(term.divergence)
            sums[term.name] = divergence(teacher_logp_NV, student_logp_NV, **term.parameters).sum()
        else:
            ids_N = next_ids_N
            if term.kind == "teacher_argmax":
                assert teacher_logits_NV is not None
                ids_N = teacher_logits_NV.argmax(-1)
            sums[term.name] = torch.nn.functional.cross_entropy(student_logits_NV, ids_N, reduction="sum")
    return sums


class _ForwardKL(torch.autograd.Function):
    """Sum of KL(p_T || q_T) over positions, whose gradient is formed as (q - p) / T with one operation on both sides.

    So a copy of the teacher gets a gradient of exactly zero; autograd through the logarithms leaves about 1e-9, which
    AdamW would turn into full-sized steps.
    """

    @staticmethod
    def forward(ctx, student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float) -> Tensor:  # type: ignore[no-untyped-def]
        student_logp_NV = log_softmax(student_logits_NV, temperature=temperature)
        teacher_logp_NV = log_softmax(teacher_logits_NV, temperature=temperature)
        ctx.save_for_backward(student_logp_NV, teacher_logp_NV)
        ctx.temperature = temperature
        return divergences.forward_kl(teacher_logp_NV, student_logp_NV).sum()

    @staticmethod
    def backward(ctx, grad_sum: Tensor):  # type: ignore[no-untyped-def]
        student_logp_NV, teacher_logp_NV = ctx.saved_tensors
        difference_NV = student_logp_NV.exp() - teacher_logp_NV.exp()
        return difference_NV * (grad_sum / ctx.temperature), None, None


def plain_chunk(
    terms: Sequence[Term],
    *,
    scales: Mapping[str, Scale],
    student_product_NV: Tensor,
    teacher_product_NV: Tensor | None,
    student_head: Head,
    teacher_head: Head | None,
    next_ids_N: Tensor,
    gradient: bool,
) -> ChunkResult:
    """Any blend of terms on one chunk, by autograd on the plain functions."""
    teacher_logits_NV = None
    if teacher_head is not None and teacher_product_NV is not None:
        with torch.no_grad():
            teacher_logits_NV = teacher_head.finish(teacher_product_NV)
    with torch.set_grad_enabled(gradient):
        product_NV = student_product_NV.detach().requires_grad_(gradient)
        sums = term_sums(
            terms,
            scales=scales,
            student_logits_NV=student_head.finish(product_NV),
            teacher_logits_NV=teacher_logits_NV,
            next_ids_N=next_ids_N,
        )
        gradient_NV = None
        if gradient:
            total = sum((scales[name].factor * value for name, value in sums.items()), start=product_NV.new_zeros(()))
            (gradient_NV,) = torch.autograd.grad(total, product_NV)
    return ChunkResult(sums={name: value.detach() for name, value in sums.items()}, gradient_NV=gradient_NV)


ChunkFunction = Callable[..., ChunkResult]


def chunk_function(terms: Sequence[Term], *, heads: Sequence[Head | None]) -> ChunkFunction:
    """The closed form where it serves these terms and heads, else the plain functions."""
    return fused.fused_chunk if fused.serves(terms, heads=heads) else plain_chunk


@dataclass(slots=True)
class _Job:
    """What one call of the chunked loss works on; sums come back through it."""

    terms: Sequence[Term]
    scales: Mapping[str, Scale]
    student_head: Head
    targets: DenseTargets | None
    next_ids_N: Tensor
    chunk_positions: int
    chunk: ChunkFunction
    sums: dict[str, Tensor]


def chunked_loss(
    hidden_ND: Tensor,
    *,
    student_head: Head,
    targets: DenseTargets | None,
    next_ids_N: Tensor,
    terms: Sequence[Term],
    scales: Mapping[str, Scale],
    chunk_positions: int = CHUNK_POSITIONS,
    chunk: ChunkFunction | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total, sums): the scaled loss with a graph to hidden states and head, and each term's plain sum in nats.

    `hidden_ND` [N, D] are the student's hidden states at the trained positions, `next_ids_N` [N] the true next tokens
    (int64, none of them -100), `targets` the teacher's hidden states at the same positions with its head (None when no
    term needs a teacher).  total = sum over terms of `scales[NAME].factor` * sums[NAME], 0-dim, float32 or wider;
    `sums[NAME]` is detached and has neither weight nor T**k in it, NAME is `Term.name`.  `scale_of` makes a scale.
    Gradients are formed in the forward, so backward works once and has no second derivative.
    N = 0 gives a zero that still depends on the student, so that backward works on every rank.

    Raises ValueError when shapes, targets, scales or terms do not fit together, IndexError for an id outside the head.
    """
    _check(hidden_ND, targets, student_head=student_head, next_ids_N=next_ids_N, terms=terms, scales=scales)
    if chunk_positions < 1:
        raise ValueError(f"chunk_positions {chunk_positions}, expected at least 1")
    teacher_head = targets.head if targets is not None else None
    job = _Job(
        terms=terms,
        scales=scales,
        student_head=student_head,
        targets=targets,
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        chunk=chunk or chunk_function(terms, heads=(student_head, teacher_head)),
        sums={term.name: hidden_ND.new_zeros((), dtype=_wide(hidden_ND.dtype)) for term in terms},
    )
    needs_gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or student_head.weight_VD.requires_grad)
    total: Tensor = _ChunkedLoss.apply(hidden_ND, student_head.weight_VD, student_head.bias_V, job, needs_gradient)  # type: ignore[no-untyped-call]
    return total, job.sums


def _check(
    hidden_ND: Tensor,
    targets: DenseTargets | None,
    *,
    student_head: Head,
    next_ids_N: Tensor,
    terms: Sequence[Term],
    scales: Mapping[str, Scale],
) -> None:
    """ValueError for what would broadcast, be left out or be added twice without a word."""
    names = [term.name for term in terms]
    asking = [term.name for term in terms if term.needs_teacher]
    if hidden_ND.ndim != 2 or next_ids_N.shape != hidden_ND.shape[:1]:
        found = f"{tuple(hidden_ND.shape)} with next tokens {tuple(next_ids_N.shape)}"
        raise ValueError(f"hidden states {found}, expected [N, D] with [N]: the trained positions alone")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"terms {names}, expected at least one and no name twice: add the weights of equal terms")
    if missing := [name for name in names if name not in scales]:
        raise ValueError(f"scales for {sorted(scales)}, expected one for each term: {', '.join(missing)} missing")
    if targets is None:
        if asking:
            raise ValueError(f"no targets, expected the teacher's hidden states and head: {', '.join(asking)} asks")
        return
    if targets.hidden_ND.ndim != 2 or targets.hidden_ND.shape[0] != hidden_ND.shape[0]:
        found = f"{tuple(targets.hidden_ND.shape)} of the teacher, {tuple(hidden_ND.shape)} of the student"
        raise ValueError(f"hidden states {found}, expected the same N: one row for each trained position")
    if targets.head.n_vocabulary != student_head.n_vocabulary:
        found = f"{targets.head.n_vocabulary} and {student_head.n_vocabulary}"
        raise ValueError(f"n_vocabulary {found} of teacher and student, expected one: the tokenizer's real size")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    """Forms every gradient in its forward, chunk by chunk; backward only multiplies them by the incoming scalar."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        ctx, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job, needs_gradient: bool
    ) -> Tensor:
        head = job.student_head
        n_rows = head.n_vocabulary
        hidden_gradient_ND = torch.zeros_like(hidden_ND) if needs_gradient else None
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=_wide(weight_VD.dtype)) if needs_gradient else None
        bias_gradient_V = torch.zeros_like(bias_V) if needs_gradient and bias_V is not None else None
        for start in range(0, hidden_ND.shape[0], job.chunk_positions):
            stop = start + job.chunk_positions
            chunk_hidden_ND = hidden_ND[start:stop].to(weight_VD.dtype)
            result = job.chunk(
                job.terms,
                scales=job.scales,
                student_product_NV=head.product(chunk_hidden_ND),
                teacher_product_NV=job.targets.head.product(job.targets.hidden_ND[start:stop]) if job.targets else None,
                student_head=head,
                teacher_head=job.targets.head if job.targets else None,
                next_ids_N=job.next_ids_N[start:stop],
                gradient=needs_gradient,
            )
            for name, value in result.sums.items():
                job.sums[name] = job.sums[name] + value
            if result.gradient_NV is None or hidden_gradient_ND is None or weight_gradient_VD is None:
                continue
            gradient_NV = result.gradient_NV.to(weight_VD.dtype)
            hidden_gradient_ND[start:stop] = gradient_NV @ weight_VD[:n_rows]
            _add_product(weight_gradient_VD[:n_rows], gradient_NV.t(), chunk_hidden_ND)
            if bias_gradient_V is not None:
                bias_gradient_V[:n_rows] += gradient_NV.sum(0)
        if needs_gradient:
            assert weight_gradient_VD is not None
            ctx.gradients = (hidden_gradient_ND, weight_gradient_VD.to(weight_VD.dtype), bias_gradient_V)
        total = hidden_ND.new_zeros((), dtype=_wide(hidden_ND.dtype))
        for name, value in job.sums.items():
            total = total + job.scales[name].factor * value
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):  # type: ignore[no-untyped-def]
        gradients = [None if g is None else g * grad_total.to(g.dtype) for g in ctx.gradients]
        ctx.gradients = None
        return (*gradients, None, None)


def _add_product(out_wide: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, accumulated in the dtype of `out` (float32 or wider) over the chunks."""
    if a.dtype == out_wide.dtype:
        out_wide.addmm_(a, b)
    else:
        out_wide += a @ b
