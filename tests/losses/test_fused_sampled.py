"""The closed form of a chunk whose teacher is a sample, compiled and plain, against autograd in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.losses.stored_targets import random_entries, run, sampled, soft
from tests.losses.test_fused import N_COLUMNS, N_ROWS, TOLERANCE, products, relative_error, way
from tutelage.losses import fused
from tutelage.losses.fused import FusedResult, HardTerm
from tutelage.losses.fused_sampled import chunk_loss_and_gradient
from tutelage.losses.terms import Term
from tutelage.types import SampledTargets

__all__ = ["way"]  # the fixture: every test runs on both ways
SCALES = {"soft_scale": 0.7, "student_head_scale": 0.9}


def sample(*, temperature: float = 1.0) -> SampledTargets:
    """Ragged; one token is in all positions but one."""
    entries = random_entries(N_ROWS, n_columns=N_COLUMNS, most=12)
    entries = [{i: w / 2 for i, w in entry.items()} | {2050: 0.5} if n else entry for n, entry in enumerate(entries)]
    made = sampled(entries, temperature=temperature)
    return replace(made, weights_M=made.weights_M.float())


def hard_terms(targets: SampledTargets, n: int) -> list[HardTerm]:
    """The first names a token of the sample in each row, the second another one but in row 0."""
    picked_N = targets.ids_M[targets.offsets[:-1]]
    other_N = picked_N.clone()
    other_N[1:] = (other_N[1:] + 2048) % N_COLUMNS
    return [HardTerm(ids_N=picked_N, scale=0.3), HardTerm(ids_N=other_N, scale=0.5)][:n]


def reference(student_NV: Tensor, targets: SampledTargets, hard: list[HardTerm]) -> tuple[float, list[float], Tensor]:
    """By the definition, entry by entry, in float64, with autograd's gradient."""
    product_NV = student_NV.double().requires_grad_()
    logits_NV = product_NV * SCALES["student_head_scale"]
    logp_NV = torch.log_softmax(logits_NV / targets.temperature, -1)
    total_soft = logits_NV.new_zeros(())
    for n in range(N_ROWS):
        for m in range(int(targets.offsets[n]), int(targets.offsets[n + 1])):
            total_soft = total_soft - targets.weights_M[m].double() * logp_NV[n, targets.ids_M[m]]
    crosses = [torch.nn.functional.cross_entropy(logits_NV, term.ids_N, reduction="sum") for term in hard]
    total = SCALES["soft_scale"] * total_soft + sum(
        term.scale * value for term, value in zip(hard, crosses, strict=True)
    )
    (gradient_NV,) = torch.autograd.grad(total, product_NV)
    return total_soft.item(), [value.item() for value in crosses], gradient_NV


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("n_hard", [0, 1, 2])
def test_losses_and_gradient_are_those_of_the_definition(n_hard: int, temperature: float, dtype: torch.dtype) -> None:
    student_NV, targets = products(dtype)[0], sample(temperature=temperature)
    hard = hard_terms(targets, n_hard)
    found = chunk_loss_and_gradient(student_NV, targets, hard=hard, **SCALES)
    soft_sum, crosses, gradient_NV = reference(student_NV, targets, hard)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert found.soft_sum.item() == pytest.approx(soft_sum, rel=tolerance)
    assert found.hard_sums_H.tolist() == pytest.approx(crosses, rel=tolerance)
    assert found.gradient_NV is not None
    assert found.gradient_NV.dtype == dtype
    if dtype == torch.bfloat16:  # each element is rounded once, at the end: off by half a step of its own at most
        error_NV = (found.gradient_NV.double() - gradient_NV).abs()
        assert (error_NV <= 2**-8 * gradient_NV.abs() + 1e-7).all()
    else:
        assert relative_error(found.gradient_NV, gradient_NV) < TOLERANCE[dtype]


@pytest.mark.parametrize("chunk_positions", [1, 5, 100])
def test_chunks_of_the_compiled_loop_see_their_own_entries(chunk_positions: int) -> None:
    targets, terms = sampled(random_entries(), temperature=2.0), [soft(temperature=2.0), Term(kind="ground_truth")]
    _, expected = run(targets, terms)
    _, found = run(targets, terms, dtype=torch.float32, chunk_positions=chunk_positions)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-6


def test_blocks_of_the_plain_way_see_their_own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    student_NV, targets = products(torch.float64)[0], sample()
    whole = chunk_loss_and_gradient(student_NV, targets, hard=hard_terms(targets, 1))
    monkeypatch.setattr(fused, "BLOCK_ELEMENTS", 2 * N_COLUMNS)
    blocks = chunk_loss_and_gradient(student_NV, targets, hard=hard_terms(targets, 1))
    assert whole.gradient_NV is not None
    assert blocks.gradient_NV is not None
    assert relative_error(blocks.gradient_NV, whole.gradient_NV) < 1e-15
    assert blocks.soft_sum.item() == pytest.approx(whole.soft_sum.item(), rel=1e-15)


def test_an_id_named_twice_in_a_position_counts_with_both_weights() -> None:
    student_NV, targets = products(torch.float32)[0], sample()
    ids_M = targets.ids_M.clone()
    last = int(targets.offsets[1]) - 1
    ids_M[last] = ids_M[0]
    targets = replace(targets, ids_M=ids_M)
    found = chunk_loss_and_gradient(student_NV, targets, **SCALES)
    assert found.gradient_NV is not None
    assert relative_error(found.gradient_NV, reference(student_NV, targets, [])[2]) < TOLERANCE[torch.float32]


def test_a_position_without_entries_asks_nothing() -> None:
    student_NV, targets = products(torch.float32)[0], sampled([{3: 1.0}, {}, {5: 0.5, 4: 0.5}, {}, {}])
    found = chunk_loss_and_gradient(student_NV, targets)
    assert found.gradient_NV is not None
    assert found.gradient_NV.abs().sum(-1).bool().tolist() == [True, False, True, False, False]


def test_the_student_product_may_be_overwritten_and_threads_change_no_bit() -> None:
    student_NV, targets = products(torch.bfloat16)[0], sample()
    hard = hard_terms(targets, 1)

    def with_threads(n_threads: int) -> FusedResult:
        previous = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            return chunk_loss_and_gradient(student_NV, targets, hard=hard)
        finally:
            torch.set_num_threads(previous)

    one, three = with_threads(1), with_threads(3)
    inside = chunk_loss_and_gradient(student_NV, targets, hard=hard, out_NV=student_NV)
    assert inside.gradient_NV is student_NV
    assert one.gradient_NV is not None
    assert three.gradient_NV is not None
    assert torch.equal(one.gradient_NV, student_NV)
    assert torch.equal(one.gradient_NV, three.gradient_NV)
    assert one.soft_sum == three.soft_sum == inside.soft_sum


def test_without_gradient_nothing_is_written() -> None:
    student_NV, targets = products(torch.bfloat16)[0], sample()
    before_NV = student_NV.clone()
    found = chunk_loss_and_gradient(student_NV, targets, gradient=False)
    assert found.gradient_NV is None
    assert torch.equal(student_NV, before_NV)
    assert found.soft_sum == chunk_loss_and_gradient(student_NV, targets).soft_sum


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_number_makes_its_row_not_finite_and_no_other(dtype: torch.dtype, bad: float) -> None:
    student_NV, targets = products(dtype)[0], sample()
    student_NV[2, 3000] = bad
    found = chunk_loss_and_gradient(student_NV, targets, hard=hard_terms(targets, 1))
    assert not found.soft_sum.isfinite()
    assert found.gradient_NV is not None
    assert found.gradient_NV.isfinite().all(-1).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("token", [-1, N_COLUMNS])
def test_a_token_outside_the_vocabulary_is_refused_and_memory_untouched(token: int) -> None:
    targets = sample()
    ids_M = targets.ids_M.clone()
    ids_M[0] = token
    with pytest.raises(IndexError, match=str(N_COLUMNS - 1)):
        chunk_loss_and_gradient(products(torch.bfloat16)[0], replace(targets, ids_M=ids_M))
