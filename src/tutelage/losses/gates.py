"""Trust in a teacher by the token: it is followed where it gives the true token more probability than the student does.

A teacher that is itself still learning is right about some tokens long before others.  The rule costs a pass over both
products, and leaves the sums what they are: means over all positions, with zeros where the teacher was not asked.

Shape legend: N positions of the chunk, R those where the teacher is trusted, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.losses.support import log_softmax
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import Head

TRUSTED = ".trusted"  # after a term's name: at how many positions its teacher was asked


def gated(function: Callable[..., ChunkResult]) -> Callable[..., ChunkResult]:
    """The chunk function that asks the teacher of `per_token` terms only where it is the better one."""

    def chunk(
        terms: Sequence[Term],
        *,
        scales: Mapping[str, Scale],
        student_product_NV: Tensor,
        teacher_product_NV: Tensor,
        student_head: Head,
        teacher_head: Head | None,
        next_ids_N: Tensor,
        gradient: bool,
        **more: Any,
    ) -> ChunkResult:
        trusted_N = truth(student_product_NV, student_head, next_ids_N) < truth(
            teacher_product_NV, teacher_head, next_ids_N
        )
        always = [term for term in terms if term.trust != "per_token"]
        gradient_NV = torch.zeros_like(student_product_NV) if gradient else None
        sums: dict[str, Tensor] = {}
        for rows_R, asked in ((trusted_N, terms), (~trusted_N, always)):
            index_R = rows_R.nonzero().squeeze(-1)
            if not len(index_R) or not asked:
                continue
            result = function(
                asked, scales=scales, student_product_NV=student_product_NV[index_R],
                teacher_product_NV=teacher_product_NV[index_R], student_head=student_head, teacher_head=teacher_head,
                next_ids_N=next_ids_N[index_R], gradient=gradient, **more,
            )  # fmt: skip
            for name, value in result.sums.items():
                sums[name] = sums[name] + value if name in sums else value
            if gradient_NV is not None and result.gradient_NV is not None:
                gradient_NV[index_R] = result.gradient_NV
        counts = {term.name + TRUSTED: trusted_N.sum().double() for term in terms if term.trust == "per_token"}
        return ChunkResult(sums=sums | counts, gradient_NV=gradient_NV)

    return chunk


def truth(product_NV: Tensor, head: Head | None, next_ids_N: Tensor) -> Tensor:
    """log p of the true token, shape [N], in nats."""
    logits_NV = head.finish(product_NV) if head is not None else product_NV
    return log_softmax(logits_NV).gather(1, next_ids_N[:, None]).squeeze(1)
