"""Which blends of terms have a closed form, and a chunk of such a blend, by the kind of its targets.

Shape legend: N positions of the chunk, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tutelage.losses import fused, fused_sampled, fused_top_k
from tutelage.losses.fused import FusedResult, HardTerm
from tutelage.losses.targets import Stored
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import Head, SampledTargets, Targets, TopKTargets

_SPARSE: dict[type, Callable[..., FusedResult]] = {
    SampledTargets: fused_sampled.chunk_loss_and_gradient,
    TopKTargets: fused_top_k.chunk_loss_and_gradient,
}
_NO_PROBABILITY = -1e5  # a logit whose exponential is 0 at any temperature, but 0 times it is no NaN


def serves(terms: Sequence[Term], *, heads: Sequence[Head | None], targets: Targets | None = None) -> bool:
    """Whether these terms, heads and targets have a closed form here.

    At most one forward KL (on a merged tail only where it is compiled), any cross-entropies, no soft-cap.
    """
    divergences = [term.divergence for term in terms if term.kind == "divergence"]
    plain_heads = all(head is None or (head.soft_cap is None and head.scale > 0) for head in heads)
    if divergences and isinstance(targets, TopKTargets):
        student = heads[0]  # whose product has the dtype and the device of its weight
        plain_heads = plain_heads and student is not None and fused.is_compiled(student.weight_VD)
    return divergences in ([], ["forward_kl"]) and plain_heads


def fused_chunk(
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
    """Each term's plain sum, and the gradient of the total, which overwrites `student_product_NV`."""
    soft = next((term for term in terms if term.kind == "divergence"), None)
    if teacher_product_NV is not None and teacher_head is None:  # stored logits, where -inf is a token of probability 0
        teacher_product_NV = teacher_product_NV.masked_fill(teacher_product_NV == -torch.inf, _NO_PROBABILITY)
    hard_terms = [term for term in terms if term.kind != "divergence"]
    hard = [
        HardTerm(
            ids_N=argmax_of(teacher_product_NV, stored) if term.kind == "teacher_argmax" else next_ids_N,
            scale=scales[term.name].factor,
        )
        for term in hard_terms
    ]
    out_NV = student_product_NV if gradient else None
    result: FusedResult
    if soft is not None and stored is not None:
        result = _SPARSE[type(stored)](
            student_product_NV,
            stored,
            hard=hard,
            soft_scale=scales[soft.name].factor,
            student_head_scale=student_head.scale,
            gradient=gradient,
            out_NV=out_NV,
        )
    else:
        result = fused.chunk_loss_and_gradient(
            student_product_NV,
            teacher_product_NV if soft is not None else None,
            hard=hard,
            soft_scale=scales[soft.name].factor if soft is not None else 0.0,
            temperature=scales[soft.name].temperature if soft is not None else 1.0,
            student_head_scale=student_head.scale,
            teacher_head_scale=teacher_head.scale if teacher_head is not None else 1.0,
            gradient=gradient,
            out_NV=out_NV,
        )
    sums = {term.name: value for term, value in zip(hard_terms, result.hard_sums_H, strict=True)}
    if soft is not None:
        sums[soft.name] = result.soft_sum
    return ChunkResult(sums=sums, gradient_NV=result.gradient_NV)


def argmax_of(teacher_NV: Tensor | None, stored: Stored | None) -> Tensor:
    """The teacher's most likely tokens, shape [N]: the first kept ones, or the largest logits (or head products)."""
    if isinstance(stored, TopKTargets):
        return stored.ids_NK[:, 0]
    assert teacher_NV is not None, "a sample does not know it: refused before"
    return teacher_NV.argmax(-1)
