"""O1: values and gradients of the losses against closed forms, references written twice, invariants and limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import divergences
from tutelage.losses.chunked import chunked_loss
from tutelage.losses.names import DIVERGENCES
from tutelage.losses.plain import plain_chunk
from tutelage.losses.schedules import constant
from tutelage.losses.support import log_softmax, merge_tail
from tutelage.losses.terms import Scale, Term, scale_of
from tutelage.types import DenseTargets, Head

F64 = torch.float64
PARAMETERS = {"beta": 0.3, "alpha": 0.2}


def logits(*shape: int, seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * spread


def evaluate(name: str, teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    parameters = {p: PARAMETERS[p] for p in DIVERGENCES[name]}
    teacher = log_softmax(teacher_logits, temperature=temperature)
    student = log_softmax(student_logits, temperature=temperature)
    return divergences.function(name)(teacher, student, **parameters)


def gradient(name: str, teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    leaf = student_logits.clone().requires_grad_()
    evaluate(name, teacher_logits, leaf, temperature).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


# The reference, written twice: probabilities in float64 and Python's own logarithms, no library KL.
def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def mix(share: float, a: list[float], b: list[float]) -> list[float]:
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


REFERENCES = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jensen_shannon": lambda p, q: 0.3 * kl(p, mix(0.3, p, q)) + 0.7 * kl(q, mix(0.3, p, q)),
    "skew_kl": lambda p, q: kl(p, mix(0.2, p, q)),
    "skew_reverse_kl": lambda p, q: kl(q, mix(0.2, q, p)),
    "total_variation": lambda p, q: 0.5 * math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_equals_a_reference_written_without_tensors(name):
    teacher, student = logits(16, 23, seed=1), logits(16, 23, seed=2)
    values = evaluate(name, teacher, student)
    for row in range(16):
        p, q = torch.softmax(teacher[row], -1).tolist(), torch.softmax(student[row], -1).tolist()
        assert values[row].item() == pytest.approx(REFERENCES[name](p, q), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_forward_kl_gradient_is_q_minus_p_over_t(temperature):
    teacher, student = logits(8, 40, seed=3), logits(8, 40, seed=4)
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    assert (gradient("forward_kl", teacher, student, temperature) - (q - p) / temperature).abs().max() < 1e-14


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reverse_kl_gradient_has_its_closed_form(temperature):
    teacher, student = logits(8, 40, seed=5), logits(8, 40, seed=6)
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    ratio = q.log() - p.log()
    expected = q * (ratio - (q * ratio).sum(-1, keepdim=True)) / temperature
    assert (gradient("reverse_kl", teacher, student, temperature) - expected).abs().max() < 1e-13


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck_in_float64(name):
    teacher, student = logits(3, 7, seed=7), logits(3, 7, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: evaluate(name, teacher, s), (student,))


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 30.0), size=st.integers(2, 40))
def test_invariants_hold_for_every_divergence(name, seed, spread, size):
    teacher, student = logits(2, size, seed=seed, spread=spread), logits(2, size, seed=seed + 1, spread=spread)
    value = evaluate(name, teacher, student)
    assert (value >= -1e-12).all()
    assert evaluate(name, teacher, teacher).abs().max() < 1e-12
    assert gradient(name, teacher, teacher).abs().max() < 1e-12
    assert torch.allclose(evaluate(name, teacher + 5.0, student - 3.0), value, atol=1e-10)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(evaluate(name, teacher[:, order], student[:, order]), value, atol=1e-11)
    assert gradient(name, teacher, student).sum(-1).abs().max() < 1e-11


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("filler", [-1e9, -math.inf])
def test_columns_of_probability_zero_change_nothing(name, filler):
    teacher, student = logits(4, 20, seed=9), logits(4, 20, seed=10)
    pad = torch.full((4, 5), filler, dtype=F64)
    padded_teacher, padded_student = torch.cat([teacher, pad], -1), torch.cat([student, pad], -1)
    assert torch.allclose(evaluate(name, padded_teacher, padded_student), evaluate(name, teacher, student), atol=1e-12)
    padded = gradient(name, padded_teacher, padded_student)
    assert torch.allclose(padded[:, :20], gradient(name, teacher, student), atol=1e-12)
    assert (padded[:, 20:] == 0).all()


def test_jensen_shannon_mirrors_and_is_bounded_by_the_entropy_of_beta():
    p, q = log_softmax(logits(32, 15, seed=11, spread=20)), log_softmax(logits(32, 15, seed=12, spread=20))
    for beta in (0.1, 0.5, 0.8):
        value = divergences.jensen_shannon(p, q, beta=beta)
        assert torch.allclose(value, divergences.jensen_shannon(q, p, beta=1 - beta), atol=1e-12)
        assert (value <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12).all()


def test_jensen_shannon_tends_to_both_kl_at_its_ends():
    p, q = log_softmax(logits(8, 15, seed=13, spread=1.0)), log_softmax(logits(8, 15, seed=14, spread=1.0))
    small = 1e-7
    forward = divergences.jensen_shannon(p, q, beta=small) / small
    reverse = divergences.jensen_shannon(p, q, beta=1 - small) / small
    assert torch.allclose(forward, divergences.forward_kl(p, q), rtol=1e-5)
    assert torch.allclose(reverse, divergences.reverse_kl(p, q), rtol=1e-5)


def test_skew_divergences_are_bounded_and_tend_to_kl():
    p, q = log_softmax(logits(8, 15, seed=15, spread=20)), log_softmax(logits(8, 15, seed=16, spread=20))
    assert (divergences.skew_kl(p, q, alpha=0.1) <= -math.log(0.1) + 1e-12).all()
    p, q = log_softmax(logits(8, 15, seed=15, spread=1)), log_softmax(logits(8, 15, seed=16, spread=1))
    assert torch.allclose(divergences.skew_kl(p, q, alpha=1e-12), divergences.forward_kl(p, q), rtol=1e-6)
    assert torch.allclose(divergences.skew_reverse_kl(p, q, alpha=1e-12), divergences.reverse_kl(p, q), rtol=1e-6)


def test_high_temperature_limit_matches_centred_logits():
    teacher, student = logits(4, 30, seed=17), logits(4, 30, seed=18)
    temperature = 1e4
    scaled = temperature**2 * gradient("forward_kl", teacher, student, temperature)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert torch.allclose(scaled, centred / 30, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_scales_keep_the_gradient_size_as_temperature_changes(name):
    """T**k: between T = 20 and T = 40 the scaled gradient changes by a few percent, not by a factor of 2 or 4."""
    teacher, student = logits(16, 50, seed=19), logits(16, 50, seed=20)
    norms = []
    for temperature in (20.0, 40.0):
        term = Term(kind="divergence", divergence=name, temperature=constant(temperature))
        factor = scale_of(term, step=0, n_steps=1, count=1).factor
        norms.append((factor * gradient(name, teacher, student, temperature)).norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_merging_the_tail_never_increases_a_divergence(name):
    parameters = {p: PARAMETERS[p] for p in DIVERGENCES[name]}
    teacher, student = log_softmax(logits(64, 100, seed=21)), log_softmax(logits(64, 100, seed=22))
    full = divergences.function(name)(teacher, student, **parameters)
    before = torch.zeros(64, dtype=F64)
    for kept in (1, 5, 20, 60, 100):
        ids = teacher.topk(kept).indices
        merged = divergences.function(name)(merge_tail(teacher, ids), merge_tail(student, ids), **parameters)
        assert (merged <= full + 1e-9).all()
        assert (merged >= before - 1e-9).all()
        before = merged
    assert torch.allclose(before, full, atol=1e-12)


def test_low_temperature_and_infinite_logits_have_finite_gradients():
    teacher, student = logits(4, 10, seed=23, spread=50), logits(4, 10, seed=24, spread=50)
    for name in DIVERGENCES:
        assert evaluate(name, teacher, student, 0.05).isfinite().all()
        assert gradient(name, teacher, student, 0.05).isfinite().all()


# --- the chunked loss -------------------------------------------------------------------------------------------------
BLENDS = {
    **{name: [Term(kind="divergence", divergence=name, parameters={p: PARAMETERS[p] for p in DIVERGENCES[name]},
                   temperature=constant(2.0))] for name in DIVERGENCES},
    "cross_entropy": [Term(kind="ground_truth")],
    "argmax": [Term(kind="teacher_argmax")],
    "blend": [Term(kind="divergence", divergence="forward_kl", weight=constant(0.7), temperature=constant(2.0)),
              Term(kind="ground_truth", weight=constant(0.3))],
    "all": [Term(kind="divergence", divergence="forward_kl", weight=constant(0.5)),
            Term(kind="divergence", divergence="reverse_kl", weight=constant(0.2), temperature=constant(3.0)),
            Term(kind="teacher_argmax", weight=constant(0.1)), Term(kind="ground_truth", weight=constant(0.3))],
}  # fmt: skip


def make_case(n: int = 13, *, v: int = 31, pad: int = 3, soft_cap: float | None = None, dtype=F64, seed: int = 0):
    """Hidden states and heads of a student (D = 6) and a teacher (D = 9) with padded rows beyond the vocabulary."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64).to(dtype)

    student = Head(weight_VD=draw(v + pad, 6), bias_V=draw(v + pad), n_vocabulary=v, scale=0.7, soft_cap=soft_cap)
    teacher = Head(weight_VD=draw(v, 9), bias_V=None, n_vocabulary=v, soft_cap=soft_cap)
    targets = DenseTargets(hidden_ND=draw(n, 9), head=teacher)
    return draw(n, 6), student, targets, torch.randint(0, v, (n,), generator=g)


def naive(hidden_ND, student, targets, next_ids_N, terms, scales):
    """The whole [N, V] at once with plain softmaxes: what every tutorial writes."""

    def raw(head, h):
        z = (h @ head.weight_VD.T + (head.bias_V if head.bias_V is not None else 0)) * head.scale
        z = head.soft_cap * torch.tanh(z / head.soft_cap) if head.soft_cap else z
        return z[:, : head.n_vocabulary]

    zs, zt = raw(student, hidden_ND), raw(targets.head, targets.hidden_ND)
    total = 0
    for term in terms:
        scale = scales[term.name]
        if term.kind == "divergence":
            p, q = torch.softmax(zt / scale.temperature, -1), torch.softmax(zs / scale.temperature, -1)
            beta, alpha = PARAMETERS["beta"], PARAMETERS["alpha"]
            d = lambda a, b: (a * (a.log() - b.log())).sum()
            value = {
                "forward_kl": lambda: d(p, q),
                "reverse_kl": lambda: d(q, p),
                "jensen_shannon": lambda: (
                    beta * d(p, beta * p + (1 - beta) * q) + (1 - beta) * d(q, beta * p + (1 - beta) * q)
                ),
                "skew_kl": lambda: d(p, alpha * p + (1 - alpha) * q),
                "skew_reverse_kl": lambda: d(q, alpha * q + (1 - alpha) * p),
                "total_variation": lambda: 0.5 * (p - q).abs().sum(),
            }[term.divergence]()
        else:
            ids = next_ids_N if term.kind == "ground_truth" else zt.argmax(-1)
            value = -torch.log_softmax(zs, -1).gather(-1, ids[:, None]).sum()
        total = total + scale.factor * value
    return total


def run(function, hidden_ND, student, targets, next_ids_N, terms, **options):
    scales = {t.name: scale_of(t, step=0, n_steps=1, count=7) for t in terms}
    hidden = hidden_ND.clone().requires_grad_()
    weight = student.weight_VD.clone().requires_grad_()
    head = Head(weight_VD=weight, bias_V=student.bias_V, n_vocabulary=student.n_vocabulary, scale=student.scale,
                soft_cap=student.soft_cap)  # fmt: skip
    if function is naive:
        total = naive(hidden, head, targets, next_ids_N, terms, scales)
    else:
        total, _ = chunked_loss(hidden, student_head=head, targets=targets, next_ids_N=next_ids_N, terms=terms,
                                scales=scales, **options)  # fmt: skip
    total.backward()
    return total.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("soft_cap", [None, 4.0])
@pytest.mark.parametrize("chunk_positions", [1, 5, 100])
def test_chunked_loss_equals_the_naive_one(blend, soft_cap, chunk_positions):
    case = make_case(soft_cap=soft_cap)
    expected = run(naive, *case, BLENDS[blend])
    for chunk in (None, plain_chunk):
        got = run(chunked_loss, *case, BLENDS[blend], chunk_positions=chunk_positions, chunk=chunk)
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() < 1e-12


def test_padded_rows_of_a_head_get_no_gradient_and_change_nothing():
    hidden, student, targets, ids = make_case(pad=3)
    cut = Head(weight_VD=student.weight_VD[:31], bias_V=student.bias_V[:31], n_vocabulary=31, scale=student.scale)
    padded = run(chunked_loss, hidden, student, targets, ids, BLENDS["blend"])
    unpadded = run(chunked_loss, hidden, cut, targets, ids, BLENDS["blend"])
    assert torch.equal(padded[0], unpadded[0])
    assert torch.equal(padded[1], unpadded[1])
    assert (padded[2][31:] == 0).all()


def test_alpha_zero_is_bitwise_plain_cross_entropy():
    case = make_case()
    blend = [Term(kind="divergence", divergence="forward_kl", weight=constant(0.0)), Term(kind="ground_truth")]
    both, alone = run(chunked_loss, *case, blend), run(chunked_loss, *case, [Term(kind="ground_truth")])
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, plain_chunk])
def test_a_copy_of_the_teacher_has_loss_and_gradient_exactly_zero(dtype, chunk):
    _, _, targets, ids = make_case(n=40, v=200, dtype=dtype)
    term = Term(kind="divergence", divergence="forward_kl", temperature=constant(2.0))
    total, hidden_gradient, weight_gradient = run(
        chunked_loss, targets.hidden_ND, targets.head, targets, ids, [term], chunk=chunk
    )
    assert total.item() == 0.0
    assert (hidden_gradient == 0).all()
    assert (weight_gradient == 0).all()


def test_no_position_gives_a_zero_that_depends_on_the_student():
    hidden, student, targets, ids = make_case(n=4)
    empty = DenseTargets(hidden_ND=targets.hidden_ND[:0], head=targets.head)
    total, hidden_gradient, weight_gradient = run(chunked_loss, hidden[:0], student, empty, ids[:0], BLENDS["blend"])
    assert total.item() == 0.0
    assert hidden_gradient.shape == (0, 6)
    assert (weight_gradient == 0).all()


@pytest.mark.parametrize("blend", ["forward_kl", "blend", "cross_entropy", "jensen_shannon"])
def test_float32_gradients_are_right_to_1e_5_and_bf16_no_worse_than_naive(blend):
    case64 = make_case(n=64, v=500, dtype=F64)
    reference = run(naive, *case64, BLENDS[blend])
    case32 = make_case(n=64, v=500, dtype=torch.float32)
    got32 = run(chunked_loss, *case32, BLENDS[blend], chunk_positions=20)
    for a, b in zip(got32, reference, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


def test_sums_are_plain_nats_without_weight_or_temperature_power():
    hidden, student, targets, ids = make_case()
    terms = BLENDS["blend"]
    scales = {t.name: Scale(factor=123.0, temperature=2.0) for t in terms}
    _, sums = chunked_loss(hidden, student_head=student, targets=targets, next_ids_N=ids, terms=terms, scales=scales)
    zs, zt = student.logits(hidden), targets.head.logits(targets.hidden_ND)
    kl_sum = divergences.forward_kl(log_softmax(zt, temperature=2.0), log_softmax(zs, temperature=2.0)).sum()
    assert sums["forward_kl"].item() == pytest.approx(kl_sum.item(), abs=1e-12)
    assert sums["cross_entropy"].item() == pytest.approx(
        torch.nn.functional.cross_entropy(zs, ids, reduction="sum").item(), abs=1e-12
    )
