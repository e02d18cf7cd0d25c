"""The loss over hidden states and heads, a few hundred positions at a time.

A [tokens, vocabulary] tensor of either model is never whole: the gradient of a chunk is formed while its logits are
alive.  The two products of the backward pass (into the hidden states and into the head's weight) stand here once, for
every divergence; what differs is only the gradient with respect to the chunk's product, which comes from autograd on
the plain functions (`plain_chunk`), or in closed form (`losses/closed_form.py`) for the common blends.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses import closed_form, divergences
from tutelage.losses.stored import merged_divergence, metric_name, refuse_unservable, soft_cross_entropy
from tutelage.losses.support import log_softmax
from tutelage.losses.targets import Stored, check, kind_of, part_of
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import DenseTargets, Head, LogitTargets, SampledTargets, Targets, TopKTargets

CHUNK_POSITIONS = 512
GROUP_POSITIONS = 1024  # positions whose gradients wait for one product into the weight; a constant, not the batch


def term_sums(
    terms: Sequence[Term],
    *,
    scales: Mapping[str, Scale],
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor | None,
    next_ids_N: Tensor,
    stored: Stored | None = None,
) -> dict[str, Tensor]:
    """Each term's sum over the positions, with a graph to the student's logits: the readable definition of the loss."""
    sums: dict[str, Tensor] = {}
    for term in terms:
        if term.kind == "divergence" and isinstance(stored, SampledTargets):
            sums[term.name] = soft_cross_entropy(stored, student_logits_NV)
        elif term.kind == "divergence" and isinstance(stored, TopKTargets):
            sums[term.name] = merged_divergence(term, targets=stored, student_logits_NV=student_logits_NV)
        elif term.kind == "divergence":
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
            is_argmax = term.kind == "teacher_argmax"
            ids_N = closed_form.argmax_of(teacher_logits_NV, stored) if is_argmax else next_ids_N
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
    stored: Stored | None = None,
) -> ChunkResult:
    """Any blend of terms on one chunk, by autograd on the plain functions.

    A teacher product without a head is stored logits.
    """
    teacher_logits_NV = None
    if teacher_product_NV is not None:
        with torch.no_grad():
            wide_NV = teacher_product_NV.to(_wide(teacher_product_NV.dtype))
            teacher_logits_NV = teacher_head.finish(teacher_product_NV) if teacher_head is not None else wide_NV
    with torch.set_grad_enabled(gradient):
        product_NV = student_product_NV.detach().requires_grad_(gradient)
        sums = term_sums(
            terms,
            scales=scales,
            student_logits_NV=student_head.finish(product_NV),
            teacher_logits_NV=teacher_logits_NV,
            next_ids_N=next_ids_N,
            stored=stored,
        )
        gradient_NV = None
        if gradient:
            total = sum((scales[name].factor * value for name, value in sums.items()), start=product_NV.new_zeros(()))
            (gradient_NV,) = torch.autograd.grad(total, product_NV)
    return ChunkResult(sums={name: value.detach() for name, value in sums.items()}, gradient_NV=gradient_NV)


ChunkFunction = Callable[..., ChunkResult]


def chunk_function(
    terms: Sequence[Term], *, heads: Sequence[Head | None], targets: Targets | None = None
) -> ChunkFunction:
    """The closed form where it serves these terms, heads and targets, else the plain functions."""
    return closed_form.fused_chunk if closed_form.serves(terms, heads=heads, targets=targets) else plain_chunk


class Workspace:
    """Tensors kept between chunks and steps: the memory of a fresh one costs as much as the product written to it."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def tensor(self, name: str, like: Tensor, *, rows: int, columns: int) -> Tensor:
        """An uninitialised [rows, columns], dtype and device of `like`: the one of before where it is large enough."""
        kept = self._tensors.get(name)
        wanted = (like.dtype, like.device, columns, torch.is_inference_mode_enabled())
        if kept is None or (kept.dtype, kept.device, kept.shape[1], kept.is_inference()) != wanted or len(kept) < rows:
            self._tensors.pop(name, None)
            kept = self._tensors[name] = like.new_empty((rows, columns)).detach()
        return kept[:rows]


@dataclass(slots=True)
class _Job:
    """What one call of the chunked loss works on; sums come back through it."""

    terms: Sequence[Term]
    scales: Mapping[str, Scale]
    student_head: Head
    targets: Targets | None
    offsets: Tensor | None  # of a sample, on the host
    next_ids_N: Tensor
    chunk_positions: int
    chunk: ChunkFunction
    sums: dict[str, Tensor]
    workspace: Workspace

    @property
    def teacher_head(self) -> Head | None:
        return self.targets.head if isinstance(self.targets, DenseTargets) else None

    def teacher_product(self, chunk: slice) -> Tensor | None:
        """Of full targets, [n, V]: the product with the teacher's head, or stored logits."""
        if isinstance(self.targets, LogitTargets):
            logits_NV = self.targets.logits_NV[chunk]
            return logits_NV.float() if logits_NV.dtype == torch.float16 else logits_NV
        if not isinstance(self.targets, DenseTargets):
            return None
        head, n_rows = self.targets.head, chunk.stop - chunk.start
        teacher_NV = self.workspace.tensor("teacher", head.weight_VD, rows=n_rows, columns=head.n_vocabulary)
        return head.product(self.targets.hidden_ND[chunk], out_NV=teacher_NV)

    def stored(self, chunk: slice) -> Stored | None:
        """Of targets that hold a few entries a position, those of the chunk."""
        return part_of(self.targets, chunk, offsets=self.offsets) if isinstance(self.targets, Stored) else None


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
    check(hidden_ND, targets, student_head=student_head, next_ids_N=next_ids_N, terms=terms, scales=scales)
    if isinstance(targets, Stored):
        refuse_unservable(terms, kind=kind_of(targets), temperature=targets.temperature, scales=scales)
    if chunk_positions < 1:
        raise ValueError(f"chunk_positions {chunk_positions}, expected at least 1")
    heads = (student_head, targets.head if isinstance(targets, DenseTargets) else None)
    job = _Job(
        terms=terms,
        scales=scales,
        student_head=student_head,
        targets=targets,
        offsets=targets.offsets.cpu() if isinstance(targets, SampledTargets) else None,
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        chunk=chunk or chunk_function(terms, heads=heads, targets=targets),
        sums={term.name: hidden_ND.new_zeros((), dtype=_wide(hidden_ND.dtype)) for term in terms},
        workspace=workspace or Workspace(),
    )
    needs_gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or student_head.weight_VD.requires_grad)
    total: Tensor = _ChunkedLoss.apply(hidden_ND, student_head.weight_VD, student_head.bias_V, job, needs_gradient)  # type: ignore[no-untyped-call]
    kind = kind_of(targets) if targets is not None else None
    return total, {metric_name(term, kind=kind): job.sums[term.name] for term in terms}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    """Forms every gradient in its forward, group by group; backward only multiplies them by the incoming scalar."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        ctx, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job, needs_gradient: bool
    ) -> Tensor:
        gradients = _Gradients.zero(hidden_ND, weight_VD, bias_V) if needs_gradient else None
        group_positions = max(1, GROUP_POSITIONS // job.chunk_positions) * job.chunk_positions
        for start in range(0, hidden_ND.shape[0], group_positions):
            group = slice(start, min(start + group_positions, hidden_ND.shape[0]))
            gradient_NV = _group_products(hidden_ND.to(weight_VD.dtype), group, job=job, gradient=needs_gradient)
            if gradients is not None:
                gradients.add(gradient_NV, group, head=job.student_head, hidden_ND=hidden_ND, job=job)
        if gradients is not None:
            ctx.gradients = gradients.finish(weight_VD.dtype)
        total = hidden_ND.new_zeros((), dtype=_wide(hidden_ND.dtype))
        for name, value in job.sums.items():
            total = total + job.scales[name].factor * value
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):  # type: ignore[no-untyped-def]
        is_one = grad_total.device.type == "cpu" and grad_total.item() == 1.0
        gradients = [g if g is None or is_one else g.mul_(grad_total.to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return (*gradients, None, None)


def _group_products(hidden_ND: Tensor, group: slice, *, job: _Job, gradient: bool) -> Tensor:
    """Sums of a group's chunks into the job; returns d(total)/d(student product) of the whole group."""
    head = job.student_head
    group_NV = job.workspace.tensor("student", head.weight_VD, rows=group.stop - group.start, columns=head.n_vocabulary)
    for start in range(group.start, group.stop, job.chunk_positions):
        chunk = slice(start, min(start + job.chunk_positions, group.stop))
        product_NV = group_NV[chunk.start - group.start : chunk.stop - group.start]
        result = job.chunk(
            job.terms,
            scales=job.scales,
            student_product_NV=head.product(hidden_ND[chunk], out_NV=product_NV),
            teacher_product_NV=job.teacher_product(chunk),
            student_head=head,
            teacher_head=job.teacher_head,
            next_ids_N=job.next_ids_N[chunk],
            gradient=gradient,
            stored=job.stored(chunk),
        )
        for name, value in result.sums.items():
            job.sums[name] = job.sums[name] + value
        if result.gradient_NV is not None and result.gradient_NV is not product_NV:
            product_NV.copy_(result.gradient_NV)
    return group_NV


@dataclass(slots=True)
class _Gradients:
    """Gradients of hidden states, weight and bias, summed over groups; in float32 or wider as soon as there are two."""

    hidden_ND: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None
    weight_shape: torch.Size

    @classmethod
    def zero(cls, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> "_Gradients":
        """Before the first group."""
        bias_gradient_V = torch.zeros_like(bias_V, dtype=_wide(bias_V.dtype)) if bias_V is not None else None
        return cls(torch.zeros_like(hidden_ND), None, bias_gradient_V, weight_VD.shape)

    def add(self, gradient_NV: Tensor, group: slice, *, head: Head, hidden_ND: Tensor, job: _Job) -> None:
        """The two products of the backward pass, over a group: the larger, the cheaper the sum into the weight's."""
        n_rows = head.n_vocabulary
        weight_VD = head.weight_VD[:n_rows]
        self.hidden_ND[group] = gradient_NV @ weight_VD
        first = self.weight_VD is None
        if self.weight_VD is None:
            one_group = group.start == 0 and group.stop == hidden_ND.shape[0]
            dtype = weight_VD.dtype if one_group else _wide(weight_VD.dtype)
            self.weight_VD = weight_VD.new_empty(self.weight_shape, dtype=dtype)
            self.weight_VD[n_rows:] = 0
        group_hidden_ND = hidden_ND[group].to(weight_VD.dtype)
        if self.weight_VD.dtype == weight_VD.dtype:
            out_VD = self.weight_VD[:n_rows]
            torch.addmm(out_VD, gradient_NV.t(), group_hidden_ND, beta=0 if first else 1, out=out_VD)
        else:
            part_VD = job.workspace.tensor("weight", weight_VD, rows=n_rows, columns=weight_VD.shape[1])
            torch.mm(gradient_NV.t(), group_hidden_ND, out=part_VD)
            self.weight_VD[:n_rows].copy_(part_VD) if first else self.weight_VD[:n_rows].add_(part_VD)
        if self.bias_V is not None:
            self.bias_V[:n_rows] += gradient_NV.sum(0, dtype=self.bias_V.dtype)

    def finish(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """In the dtype of the weight, as autograd wants them."""
        if self.weight_VD is None:
            self.weight_VD = self.hidden_ND.new_zeros(self.weight_shape, dtype=dtype)
        return self.hidden_ND, self.weight_VD.to(dtype), self.bias_V.to(dtype) if self.bias_V is not None else None
