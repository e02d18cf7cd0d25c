"""Losses on stored targets: a sample, the top k with a tail, stored logits; against closed forms in float64."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.losses.stored_targets import (
    F64,
    FACTOR,
    D,
    N,
    V,
    draw,
    next_ids,
    random_entries,
    run,
    sampled,
    soft,
    soft_by_hand,
    student,
    teacher,
    top_k,
)
from tutelage.losses.gradients import Workspace
from tutelage.losses.names import DIVERGENCES
from tutelage.losses.plain import plain_chunk
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.types import LogitTargets

PARAMETERS = {"beta": 0.3, "alpha": 0.2}
TRUTH, ARGMAX = Term(kind="ground_truth"), Term(kind="teacher_argmax")
CHUNKS = [1, 5, 100]  # 5 does not divide 13


def divergence(name: str, *, temperature: float = 1.0) -> Term:
    return soft(name, temperature=temperature, **{p: PARAMETERS[p] for p in DIVERGENCES[name]})


def assert_equal(found: list[Tensor], expected: list[Tensor], *, tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < tolerance


# --- a sample ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["fused", "plain"])
@pytest.mark.parametrize("chunk_positions", CHUNKS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sample_gives_the_soft_cross_entropy_and_its_closed_gradient(temperature, chunk_positions, chunk):
    entries = random_entries()
    targets = sampled(entries, temperature=temperature)
    sums, found = run(targets, [soft(temperature=temperature)], chunk=chunk, chunk_positions=chunk_positions)
    loss, gradients = soft_by_hand(entries, temperature=temperature)
    assert list(sums) == ["soft_cross_entropy"]
    assert sums["soft_cross_entropy"].item() == pytest.approx(loss.item(), abs=1e-12)
    assert_equal(found, [FACTOR * value for value in (loss, *gradients)])


@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["fused", "plain"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("soft_weight", [0.0, 0.3, 1.0])
def test_a_blend_of_a_sample_and_the_truth_is_the_sum_of_its_terms(soft_weight, temperature, chunk):
    targets = sampled(random_entries(), temperature=temperature)
    terms = [soft(temperature=temperature, weight=soft_weight), replace(TRUTH, weight=constant(1 - soft_weight))]
    sums, found = run(targets, terms, chunk=chunk, chunk_positions=5)
    soft_sums, from_soft = run(targets, [soft(temperature=temperature)])
    hard_sums, from_truth = run(None, [TRUTH])
    assert_equal(found, [soft_weight * a + (1 - soft_weight) * b for a, b in zip(from_soft, from_truth, strict=True)])
    assert_equal([*sums.values()], [*soft_sums.values(), *hard_sums.values()])


@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["fused", "plain"])
def test_one_entry_a_position_is_cross_entropy_on_it(chunk):
    ids_N = next_ids()
    _, found = run(sampled([{i: 1.0} for i in ids_N.tolist()]), [soft()], chunk=chunk, chunk_positions=5)
    _, expected = run(None, [TRUTH])
    assert_equal(found, expected, tolerance=1e-13)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), most=st.integers(2, V), chunk=st.integers(1, 10))
def test_any_ragged_sample_has_its_closed_gradient(seed, n, most, chunk):
    entries = random_entries(n, most=most, seed=seed)
    _, found = run(sampled(entries, temperature=2.0), [soft(temperature=2.0)], n=n, chunk_positions=chunk)
    loss, gradients = soft_by_hand(entries, temperature=2.0)
    assert_equal(found, [FACTOR * value for value in (loss, *gradients)], tolerance=1e-12 * n)


@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["fused", "plain"])
def test_a_sample_needs_no_bare_head(chunk):
    """A soft-cap goes the plain way; without one both ways agree, so the capped one is checked by its derivative."""
    head = student(soft_cap=4.0)
    entries = random_entries()
    _, found = run(sampled(entries, temperature=2.0), [soft(temperature=2.0)], head=head, chunk_positions=5)
    hidden_ND = draw(N, D, seed=7).requires_grad_()
    logp_NV = torch.log_softmax(head.logits(hidden_ND) / 2.0, -1)
    total = -FACTOR * sum(w * logp_NV[n, i] for n, entry in enumerate(entries) for i, w in entry.items())
    (expected_ND,) = torch.autograd.grad(total, hidden_ND)
    assert_equal(found[:2], [total.detach(), expected_ND])


def test_no_position_gives_a_zero_that_depends_on_the_student():
    _, (total, hidden_ND, weight_VD, _) = run(sampled([]), [soft(), TRUTH], n=0)
    assert total.item() == 0.0
    assert hidden_ND.shape == (0, D)
    assert (weight_VD == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_expected_gradient_of_a_sample_is_that_of_the_whole_distribution(temperature):
    """Two draws with replacement from six tokens: all 36 outcomes at their probabilities, so that no chance is left."""
    logits_NV = torch.full((1, V), -math.inf, dtype=F64)
    logits_NV[0, :6] = draw(6, seed=8)
    p = torch.softmax(logits_NV[0] / temperature, -1)
    expected = [torch.zeros_like(value) for value in run(None, [TRUTH], n=1)[1]]
    for a, b in itertools.product(range(6), repeat=2):
        targets = sampled([{a: 0.5, b: 0.5} if a != b else {a: 1.0}], temperature=temperature)
        for mean, value in zip(expected, run(targets, [soft(temperature=temperature)], n=1)[1], strict=True):
            mean += p[a] * p[b] * value
    _, full = run(LogitTargets(logits_NV=logits_NV), [soft(temperature=temperature)], n=1)
    full[0] += FACTOR * torch.special.entr(p).sum()  # the losses differ by the teacher's entropy, the gradients do not
    assert_equal(expected, full)


def test_a_sample_never_becomes_a_tensor_over_the_vocabulary():
    workspace = Workspace()
    run(sampled(random_entries()), [soft(), TRUTH], workspace=workspace)
    assert not any(name.startswith("of teacher") for name in workspace._tensors)
    run(teacher(), [soft(), TRUTH], workspace=workspace)
    assert any(name.startswith("of teacher") for name in workspace._tensors)


# --- the top k and a tail ---------------------------------------------------------------------------------------------
def naive_merged(name: str, student_logits_NV: Tensor, targets, *, temperature: float) -> Tensor:
    """Divergence on K + 1 probabilities, by a sum over what is not kept."""
    q_NV = torch.softmax(student_logits_NV / temperature, -1)
    q_NK = q_NV.gather(-1, targets.ids_NK)
    rest_NV = torch.ones_like(q_NV).scatter(-1, targets.ids_NK, 0.0)
    q_NS = torch.cat([q_NK, (q_NV * rest_NV).sum(-1, keepdim=True)], -1)
    p_NS = torch.cat([targets.logp_NK, targets.tail_logp_N[:, None]], -1).exp()
    beta, alpha = PARAMETERS["beta"], PARAMETERS["alpha"]
    kl = lambda a, b: (a * (a.log() - b.log())).sum()
    mixture_NS = beta * p_NS + (1 - beta) * q_NS
    return {
        "forward_kl": lambda: kl(p_NS, q_NS),
        "reverse_kl": lambda: kl(q_NS, p_NS),
        "jensen_shannon": lambda: beta * kl(p_NS, mixture_NS) + (1 - beta) * kl(q_NS, mixture_NS),
        "skew_kl": lambda: kl(p_NS, alpha * p_NS + (1 - alpha) * q_NS),
        "skew_reverse_kl": lambda: kl(q_NS, alpha * q_NS + (1 - alpha) * p_NS),
        "total_variation": lambda: 0.5 * (p_NS - q_NS).abs().sum(),
    }[name]()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_positions", CHUNKS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_top_k_with_a_tail_is_the_divergence_on_the_merged_support(name, chunk_positions, temperature):
    targets = top_k(teacher().head.logits(teacher().hidden_ND), 5, temperature=temperature)
    sums, found = run(targets, [divergence(name, temperature=temperature)], chunk_positions=chunk_positions)
    hidden_ND = draw(N, D, seed=7).requires_grad_()
    value = naive_merged(name, student().logits(hidden_ND), targets, temperature=temperature)
    (expected_ND,) = torch.autograd.grad(FACTOR * value, hidden_ND)
    assert list(sums) == [name]
    assert_equal(found[:2], [FACTOR * value.detach(), expected_ND])


@given(
    seed=st.integers(0, 10**6), name=st.sampled_from(sorted(DIVERGENCES)), temperature=st.sampled_from([0.7, 1.0, 3.0])
)
def test_the_merged_divergence_grows_with_k_and_is_the_full_one_at_the_end(seed, name, temperature):
    logits_NV = 3 * draw(4, V, seed=seed)
    term = divergence(name, temperature=temperature)
    full, full_gradients = run(LogitTargets(logits_NV=logits_NV), [term], n=4)
    before = 0.0
    for k in (1, 3, 10, V - 1, V):
        sums, gradients = run(top_k(logits_NV, k, temperature=temperature), [term], n=4)
        assert before - 1e-10 <= sums[name].item() <= full[name].item() + 1e-10
        before = sums[name].item()
    assert before == pytest.approx(full[name].item(), abs=1e-11)
    assert_equal(gradients, full_gradients, tolerance=1e-11)


def test_mass_that_was_dropped_by_name_pulls_the_student_off_the_rest():
    """Renormalised, without a tail: the loss counts kept tokens alone, and each other one is pushed down by q."""
    targets = top_k(teacher().head.logits(teacher().hidden_ND), 5, tail=False)
    hidden_ND = draw(N, D, seed=7).requires_grad_()
    logp_NV = torch.log_softmax(student().logits(hidden_ND), -1)
    value = (targets.logp_NK.exp() * (targets.logp_NK - logp_NV.gather(-1, targets.ids_NK))).sum()
    (expected_ND,) = torch.autograd.grad(FACTOR * value, hidden_ND)
    _, found = run(targets, [soft()])
    assert_equal(found[:2], [FACTOR * value.detach(), expected_ND])


@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["fused", "plain"])
def test_the_first_kept_token_is_the_argmax_of_the_teacher(chunk):
    logits_NV = teacher().head.logits(teacher().hidden_ND)
    _, found = run(top_k(logits_NV, 3), [ARGMAX, TRUTH], chunk=chunk, chunk_positions=5)
    _, expected = run(teacher(), [ARGMAX, TRUTH])
    assert_equal(found, expected)


# --- stored logits ----------------------------------------------------------------------------------------------------
BLENDS = {
    **{name: [divergence(name, temperature=2.0)] for name in DIVERGENCES},
    "argmax": [ARGMAX],
    "blend": [soft(temperature=2.0, weight=0.6), TRUTH, ARGMAX],
    "all": [soft(), divergence("reverse_kl", temperature=3.0), TRUTH, ARGMAX],
}


@pytest.mark.parametrize("chunk", [None, plain_chunk], ids=["default", "plain"])
@pytest.mark.parametrize("chunk_positions", CHUNKS)
@pytest.mark.parametrize("blend", BLENDS)
def test_stored_logits_give_the_losses_and_gradients_of_the_teacher_itself(blend, chunk_positions, chunk):
    logits_NV = teacher().head.logits(teacher().hidden_ND)
    live_sums, live = run(teacher(), BLENDS[blend], chunk=chunk)
    for stored_NV in (logits_NV, torch.log_softmax(logits_NV, -1)):
        sums, found = run(
            LogitTargets(logits_NV=stored_NV), BLENDS[blend], chunk=chunk, chunk_positions=chunk_positions
        )
        assert sums.keys() == live_sums.keys()
        assert_equal([*found, *sums.values()], [*live, *live_sums.values()])


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_half_precision_logits_count_as_the_numbers_that_they_are(name):
    half_NV = teacher().head.logits(teacher().hidden_ND).half()
    _, found = run(LogitTargets(logits_NV=half_NV), [divergence(name)])
    _, expected = run(LogitTargets(logits_NV=half_NV.double()), [divergence(name)])
    assert_equal(found, expected, tolerance=1e-5)  # the teacher's softmax is float32


def test_a_target_moves_to_a_device_whole():
    for targets in (
        teacher(),
        LogitTargets(logits_NV=draw(2, V, seed=1)),
        sampled(random_entries()),
        top_k(draw(2, V, seed=1), 3),
    ):
        moved = targets.to("meta")
        tensors = [value for value in (getattr(moved, name) for name in moved.__slots__) if isinstance(value, Tensor)]
        assert tensors
        assert all(tensor.device.type == "meta" for tensor in tensors)
    assert teacher().to("meta").head.weight_VD.device.type == "meta"
    assert sampled([], temperature=2.0).to("cpu").temperature == 2.0
    assert math.isclose(top_k(draw(2, V, seed=1), 3, temperature=0.5).to("cpu").temperature, 0.5)
