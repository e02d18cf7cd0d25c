"""The closed form of a chunk: forward KL and cross-entropies from the bare head products, with their gradient.

    d total / d student product = s * (soft_scale / T * (q_T - p_T) + sum of hard_scale * (q_1 - one_hot))

with s the scale of the student's head.  On a CPU a compiled loop (`_fused_cpu.py`) reads each row once; elsewhere, and
for dtypes that it lacks, the same formula runs as plain PyTorch on blocks of rows.  Softmax and losses are float32 or
wider on both ways.  Student and teacher pass through identical operations, so that equal products give a divergence and
a soft gradient of exactly 0.

Shape legend: N positions of the chunk, V vocabulary, H hard terms.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from types import ModuleType
from typing import Any  # the arguments of a numba function, which is untyped

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 18  # of each tensor in a block of rows of the plain way: a few of them fit a core's cache
_STORED_AS = {torch.bfloat16: torch.int16, torch.float32: torch.float32}  # what numba sees; others go the plain way


@dataclass(frozen=True, slots=True, kw_only=True)
class HardTerm:
    """Cross-entropy against one token a position; `scale` is weight / count."""

    ids_N: Tensor
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedResult:
    """Plain sums over the chunk's positions (float64, nats), and the scaled gradient of the student's product."""

    soft_sum: Tensor  # sum of KL(p_T || q_T), 0 without a teacher
    hard_sums_H: Tensor
    gradient_NV: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Factors from products to logits / T of student, teacher, and student at T = 1; multipliers of the gradient."""

    factors: tuple[float, float, float]
    soft: float
    hard: tuple[float, ...]


def chunk_loss_and_gradient(
    student_NV: Tensor,
    teacher_NV: Tensor | None,
    *,
    hard: Sequence[HardTerm] = (),
    soft_scale: float = 0.0,
    temperature: float = 1.0,
    student_head_scale: float = 1.0,
    teacher_head_scale: float = 1.0,
    gradient: bool = True,
    out_NV: Tensor | None = None,
) -> FusedResult:
    """Losses and gradient of one chunk from the products of both heads, [N, V] each.

    `soft_scale` is what multiplies `soft_sum` in the total: weight * T**2 / count.  `out_NV` receives the gradient and
    may be `student_NV` itself (its values are then gone), which saves a buffer and a third of the memory traffic.
    Heads with a soft-cap belong to the plain chunk, a sampled teacher to `fused_sampled.py`.  A product that is not
    finite makes the loss of its row NaN.
    """
    temperature = temperature if teacher_NV is not None else 1.0
    settings = Settings(
        factors=(student_head_scale / temperature, teacher_head_scale / temperature, student_head_scale),
        soft=soft_scale * student_head_scale / temperature,
        hard=tuple(term.scale * student_head_scale for term in hard),
    )
    ids_HN = hard_ids(hard, student_NV)
    check(student_NV, teacher_NV, ids_HN=ids_HN, out_NV=out_NV)
    if gradient and out_NV is None:
        out_NV = torch.empty_like(student_NV)
    run = _compiled if is_compiled(student_NV, teacher_NV) else _plain
    with torch.no_grad():
        sums_L = run(student_NV, teacher_NV, ids_HN, settings, out_NV if gradient else None).sum(0)
    return FusedResult(soft_sum=sums_L[0], hard_sums_H=sums_L[1:], gradient_NV=out_NV if gradient else None)


def is_compiled(*products_NV: Tensor | None) -> bool:
    """Whether the compiled loop serves these products: on a CPU, bfloat16 or float32, numba installed."""
    present = [product_NV for product_NV in products_NV if product_NV is not None]
    return all(p.device.type == "cpu" and p.dtype in _STORED_AS for p in present) and compiled_loop() is not None


@cache
def compiled_loop(name: str = "_fused_cpu") -> ModuleType | None:
    """The module of a compiled loop, None without numba."""
    return importlib.import_module(f"tutelage.losses.{name}") if importlib.util.find_spec("numba") else None


def hard_ids(hard: Sequence[HardTerm], student_NV: Tensor) -> Tensor:
    """The tokens of the hard terms as one int64 tensor [H, N], on the student's device."""
    ids_HN = student_NV.new_zeros((len(hard), student_NV.shape[0]), dtype=torch.int64)
    for row_N, term in zip(ids_HN, hard, strict=True):
        row_N.copy_(term.ids_N)
    return ids_HN


def check(student_NV: Tensor, teacher_NV: Tensor | None, *, ids_HN: Tensor, out_NV: Tensor | None) -> None:
    """The compiled loop writes where it is told: what does not fit must not reach it."""
    if teacher_NV is not None and teacher_NV.shape != student_NV.shape:
        raise ValueError(
            f"teacher product {tuple(teacher_NV.shape)}, expected {tuple(student_NV.shape)}, the student's"
        )
    if out_NV is not None and (out_NV.shape, out_NV.dtype) != (student_NV.shape, student_NV.dtype):
        expected = f"{tuple(student_NV.shape)} {student_NV.dtype}"
        raise ValueError(f"output {tuple(out_NV.shape)} {out_NV.dtype}, expected {expected}, the student product's")
    if out_NV is not None and not out_NV.is_contiguous():
        raise ValueError(f"output with strides {out_NV.stride()}, expected a contiguous tensor")
    if ids_HN.numel() and not 0 <= int(ids_HN.min()) <= int(ids_HN.max()) < student_NV.shape[1]:
        found = f"{int(ids_HN.min())} to {int(ids_HN.max())}"
        raise IndexError(f"token ids from {found}, expected 0 to {student_NV.shape[1] - 1}")


def _compiled(
    student_NV: Tensor, teacher_NV: Tensor | None, ids_HN: Tensor, settings: Settings, out_NV: Tensor | None
) -> Tensor:
    """Losses [N, 1 + H] by the compiled loop; rows are shared among torch's threads, whose number changes no bit."""
    loop = compiled_loop()
    assert loop is not None
    n_rows = student_NV.shape[0]
    losses_NL = torch.zeros(n_rows, 1 + ids_HN.shape[0], dtype=torch.float64)

    work: list[Any] = [
        stored_array(student_NV),
        stored_array(student_NV if teacher_NV is None else teacher_NV),
        ids_HN.numpy(),
        stored_array(student_NV if out_NV is None else out_NV),
        losses_NL.numpy(),
    ]
    work += loop.numbers(settings.factors, soft=settings.soft, hard=settings.hard)
    work += [teacher_NV is not None, out_NV is not None]
    over_rows(partial(loop.rows, *work), n_rows=n_rows)
    return losses_NL


def stored_array(product_NV: Tensor) -> Any:
    """A product as the compiled loop takes it: bfloat16 as its bits."""
    return product_NV.detach().contiguous().view(_STORED_AS[product_NV.dtype]).numpy()


def over_rows(work: Callable[[int, int], object], *, n_rows: int) -> None:
    """`work(first, last)` over all rows, which torch's threads share."""
    n_threads = max(1, min(torch.get_num_threads(), n_rows))
    edges = [n_rows * i // n_threads for i in range(n_threads + 1)]
    pool = _pool(os.getpid(), n_threads)
    others = [pool.submit(work, first, last) for first, last in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for future in others:
        future.result()


@cache
def _pool(process_id: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork does not inherit them, hence the process id in the key."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="tutelage-fused")


def _plain(
    student_NV: Tensor, teacher_NV: Tensor | None, ids_HN: Tensor, settings: Settings, out_NV: Tensor | None
) -> Tensor:
    """Losses [N, 1 + H] by PyTorch operations on blocks of rows that fit the cache (whole chunks on an accelerator)."""
    n_rows, n_columns = student_NV.shape
    rows = max(1, BLOCK_ELEMENTS // n_columns) if student_NV.device.type == "cpu" else n_rows
    losses_NL = student_NV.new_zeros((n_rows, 1 + ids_HN.shape[0]), dtype=torch.float64)
    for first in range(0, n_rows, rows):
        block = slice(first, min(first + rows, n_rows))
        teacher = teacher_NV[block] if teacher_NV is not None else None
        gradient = _plain_block(student_NV[block], teacher, ids_HN[:, block], settings, losses_NL[block])
        if out_NV is not None:
            out_NV[block] = gradient
    return losses_NL


def _plain_block(
    student_NV: Tensor, teacher_NV: Tensor | None, ids_HN: Tensor, settings: Settings, losses_NL: Tensor
) -> Tensor:
    """The gradient of a block in float32 or wider; its losses are written to `losses_NL`."""
    wide = torch.promote_types(student_NV.dtype, torch.float32)
    student_factor, teacher_factor, hard_factor = settings.factors
    gradient_NV = torch.zeros_like(student_NV, dtype=wide)
    if teacher_NV is not None:
        student_logp_NV = torch.log_softmax(student_NV.to(wide) * student_factor, -1)
        teacher_logp_NV = torch.log_softmax(teacher_NV.to(wide) * teacher_factor, -1)
        teacher_p_NV = teacher_logp_NV.exp()
        losses_NL[:, 0] = (teacher_p_NV * (teacher_logp_NV - student_logp_NV)).sum(-1)
        gradient_NV = (student_logp_NV.exp_() - teacher_p_NV).mul_(settings.soft)
    if ids_HN.shape[0]:
        logp_NV = torch.log_softmax(student_NV.to(wide) * hard_factor, -1)
        losses_NL[:, 1:] = -logp_NV.gather(1, ids_HN.T)
        gradient_NV.add_(logp_NV.exp_(), alpha=sum(settings.hard))
        for ids_N, scale in zip(ids_HN, settings.hard, strict=True):
            gradient_NV.scatter_add_(1, ids_N[:, None], gradient_NV.new_full((len(ids_N), 1), -scale))
    return gradient_NV
