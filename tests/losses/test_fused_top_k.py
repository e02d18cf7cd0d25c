"""The compiled loop of a top k with a tail against the plain definition in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.losses.stored_targets import V, draw, run, soft, top_k
from tests.losses.test_fused import N_COLUMNS, N_ROWS, TOLERANCE, products, relative_error
from tutelage.losses.fused import HardTerm
from tutelage.losses.fused_top_k import chunk_loss_and_gradient
from tutelage.losses.stored import merged_divergence
from tutelage.losses.terms import Term
from tutelage.types import TopKTargets

pytest.importorskip("numba")
SCALES = {"soft_scale": 0.7, "student_head_scale": 0.9}


def hard_terms(targets: TopKTargets, n: int) -> list[HardTerm]:
    """The first names a kept token of each row, the second another one."""
    kept_N = targets.ids_NK[:, 1]
    return [HardTerm(ids_N=kept_N, scale=0.3), HardTerm(ids_N=(kept_N + 2048) % N_COLUMNS, scale=0.5)][:n]


def reference(student_NV: Tensor, targets: TopKTargets, hard: list[HardTerm]) -> tuple[float, list[float], Tensor]:
    product_NV = student_NV.double().requires_grad_()
    logits_NV = product_NV * SCALES["student_head_scale"]
    divergence = merged_divergence(soft(), targets=targets, student_logits_NV=logits_NV)
    crosses = [torch.nn.functional.cross_entropy(logits_NV, term.ids_N, reduction="sum") for term in hard]
    total = SCALES["soft_scale"] * divergence + sum(t.scale * value for t, value in zip(hard, crosses, strict=True))
    (gradient_NV,) = torch.autograd.grad(total, product_NV)
    return divergence.item(), [value.item() for value in crosses], gradient_NV


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("n_hard", [0, 1, 2])
@pytest.mark.parametrize("k", [2, 40, N_COLUMNS])
def test_losses_and_gradient_are_those_of_the_definition(
    k: int, n_hard: int, temperature: float, dtype: torch.dtype
) -> None:
    student_NV, teacher_NV, _ = products(dtype)
    targets = top_k(teacher_NV.double(), k, temperature=temperature)
    targets = replace(targets, logp_NK=targets.logp_NK.float(), tail_logp_N=targets.tail_logp_N.float())
    hard = hard_terms(targets, n_hard)
    found = chunk_loss_and_gradient(student_NV, targets, hard=hard, **SCALES)
    divergence, crosses, gradient_NV = reference(student_NV, targets, hard)
    assert found.soft_sum.item() == pytest.approx(divergence, rel=1e-5)
    assert found.hard_sums_H.tolist() == pytest.approx(crosses, rel=1e-6)
    assert found.gradient_NV is not None
    if dtype == torch.bfloat16:  # each element is rounded once, at the end: off by half a step of its own at most
        assert ((found.gradient_NV.double() - gradient_NV).abs() <= 2**-8 * gradient_NV.abs() + 1e-6).all()
    else:
        assert relative_error(found.gradient_NV, gradient_NV) < 3 * TOLERANCE[dtype]


def test_the_tail_of_a_sure_student_is_summed_and_not_taken_from_one() -> None:
    student_NV, teacher_NV, _ = products(torch.float32)
    targets = top_k(teacher_NV.double(), 3)
    student_NV.scatter_add_(1, targets.ids_NK[:, :1], torch.full((N_ROWS, 1), 60.0))  # a tail of about e-18
    found = chunk_loss_and_gradient(student_NV, targets, **SCALES)
    divergence, _, gradient_NV = reference(student_NV, targets, [])
    assert found.soft_sum.item() == pytest.approx(divergence, rel=1e-6)
    assert found.gradient_NV is not None
    assert relative_error(found.gradient_NV, gradient_NV) < 1e-5


def test_renormalised_targets_leave_no_tail_to_either_side() -> None:
    student_NV, teacher_NV, _ = products(torch.float32)
    targets = top_k(teacher_NV.double(), 3, tail=False)
    found = chunk_loss_and_gradient(student_NV, targets, **SCALES)
    divergence, _, gradient_NV = reference(student_NV, targets, [])
    assert found.soft_sum.item() == pytest.approx(divergence, rel=1e-6)
    assert found.gradient_NV is not None
    assert relative_error(found.gradient_NV, gradient_NV) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("chunk_positions", [5, 100])
def test_the_chunked_loss_in_float32_is_that_of_float64(chunk_positions: int) -> None:
    targets = top_k(3 * draw(13, V, seed=1), 5, temperature=2.0)
    terms = [soft(temperature=2.0), Term(kind="ground_truth"), Term(kind="teacher_argmax")]
    _, expected = run(targets, terms)
    _, found = run(targets, terms, dtype=torch.float32, chunk_positions=chunk_positions)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-6


def test_a_bad_number_makes_its_row_not_finite_and_no_other() -> None:
    student_NV, teacher_NV, _ = products(torch.bfloat16)
    targets = top_k(teacher_NV.double(), 3)
    student_NV[2, 3000] = torch.nan
    found = chunk_loss_and_gradient(student_NV, targets)
    assert not found.soft_sum.isfinite()
    assert found.gradient_NV is not None
    assert found.gradient_NV.isfinite().all(-1).tolist() == [True, True, False, True, True]
