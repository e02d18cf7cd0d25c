"""The closed form of a chunk whose teacher is a sample: soft cross-entropy on a few weighted tokens a position.

    d total / d student product = s * (soft_scale / T * (q_T * sum of w - w) + sum of hard_scale * (q_1 - one_hot))

with w the weights at their ids and 0 elsewhere: one softmax of the student's row, then a few subtractions.  No
distribution of the teacher over the vocabulary is ever made.  The ways (compiled, plain) are those of `fused.py`.

Shape legend: N positions of the chunk, V vocabulary, H hard terms, M entries of all positions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any  # the arguments of a numba function, which is untyped

import torch
from torch import Tensor

from tutelage.losses import fused
from tutelage.losses.fused import FusedResult, HardTerm, Settings
from tutelage.losses.stored import positions_of
from tutelage.losses.targets import part_of
from tutelage.types import SampledTargets


def chunk_loss_and_gradient(
    student_NV: Tensor,
    sampled: SampledTargets,
    *,
    hard: Sequence[HardTerm] = (),
    soft_scale: float = 1.0,
    student_head_scale: float = 1.0,
    gradient: bool = True,
    out_NV: Tensor | None = None,
) -> FusedResult:
    """Losses and gradient of one chunk from the product of the student's head, [N, V].

    `soft_sum` is the soft cross-entropy at the sample's temperature, `soft_scale` weight * T**2 / count.  `out_NV`
    receives the gradient and may be `student_NV` itself.  A product that is not finite makes the loss of its row NaN.
    """
    settings = Settings(
        factors=(student_head_scale / sampled.temperature, 1.0, student_head_scale),
        soft=soft_scale * student_head_scale / sampled.temperature,
        hard=tuple(term.scale * student_head_scale for term in hard),
    )
    ids_HN = fused.hard_ids(hard, student_NV)
    fused.check(student_NV, None, ids_HN=ids_HN, out_NV=out_NV)
    fused.check(student_NV, None, ids_HN=sampled.ids_M, out_NV=None)
    if gradient and out_NV is None:
        out_NV = torch.empty_like(student_NV)
    run = _compiled if fused.is_compiled(student_NV) else _plain
    with torch.no_grad():
        sums_L = run(student_NV, sampled, ids_HN, settings, out_NV if gradient else None).sum(0)
    return FusedResult(soft_sum=sums_L[0], hard_sums_H=sums_L[1:], gradient_NV=out_NV if gradient else None)


def _compiled(
    student_NV: Tensor, sampled: SampledTargets, ids_HN: Tensor, settings: Settings, out_NV: Tensor | None
) -> Tensor:
    """Losses [N, 1 + H] by the compiled loop."""
    loop, shared = fused.compiled_loop("_fused_sampled_cpu"), fused.compiled_loop()
    assert loop is not None
    assert shared is not None
    losses_NL = torch.zeros(student_NV.shape[0], 1 + ids_HN.shape[0], dtype=torch.float64)
    work: list[Any] = [
        fused.stored_array(student_NV),
        sampled.ids_M.contiguous().numpy(),
        sampled.weights_M.to(torch.float32).contiguous().numpy(),
        sampled.offsets.contiguous().numpy(),
        ids_HN.numpy(),
        fused.stored_array(student_NV if out_NV is None else out_NV),
        losses_NL.numpy(),
    ]
    work += shared.numbers(settings.factors, soft=settings.soft, hard=settings.hard)
    fused.over_rows(partial(loop.rows, *work, out_NV is not None), n_rows=student_NV.shape[0])
    return losses_NL


def _plain(
    student_NV: Tensor, sampled: SampledTargets, ids_HN: Tensor, settings: Settings, out_NV: Tensor | None
) -> Tensor:
    """Losses [N, 1 + H] by PyTorch operations on blocks of rows that fit the cache (whole chunks on an accelerator)."""
    n_rows, n_columns = student_NV.shape
    rows = max(1, fused.BLOCK_ELEMENTS // n_columns) if student_NV.device.type == "cpu" else n_rows
    losses_NL = student_NV.new_zeros((n_rows, 1 + ids_HN.shape[0]), dtype=torch.float64)
    for first in range(0, n_rows, rows):
        block = slice(first, min(first + rows, n_rows))
        part = part_of(sampled, block, offsets=None) if rows < n_rows else sampled
        assert isinstance(part, SampledTargets)
        gradient = _plain_block(student_NV[block], part, ids_HN[:, block], settings, losses_NL[block])
        if out_NV is not None:
            out_NV[block] = gradient
    return losses_NL


def _plain_block(
    student_NV: Tensor, sampled: SampledTargets, ids_HN: Tensor, settings: Settings, losses_NL: Tensor
) -> Tensor:
    """The gradient of a block in float32 or wider; its losses are written to `losses_NL`."""
    wide_NV = student_NV.to(torch.promote_types(student_NV.dtype, torch.float32))
    soft_factor, _, hard_factor = settings.factors
    rows_M, weights_M = positions_of(sampled), sampled.weights_M.to(wide_NV.dtype)
    logp_NV = torch.log_softmax(wide_NV * soft_factor, -1)
    soft_M = -(weights_M * logp_NV[rows_M, sampled.ids_M])
    losses_NL[:, 0].index_add_(0, rows_M, soft_M.to(losses_NL.dtype))
    mass_N = weights_M.new_zeros(len(student_NV)).index_add_(0, rows_M, weights_M)
    if ids_HN.shape[0]:
        hard_logp_NV = logp_NV if soft_factor == hard_factor else torch.log_softmax(wide_NV * hard_factor, -1)
        losses_NL[:, 1:] = -hard_logp_NV.gather(1, ids_HN.T)
        hard_NV = hard_logp_NV.exp().mul_(sum(settings.hard))
        for ids_N, scale in zip(ids_HN, settings.hard, strict=True):
            hard_NV.scatter_add_(1, ids_N[:, None], hard_NV.new_full((len(ids_N), 1), -scale))
    gradient_NV = logp_NV.exp_().mul_(mass_N[:, None])
    gradient_NV.index_put_((rows_M, sampled.ids_M), -weights_M, accumulate=True)
    gradient_NV.mul_(settings.soft)
    return gradient_NV.add_(hard_NV) if ids_HN.shape[0] else gradient_NV
