"""The two columns: against a definition written token by token, for every kind of target, whole and in a stream."""

import math

import numpy as np
import pytest
import torch

from tests.cache import synthetic
from tutelage.cache import error
from tutelage.types import DenseTargets, Head, LogitTargets, SampledTargets, TopKTargets

V, D, N = 40, 6, 30


def teacher(**more) -> Head:
    return synthetic.head(vocabulary=V, hidden=D, dtype=torch.float64, **more)


def states(seed: int = 1, n: int = N) -> torch.Tensor:
    return synthetic.states(n, hidden=D, seed=seed, dtype=torch.float64)


def probabilities(head: Head, hidden_ND, temperature: float = 1.0) -> torch.Tensor:
    return torch.softmax(head.logits(hidden_ND) / temperature, -1)


def by_definition(seen_NV, p_NV, q_NV, head: Head) -> tuple[float, float]:
    """per_position and batch from whole distributions, with the head's columns centred over the vocabulary."""
    rows_VD = head.weight_VD - head.weight_VD.mean(0)
    error_ND, gradient_ND = (seen_NV - p_NV) @ rows_VD, (q_NV - p_NV) @ rows_VD
    rms = gradient_ND.square().sum(-1).mean().sqrt()
    return (error_ND.square().sum(-1).mean().sqrt() / rms).item(), (error_ND.mean(0).norm() / rms).item()


def top_k(p_NV, k: int, *, tail: bool) -> TopKTargets:
    kept_NK, ids_NK = p_NV.topk(k, -1)
    rest_N = (1 - kept_NK.sum(-1)) if tail else torch.zeros(len(p_NV), dtype=p_NV.dtype)
    kept_NK = kept_NK if tail else kept_NK / kept_NK.sum(-1, keepdim=True)
    return TopKTargets(ids_NK=ids_NK, logp_NK=kept_NK.log(), tail_logp_N=rest_N.log(), temperature=1.0)


def sampled(p_NV, *, n_draws: int, seed: int = 0, whole: float = 1.0) -> SampledTargets:
    """Draws with replacement, weights their share times `whole`."""
    draws = torch.multinomial(p_NV, n_draws, replacement=True, generator=torch.Generator().manual_seed(seed))
    counts_NV = torch.zeros_like(p_NV).scatter_add_(-1, draws, torch.ones_like(draws, dtype=p_NV.dtype))
    at = counts_NV.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (counts_NV > 0).sum(-1).cumsum(0)])
    weights_M = (counts_NV[at] / n_draws * whole).float()
    return SampledTargets(ids_M=at[1], weights_M=weights_M, offsets=offsets, temperature=1.0)


def densified(targets: SampledTargets) -> torch.Tensor:
    seen_NV = torch.zeros(len(targets.offsets) - 1, V, dtype=torch.float64)
    for n, (start, stop) in enumerate(zip(targets.offsets[:-1], targets.offsets[1:], strict=True)):
        seen_NV[n, targets.ids_M[start:stop]] = targets.weights_M[start:stop].double()
    return seen_NV


def measured(targets, head, hidden_ND, **more) -> tuple[float, float]:
    found = error.measure(targets, hidden_ND=hidden_ND, head=head, **more)
    return found.per_position, found.batch


STUDENTS = ("unigram", "given unigram", "model")


def student(kind: str, p_NV):
    """What is handed to `measure`, and the same as probabilities [N, V]."""
    if kind == "unigram":
        return None, p_NV.mean(0).expand_as(p_NV)
    if kind == "given unigram":
        q_V = torch.linspace(1, 3, V, dtype=torch.float64).softmax(0)
        return q_V, q_V.expand_as(p_NV)
    head, hidden_ND = synthetic.head(vocabulary=V, hidden=4, dtype=torch.float64, seed=5), states(7)[:, :4]
    return DenseTargets(hidden_ND=hidden_ND, head=head), probabilities(head, hidden_ND)


# --- each kind of target, against the definition ---
@pytest.mark.parametrize("kind", STUDENTS)
def test_top_k_with_tail_is_seen_through_the_gradient_of_the_coarse_kl(kind):
    """The distribution that the student is pulled to is read off autograd: q minus the gradient of its logits."""
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    given, q_NV = student(kind, p_NV)
    targets = top_k(p_NV, 5, tail=True)
    logits_NV = q_NV.log().requires_grad_()
    logq_NV = torch.log_softmax(logits_NV, -1)
    rest_N = torch.logsumexp(logq_NV.scatter(-1, targets.ids_NK, -math.inf), -1)
    student_NS = torch.cat([logq_NV.gather(-1, targets.ids_NK), rest_N[:, None]], -1)
    target_NS = torch.cat([targets.logp_NK, targets.tail_logp_N[:, None]], -1)
    (target_NS.exp() * (target_NS - student_NS)).sum().backward()
    seen_NV = q_NV - logits_NV.grad
    found = measured(targets, head, hidden_ND, student=given)
    assert found == pytest.approx(by_definition(seen_NV, p_NV, q_NV, head), rel=1e-9)


@pytest.mark.parametrize("kind", STUDENTS)
def test_top_k_without_tail_is_the_kept_alone(kind):
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    given, q_NV = student(kind, p_NV)
    targets = top_k(p_NV, 5, tail=False)
    seen_NV = torch.zeros_like(p_NV).scatter(-1, targets.ids_NK, targets.logp_NK.exp())
    found = measured(targets, head, hidden_ND, student=given)
    assert found == pytest.approx(by_definition(seen_NV, p_NV, q_NV, head), rel=1e-9)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_sample_is_its_weights(kind):
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    given, q_NV = student(kind, p_NV)
    targets = sampled(p_NV, n_draws=9)
    found = measured(targets, head, hidden_ND, student=given)
    assert found == pytest.approx(by_definition(densified(targets), p_NV, q_NV, head), rel=1e-6)


@pytest.mark.parametrize("kind", STUDENTS)
def test_weights_that_lack_mass_pull_less_as_their_gradient_does(kind):
    """sum_v w_v (-log q_v) has the gradient (sum w) q - w: what is missing leaves the student where it is."""
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    given, q_NV = student(kind, p_NV)
    targets = sampled(p_NV, n_draws=9, whole=0.75)
    logits_NV = q_NV.log().requires_grad_()
    loss = -(densified(targets) * torch.log_softmax(logits_NV, -1)).sum()
    (gradient_NV,) = torch.autograd.grad(loss, logits_NV)
    found = measured(targets, head, hidden_ND, student=given)
    assert found == pytest.approx(by_definition(q_NV - gradient_NV, p_NV, q_NV, head), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", STUDENTS[:2])
def test_whole_distributions_are_what_they_are_at_any_temperature(kind, temperature):
    head, hidden_ND = teacher(scale=0.7, soft_cap=5.0), states()
    p_NV = probabilities(head, hidden_ND, temperature)
    given, q_NV = student(kind, p_NV)
    near_ND = hidden_ND + 0.05 * states(8)
    seen_NV = probabilities(head, near_ND, temperature)
    expected = pytest.approx(by_definition(seen_NV, p_NV, q_NV, head), rel=1e-9)
    for targets in (DenseTargets(hidden_ND=near_ND, head=head), LogitTargets(logits_NV=head.logits(near_ND))):
        found = error.measure(targets, hidden_ND=hidden_ND, head=head, temperature=temperature, student=given)
        assert (found.per_position, found.batch) == expected
        assert found.kl_nats == pytest.approx((p_NV * (p_NV / seen_NV).log()).sum(-1).mean().item(), rel=1e-9)
        assert found.kept_mass == 1.0


# --- the other figures ---
def test_nothing_lost_is_no_error():
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    for targets in (top_k(p_NV, V, tail=False), DenseTargets(hidden_ND=hidden_ND, head=head)):
        found = error.measure(targets, hidden_ND=hidden_ND, head=head)
        assert found.per_position < 1e-12 and found.kept_mass == pytest.approx(1.0)


def test_the_kept_mass_is_the_teachers_probability_of_the_stored_ids():
    head, hidden_ND = teacher(scale=0.7, soft_cap=5.0), states()
    p_NV = probabilities(head, hidden_ND)
    for k in (1, 7):
        found = error.measure(top_k(p_NV, k, tail=True), hidden_ND=hidden_ND, head=head)
        assert found.kept_mass == pytest.approx(p_NV.topk(k, -1).values.sum(-1).mean().item(), rel=1e-9)
        assert found.kl_nats is None and found.n == N


def test_more_entries_of_top_k_mean_less_error():
    head, hidden_ND = teacher(), states()
    p_NV = probabilities(head, hidden_ND)
    errors = [measured(top_k(p_NV, k, tail=True), head, hidden_ND)[0] for k in (1, 3, 9, 27)]
    assert errors == sorted(errors, reverse=True)


def test_padded_rows_of_the_head_take_no_part():
    head, hidden_ND = teacher(), states()
    padded = Head(weight_VD=torch.cat([head.weight_VD, 9 * head.weight_VD[:7]]), bias_V=None, n_vocabulary=V)
    targets = top_k(probabilities(head, hidden_ND), 4, tail=True)
    assert measured(targets, padded, hidden_ND) == pytest.approx(measured(targets, head, hidden_ND))


def test_a_constant_shift_of_the_heads_rows_changes_nothing():
    """It moves every logit alike: W is taken as centred over the vocabulary."""
    head, hidden_ND = teacher(), states()
    moved = Head(weight_VD=head.weight_VD + 3.0, bias_V=None, n_vocabulary=V)
    p_NV = probabilities(head, hidden_ND)
    for targets in (top_k(p_NV, 4, tail=True), sampled(p_NV, n_draws=9, whole=0.75)):
        assert measured(targets, moved, hidden_ND) == pytest.approx(measured(targets, head, hidden_ND), rel=1e-6)


def test_a_bfloat16_head_is_measured_in_float32():
    narrow = synthetic.head(vocabulary=V, hidden=D, dtype=torch.bfloat16)
    hidden_ND = states().bfloat16()
    wide = Head(weight_VD=narrow.weight_VD.float(), bias_V=None, n_vocabulary=V)
    targets = top_k(probabilities(wide, hidden_ND.float()), 5, tail=True)
    found = measured(targets, narrow, hidden_ND)
    assert found == pytest.approx(measured(targets, wide, hidden_ND.float()), rel=0.05)


# --- the stream, and what it is for ---
def test_a_stream_of_probes_is_the_whole():
    head, hidden_ND = teacher(), states(n=1300)
    p_NV = probabilities(head, hidden_ND)
    q_V = error.unigram(hidden_ND, head=head)
    sums = error.Accumulator()
    for start in range(0, 1300, 450):
        part_ND = hidden_ND[start : start + 450]
        here = error.probe(part_ND, head=head, student=q_V)
        sums.add(top_k(probabilities(head, part_ND), 4, tail=True), probe=here)
    whole = error.measure(top_k(p_NV, 4, tail=True), hidden_ND=hidden_ND, head=head)
    found = sums.result()
    assert found.n == whole.n == 1300
    assert (found.per_position, found.batch, found.kept_mass) == pytest.approx(
        (whole.per_position, whole.batch, whole.kept_mass), rel=1e-9
    )


def test_the_batch_error_of_an_unbiased_sample_falls_as_one_over_root_n_and_that_of_top_k_does_not():
    head = teacher()
    batch = {"sample": [], "top_k": []}
    for n in (500, 8000):
        hidden_ND = states(n=n)
        p_NV = probabilities(head, hidden_ND)
        batch["sample"].append(
            np.mean([measured(sampled(p_NV, n_draws=8, seed=s), head, hidden_ND)[1] for s in range(6)])
        )
        batch["top_k"].append(measured(top_k(p_NV, 2, tail=False), head, hidden_ND)[1])
    assert 2.5 < batch["sample"][0] / batch["sample"][1] < 6.4  # 4 = sqrt(8000 / 500), six draws each
    assert batch["top_k"][0] / batch["top_k"][1] < 1.5


def test_tokens_that_the_teacher_excludes_do_not_spoil_the_measure():
    head, hidden_ND = teacher(), states().abs()
    head.weight_VD[:3] = -1e30  # the very first ids: logits of -1e30 and worse
    p_NV = probabilities(head, hidden_ND)
    found = error.measure(top_k(p_NV, 6, tail=False), hidden_ND=hidden_ND, head=head)
    assert found.kept_mass == pytest.approx(p_NV.topk(6, -1).values.sum(-1).mean().item(), rel=1e-9)
