"""The closed form of a chunk, compiled and plain, against autograd in float64."""

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses import fused
from tutelage.losses.fused import FusedResult, HardTerm, chunk_loss_and_gradient

N_ROWS, N_COLUMNS = 5, 4099  # over two blocks of the compiled loop and a ragged third
# The gradient in the product's own dtype: float32's own error of a sum, and one rounding to bfloat16 (2**-9, rms less).
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-9, torch.float64: 1e-12}


def products(dtype: torch.dtype, *, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student_NV, teacher_NV = torch.randn(2, N_ROWS, N_COLUMNS, generator=generator, dtype=torch.float64) * spread
    return student_NV.to(dtype), teacher_NV.to(dtype), torch.randint(0, N_COLUMNS, (N_ROWS,), generator=generator)


def reference(
    student_NV: Tensor, teacher_NV: Tensor | None, *, hard: list[HardTerm], **options: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Forward KL and cross-entropies by the definition, float64, and autograd's gradient."""
    temperature, soft_scale = options.get("temperature", 1.0), options.get("soft_scale", 0.0)
    product_NV = student_NV.double().requires_grad_()
    logits_NV = product_NV * options.get("student_head_scale", 1.0)
    soft = logits_NV.new_zeros(())
    if teacher_NV is not None:
        teacher_logits_NV = teacher_NV.double() * options.get("teacher_head_scale", 1.0)
        teacher_logp_NV = torch.log_softmax(teacher_logits_NV / temperature, -1)
        student_logp_NV = torch.log_softmax(logits_NV / temperature, -1)
        soft = (teacher_logp_NV.exp() * (teacher_logp_NV - student_logp_NV)).sum()
    crosses = [torch.nn.functional.cross_entropy(logits_NV, term.ids_N, reduction="sum") for term in hard]
    total = soft_scale * soft + sum(term.scale * value for term, value in zip(hard, crosses, strict=True))
    (gradient_NV,) = torch.autograd.grad(total, product_NV)
    return soft.detach(), [value.detach() for value in crosses], gradient_NV


def relative_error(found_NV: Tensor, expected_NV: Tensor) -> float:
    return ((found_NV.double() - expected_NV).norm() / expected_NV.norm()).item()


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(fused, "_STORED_AS", {})  # no dtype is compiled: what a machine without numba runs
    return str(request.param)


BLENDS = {
    "soft": {"soft": True, "n_hard": 0},
    "hard": {"soft": False, "n_hard": 1},
    "soft and hard": {"soft": True, "n_hard": 1},
    "soft and two hard": {"soft": True, "n_hard": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("blend", BLENDS)
def test_losses_and_gradient_are_those_of_the_definition(blend: str, temperature: float, dtype: torch.dtype) -> None:
    student_NV, teacher_NV, ids_N = products(dtype)
    shared_ids_N = ids_N.clone()
    shared_ids_N[1:] = (shared_ids_N[1:] + 2048) % N_COLUMNS  # row 0 has one token in both terms
    hard = [HardTerm(ids_N=ids_N, scale=0.3), HardTerm(ids_N=shared_ids_N, scale=0.5)][: int(BLENDS[blend]["n_hard"])]
    options = {"soft_scale": 0.7, "temperature": temperature, "student_head_scale": 0.9, "teacher_head_scale": 1.1}
    teacher = teacher_NV if BLENDS[blend]["soft"] else None
    found = chunk_loss_and_gradient(student_NV, teacher, hard=hard, **options)
    soft, crosses, gradient_NV = reference(student_NV, teacher, hard=hard, **options)
    assert found.soft_sum.item() == pytest.approx(soft.item(), rel=1e-5, abs=1e-12)
    assert found.hard_sums_H.tolist() == pytest.approx([c.item() for c in crosses], rel=1e-6)
    assert found.gradient_NV is not None
    assert found.gradient_NV.dtype == dtype
    assert relative_error(found.gradient_NV, gradient_NV) < TOLERANCE[dtype]


def test_float64_is_computed_in_float64() -> None:
    student_NV, teacher_NV, ids_N = products(torch.float64)
    hard = [HardTerm(ids_N=ids_N, scale=0.3)]
    found = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=1.0, temperature=2.0)
    soft, _, gradient_NV = reference(student_NV, teacher_NV, hard=hard, soft_scale=1.0, temperature=2.0)
    assert found.soft_sum.item() == pytest.approx(soft.item(), rel=1e-12)
    assert found.gradient_NV is not None
    assert relative_error(found.gradient_NV, gradient_NV) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_equal_products_give_a_loss_and_a_gradient_of_exactly_zero(temperature: float, dtype: torch.dtype) -> None:
    student_NV, _, _ = products(dtype)
    found = chunk_loss_and_gradient(student_NV, student_NV.clone(), soft_scale=0.37, temperature=temperature)
    assert found.soft_sum.item() == 0.0
    assert found.gradient_NV is not None
    assert not found.gradient_NV.any()


def test_a_maximum_in_the_last_column_does_not_change_the_result() -> None:
    """The running maximum rises in the last block: everything summed before must shrink with it."""
    student_NV, teacher_NV, ids_N = products(torch.float32)
    student_NV[:, -1], teacher_NV[:, -1] = 40.0, 38.0
    hard = [HardTerm(ids_N=ids_N, scale=1.0)]
    found = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=1.0)
    soft, crosses, gradient_NV = reference(student_NV, teacher_NV, hard=hard, soft_scale=1.0)
    assert found.soft_sum.item() == pytest.approx(
        soft.item(), abs=1e-6
    )  # itself about 1e-14: rounding of 40 in float32
    assert found.hard_sums_H.item() == pytest.approx(crosses[0].item(), rel=1e-6)
    assert found.gradient_NV is not None
    assert relative_error(found.gradient_NV, gradient_NV) < 1e-6


def test_the_student_product_may_be_overwritten_by_the_gradient() -> None:
    student_NV, teacher_NV, ids_N = products(torch.bfloat16)
    hard = [HardTerm(ids_N=ids_N, scale=0.5)]
    apart = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5)
    inside = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5, out_NV=student_NV)
    assert inside.gradient_NV is student_NV
    assert apart.gradient_NV is not None
    assert torch.equal(apart.gradient_NV, student_NV)
    assert inside.soft_sum == apart.soft_sum
    assert torch.equal(inside.hard_sums_H, apart.hard_sums_H)


def test_without_gradient_nothing_is_written() -> None:
    student_NV, teacher_NV, ids_N = products(torch.bfloat16)
    before_NV = student_NV.clone()
    hard = [HardTerm(ids_N=ids_N, scale=0.5)]
    found = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5, gradient=False)
    assert found.gradient_NV is None
    assert torch.equal(student_NV, before_NV)
    assert found.soft_sum == chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5).soft_sum


@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(n_threads: int) -> None:
    student_NV, teacher_NV, ids_N = products(torch.bfloat16)
    hard = [HardTerm(ids_N=ids_N, scale=0.5)]

    def run(n: int) -> FusedResult:
        previous = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            return chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5)
        finally:
            torch.set_num_threads(previous)

    two, other = run(2), run(n_threads)
    assert two.soft_sum == other.soft_sum
    assert two.gradient_NV is not None
    assert other.gradient_NV is not None
    assert torch.equal(two.gradient_NV, other.gradient_NV)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_number_in_the_student_makes_its_row_not_finite_and_no_other(dtype: torch.dtype, bad: float) -> None:
    student_NV, teacher_NV, ids_N = products(dtype)
    student_NV[2, 3000] = bad
    hard = [HardTerm(ids_N=ids_N, scale=0.5)]
    found = chunk_loss_and_gradient(student_NV, teacher_NV, hard=hard, soft_scale=0.5)
    assert not found.soft_sum.isfinite()
    assert not found.hard_sums_H.isfinite().any()
    assert found.gradient_NV is not None
    assert found.gradient_NV.isfinite().all(-1).tolist() == [True, True, False, True, True]


def test_a_bad_number_in_the_teacher_is_seen_in_the_soft_sum() -> None:
    student_NV, teacher_NV, _ = products(torch.bfloat16)
    teacher_NV[1, 7] = math.nan
    assert chunk_loss_and_gradient(student_NV, teacher_NV, soft_scale=1.0).soft_sum.isnan()


@pytest.mark.parametrize("token", [-100, N_COLUMNS])
def test_a_token_outside_the_vocabulary_is_refused_and_memory_untouched(token: int) -> None:
    student_NV, teacher_NV, ids_N = products(torch.bfloat16)
    ids_N[0] = token
    with pytest.raises(IndexError, match=str(N_COLUMNS - 1)):
        chunk_loss_and_gradient(student_NV, teacher_NV, hard=[HardTerm(ids_N=ids_N, scale=1.0)])


def test_a_teacher_of_another_width_is_refused() -> None:
    student_NV, teacher_NV, _ = products(torch.bfloat16)
    with pytest.raises(ValueError, match="teacher product"):
        chunk_loss_and_gradient(student_NV, teacher_NV[:, :-1], soft_scale=1.0)
