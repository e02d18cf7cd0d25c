"""The closed form of a chunk whose teacher is a top k with a tail: forward KL on K + 1 outcomes, on a CPU.

    d total / d student product = s * (soft_scale / T * (q_T * sum of p - p) + sum of hard_scale * (q_1 - one_hot))

with p the kept probabilities at their ids and p_tail * q / q_tail at each other token.  Compiled only: elsewhere the
plain chunk serves (`stored.merged_divergence`, which a test holds equal to this).

Shape legend: N positions of the chunk, V vocabulary, K kept ids, H hard terms.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any  # the arguments of a numba function, which is untyped

import torch
from torch import Tensor

from tutelage.losses import fused
from tutelage.losses.fused import FusedResult, HardTerm
from tutelage.types import TopKTargets


def chunk_loss_and_gradient(
    student_NV: Tensor,
    top_k: TopKTargets,
    *,
    hard: Sequence[HardTerm] = (),
    soft_scale: float = 1.0,
    student_head_scale: float = 1.0,
    gradient: bool = True,
    out_NV: Tensor | None = None,
) -> FusedResult:
    """Losses and gradient of one chunk from the product of the student's head, [N, V]; as in `fused_sampled.py`.

    For what `fused.is_compiled` serves.  `soft_sum` is the divergence at the temperature of the targets.
    """
    factors = (student_head_scale / top_k.temperature, 1.0, student_head_scale)
    ids_HN = fused.hard_ids(hard, student_NV)
    fused.check(student_NV, None, ids_HN=ids_HN, out_NV=out_NV)
    fused.check(student_NV, None, ids_HN=top_k.ids_NK, out_NV=None)
    if gradient and out_NV is None:
        out_NV = torch.empty_like(student_NV)
    loop, shared = fused.compiled_loop("_fused_top_k_cpu"), fused.compiled_loop()
    assert loop is not None
    assert shared is not None
    losses_NL = torch.zeros(student_NV.shape[0], 1 + ids_HN.shape[0], dtype=torch.float64)
    work: list[Any] = [
        fused.stored_array(student_NV),
        top_k.ids_NK.contiguous().numpy(),
        top_k.logp_NK.to(torch.float32).contiguous().numpy(),
        top_k.tail_logp_N.to(torch.float32).contiguous().numpy(),
        ids_HN.numpy(),
        fused.stored_array(student_NV if out_NV is None else out_NV),
        losses_NL.numpy(),
    ]
    work += shared.numbers(
        factors,
        soft=soft_scale * student_head_scale / top_k.temperature,
        hard=tuple(term.scale * student_head_scale for term in hard),
    )
    fused.over_rows(partial(loop.rows, *work, gradient), n_rows=student_NV.shape[0])
    sums_L = losses_NL.sum(0)
    return FusedResult(soft_sum=sums_L[0], hard_sums_H=sums_L[1:], gradient_NV=out_NV if gradient else None)
