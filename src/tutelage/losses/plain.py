"""Any blend of terms on one chunk, from plain functions: the readable definition of the loss.

Shape legend: N positions of the chunk, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.losses import closed_form, divergences
from tutelage.losses.stored import merged_divergence, soft_cross_entropy
from tutelage.losses.support import log_softmax, wide
from tutelage.losses.targets import Stored
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import Head, SampledTargets, TopKTargets


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
            wide_NV = teacher_product_NV.to(wide(teacher_product_NV.dtype))
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
