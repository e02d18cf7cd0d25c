"""Weights on a grid of integers: nearest, exact, unchanged when rounded again; what learns on it, and what cannot."""

import copy
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.models.architectures import FAMILIES
from tutelage.errors import ConfigError, NumericError
from tutelage.losses.schedules import Schedule
from tutelage.losses.terms import Term
from tutelage.models import student
from tutelage.models.grid import GRIDS, coded, on_grid, packed_bytes, rounded, rounding_of
from tutelage.recipe import Student
from tutelage.teachers.live import LiveTeacher
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer

KINDS = sorted(GRIDS)
EXACT_IN = {"int8": (torch.float32, torch.float64), "int4": (torch.float32, torch.bfloat16, torch.float64)}


def kinds_of_a_recipe() -> list[str]:
    (kinds, none) = get_args(Student.model_fields["quantize"].annotation)
    assert none is type(None)
    return sorted(get_args(kinds))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@st.composite
def matrices(draw) -> torch.Tensor:
    """[3, 64]: normal numbers of any size, rows that are constant or zero, halves of a step, one number far out."""
    seed, exponent = draw(st.integers(0, 2**31)), draw(st.floats(-30, 30))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    shape = draw(st.sampled_from(["normal", "zero", "constant", "halves", "outlier", "sparse"]))
    if shape == "zero":
        weight[1] = -0.0
    elif shape == "constant":
        weight[1] = draw(st.floats(-10, 10))
    elif shape == "halves":
        weight = (weight * 9).round() / 2
    elif shape == "outlier":
        weight[0, 5] = 1e6
    elif shape == "sparse":
        weight *= weight > 1
    return weight * 10.0**exponent


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(weight=matrices())
def test_a_weight_moves_by_half_a_scale_at_most_and_integers_times_scales_are_it_exactly(kind, weight):
    grid, found, near = GRIDS[kind], coded(weight, kind), on_grid(weight, kind)
    scales = found.scales_OG.double().repeat_interleave(grid.group or 64, 1)
    assert ((weight.double() - near.double()).abs() <= scales / 2).all()  # exactly: no product here is rounded
    assert found.codes_OI.abs().max() <= grid.largest
    for dtype in EXACT_IN[kind]:
        assert torch.equal(found.weight(dtype).double(), near.double()), dtype
        assert torch.equal(bits(found.weight(dtype)), bits(near.to(dtype)))
    again = coded(near, kind)  # the folder's weights give the same integers and scales
    assert torch.equal(bits(on_grid(near, kind)), bits(near))
    assert torch.equal(again.codes_OI, found.codes_OI) and torch.equal(again.scales_OG, found.scales_OG)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_a_group_lies_on_the_last_integer_whatever_its_scale_was_rounded_to(kind):
    largest = torch.linspace(1.0, 2.0, 4097)[:, None]  # every place between two powers of two
    weight = torch.cat([largest, -largest * torch.linspace(0.0, 1.0, 31)], 1)
    assert (coded(weight, kind).codes_OI[:, 0] == GRIDS[kind].largest).all()


def test_groups_of_thirty_two_inputs_have_a_scale_of_their_own_and_rows_of_int8_one():
    weight = torch.ones(2, 64)
    weight[0, 32:] = 1e-3
    four, eight = coded(weight, "int4"), coded(weight, "int8")
    assert four.scales_OG.shape == (2, 2) and eight.scales_OG.shape == (2, 1)
    assert (four.codes_OI == 7).all() and (eight.codes_OI[0, 32:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_a_step_and_is_refused_where_a_model_is_saved(kind, value):
    model = tiny.llama(hidden=32, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 40] = value
    assert not on_grid(model.model.layers[1].mlp.down_proj.weight, kind).isfinite().all()  # the step stops on it
    with pytest.raises(NumericError, match=r"layers.1.mlp.down_proj.weight holds a number that is not finite"):
        rounded(model, kind)
    changed = [n for n, weight in model.state_dict().items() if not torch.equal(weight, before[n])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma2])
def test_attention_and_mlp_are_rounded_and_nothing_else_outputs_by_their_own_rows(make):
    plain = make()
    model = rounded(copy.deepcopy(plain), "int8")
    changed = {n for n, weight in model.named_parameters() if not torch.equal(weight, plain.get_parameter(n))}
    expected = {n for n, weight in plain.named_parameters() if weight.ndim == 2 and (".layers." in n or ".h." in n)}
    assert changed == expected == set(rounding_of(plain, "int8").inputs_first)
    for name in expected:
        own, found = plain.get_parameter(name), model.get_parameter(name)
        by_output = (own.T, found.T) if make is tiny.gpt2 else (own, found)
        scales = by_output[0].abs().amax(1, keepdim=True) / 127
        assert ((by_output[0] - by_output[1]).abs() <= 0.51 * scales).all()  # scales are rounded by 1/256
    assert rounded(plain, None) is plain


def test_what_cannot_lie_on_a_grid_is_refused_with_what_can():
    with pytest.raises(ConfigError, match=r"groups of 32 inputs, and model.layers.0.self_attn.q_proj.weight has 16"):
        rounding_of(tiny.llama(), "int4")
    with pytest.raises(
        ConfigError, match="a.quantize: int8 rounds linear layers, and MixtralExperts .* leave quantize"
    ):
        rounding_of(student.empty(FAMILIES["mixtral"](), dtype=torch.float32), "int8", name="a")


def test_every_grid_can_be_asked_for_and_no_other():
    assert kinds_of_a_recipe() == KINDS


def test_packed_a_rounded_model_takes_its_integers_two_bytes_a_scale_and_two_for_all_else():
    model = tiny.llama(hidden=32, layers=1)
    matrices = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64
    rest = 48 * 32 + 3 * 32
    assert packed_bytes(model, "int4") == matrices / 2 + 2 * matrices / 32 + 2 * rest
    assert packed_bytes(model, "int8") == matrices + 2 * (3 * 32 + 2 * 16 + 2 * 64) + 2 * rest


# --- learning on it --------------------------------------------------------------------------------------------------
V = 48


def trainer(model, kind, *, dtype=torch.float64, rate=1e-2, n_steps=3, ema=None, teacher=None):
    member = Member(
        name="student", model=model, terms=(Term(kind="divergence", divergence="forward_kl"),), quantize=kind,
        optimizer=OptimizerSettings(schedule=Schedule(kind="cosine", start=rate, end=0.0), n_steps=n_steps, ema=ema),
    )  # fmt: skip
    return Trainer(
        [member], teacher=teacher or LiveTeacher(tiny.llama(seed=9, dtype=dtype), n_vocabulary=V), n_vocabulary=V,
        microbatches=lambda step: [tiny.batch(seed=2 * step, rows=1), tiny.batch(seed=2 * step + 1, rows=1)],
        compute=ComputePath(device="cpu", weight_dtype=dtype, threads=1), seed=0,
    )  # fmt: skip


def gradients(training) -> dict[str, torch.Tensor]:
    """Of the two micro-batches of the first step, added up as a step does."""
    peer = training.only
    for batch in training.microbatches(0):
        scales = training._scales(17, [peer])
        training.family(batch, training._targets(batch), scales).total.backward()
        peer.masters.collect()
    return {name: parameter.grad for name, parameter in peer.masters.parameters.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_a_weight_is_the_plain_gradient_at_what_it_is_rounded_to(kind, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    start = tiny.llama(hidden=32, dtype=wide)
    at_rounded = trainer(rounded(copy.deepcopy(start), kind), None, dtype=dtype)
    own = trainer(copy.deepcopy(start), kind, dtype=dtype)
    expected, found = gradients(at_rounded), gradients(own)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    at_plain = gradients(trainer(copy.deepcopy(start), None, dtype=dtype))
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(found[key], at_plain[key], rtol=1e-3)
    assert all(
        torch.equal(own.only.masters.state()[n], p) for n, p in start.named_parameters()
    )  # not rounded themselves


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_after_each_step_the_model_computes_with_its_rounded_masters_and_is_judged_by_the_rounded_average(dtype):
    training = trainer(
        tiny.llama(hidden=32, dtype=torch.promote_types(dtype, torch.float32)), "int4", dtype=dtype, ema=0.5
    )
    for _ in training.steps():
        masters = training.only.masters.state()
        for name, weight in training.only.masters.model.named_parameters():
            near = masters[name] if name not in rounding_of(training.only.masters.model, "int4").inputs_first else None
            expected = near if near is not None else on_grid(masters[name], "int4")
            assert torch.equal(weight, expected.to(dtype)), name
            assert name.endswith("norm.weight") or torch.equal(weight, masters[name].to(dtype)) == (near is not None)
    average = copy.deepcopy(training.only.masters.model).to(torch.promote_types(dtype, torch.float32))
    for name, value in training.only.optimizer.average.items():
        average.get_parameter(name).data.copy_(value)
    by_hand = trainer(rounded(average, "int4"), None, dtype=dtype)
    held_out = [tiny.batch(seed=77)]
    assert training.evaluate(held_out) == by_hand.evaluate(held_out)


def test_a_student_trained_rounded_ends_nearer_to_its_teacher_than_one_rounded_after_its_training():
    dtype, held_out = torch.float32, [tiny.batch(seed=1000 + n, rows=8, length=24, masked=0.0) for n in range(2)]
    teacher = tiny.llama(seed=9, hidden=32, dtype=dtype)
    live = LiveTeacher(teacher, n_vocabulary=V)
    ends = {}
    for kind in (None, "int4"):
        training = trainer(student.from_layers(teacher, [0]), kind, dtype=dtype, rate=1e-3, n_steps=60, teacher=live)
        training.microbatches = lambda step: [tiny.batch(seed=step, rows=4)]
        for _ in training.steps():
            pass
        model = rounded(copy.deepcopy(training.only.masters.model), "int4")
        again = trainer(model, None, dtype=dtype, teacher=live)
        ends[kind] = [each.evaluate(held_out)["student/forward_kl"] for each in (training, again)]
    (plain, afterwards), (on_it, unchanged) = ends[None], ends["int4"]
    assert on_it == unchanged  # what learned on the grid lies on it
    # 0.706, 0.804 and 0.764 nats: two fifths of what rounding costs are learned away in 60 steps
    assert plain < on_it < plain + 0.8 * (afterwards - plain)
