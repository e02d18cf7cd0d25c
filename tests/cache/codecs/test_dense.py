"""The whole distribution: exact in float64, within its bounds in float16, and the same loss as the live teacher."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache import synthetic
from tutelage.cache.codec import Budget, Fitted, Mismatch
from tutelage.cache.codecs import dense
from tutelage.cache.error import measure
from tutelage.errors import ConfigError

V = 300
COUNTS = (30, 1, 17)


def stored(dtype: str, *, teacher=None, hidden_ND=None, rows=None, temperature: float = 1.0):
    teacher = teacher or synthetic.head(dtype=torch.float64)
    rows = synthetic.positions(COUNTS, vocabulary=teacher.n_vocabulary) if rows is None else rows
    hidden_ND = synthetic.states(len(rows), dtype=torch.float64) if hidden_ND is None else hidden_ND
    encoded = dense.encode(
        hidden_ND, head=teacher, positions=rows, temperature=temperature, settings={"dtype": dtype}, tables={}
    )
    read = dense.decode(
        synthetic.bytes_of(encoded), positions=rows, n_vocabulary=teacher.n_vocabulary, temperature=temperature,
        settings={"dtype": dtype}, tables={},
    )  # fmt: skip
    return teacher, hidden_ND, encoded, read.logits_NV


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_float64_is_the_live_teacher_to_1e_12_at_any_temperature(temperature):
    teacher, hidden_ND, _, logits_NV = stored("float64", temperature=temperature)
    live_NV = torch.log_softmax(teacher.logits(hidden_ND) / temperature, -1)
    assert logits_NV.dtype == torch.float64
    torch.testing.assert_close(torch.log_softmax(logits_NV / temperature, -1), live_NV, rtol=0, atol=1e-12)


def test_the_gradient_of_a_float64_cache_is_the_live_one_to_1e_12():
    teacher, hidden_ND, _, logits_NV = stored("float64")
    gradients = []
    for target_NV in (teacher.logits(hidden_ND), logits_NV):
        student_NV = torch.linspace(-2, 2, V, dtype=torch.float64).expand(len(hidden_ND), V).clone().requires_grad_()
        p_NV = torch.softmax(target_NV, -1)
        (p_NV * (p_NV.log() - torch.log_softmax(student_NV, -1))).sum().backward()
        gradients.append(student_NV.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_row_has_exactly_the_bytes_that_the_page_says(dtype):
    _, _, encoded, _ = stored(dtype)
    width = {"float16": 2, "float32": 4, "float64": 8}[dtype]
    assert [len(row) for row in encoded.rows] == [n * (V * width + 1) + 6 for n in COUNTS]


def float16_case(top: float, seed: int):
    """A distribution whose first token has all but exp(-top) of the mass: its log-probability is tiny."""
    logits_V = np.random.default_rng(seed).normal(size=40) * 3
    logits_V[0] = logits_V[1:].max() + top
    logp_V = torch.log_softmax(torch.from_numpy(logits_V), -1)
    return logp_V, logp_V.half().double()


@given(st.floats(-5, 25), st.integers(0, 2**31))
def test_float16_rounds_by_its_relative_bound_and_2_to_the_minus_25(top, seed):
    """The relative part alone fails for confident teachers, whose log-probability is subnormal in float16 (O3.5)."""
    logp_V, stored_V = float16_case(top, seed)
    assert ((stored_V - logp_V).abs() <= dense.rounding_bound(logp_V)).all()


def test_the_relative_bound_alone_fails_for_a_confident_teacher():
    logp_V, stored_V = float16_case(14.0, 0)
    assert (stored_V - logp_V).abs()[0] > 2**-11 * logp_V.abs()[0]


def test_the_choice_says_what_rounding_can_cost():
    rows, hidden_ND, teacher = synthetic.positions(COUNTS), synthetic.states(48), synthetic.head()
    why = synthetic.fitted(dense, hidden_ND=hidden_ND, teacher=teacher, rows=rows).why
    said = float(re.search(r"at most (\S+) nats", why).group(1))
    _, _, _, logits_NV = stored("float16", teacher=teacher, hidden_ND=hidden_ND, rows=rows)
    kl_nats = measure(dense.LogitTargets(logits_NV=logits_NV), hidden_ND=hidden_ND, head=teacher).kl_nats
    assert kl_nats < said < 1e-3


def test_what_is_read_in_float16_is_within_the_bound():
    teacher, hidden_ND, _, logits_NV = stored("float16", teacher=synthetic.head(dtype=torch.float64))
    true_NV = torch.log_softmax(teacher.logits(hidden_ND), -1)
    assert ((logits_NV.double() - true_NV).abs() <= dense.rounding_bound(true_NV)).all()


@given(st.floats(-5, 25), st.integers(0, 2**31), st.sampled_from(["float16", "bfloat16", "int8"]))
def test_the_kl_of_rounded_logits_is_within_hoeffdings_bound(top, seed, kind):
    """KL(p || p~) <= (max d - min d)**2 / 8 for any rounding d of the logits (O3.2)."""
    logp_V, stored_V = float16_case(top, seed)
    if kind == "bfloat16":
        stored_V = logp_V.bfloat16().double()
    elif kind == "int8":
        step = (logp_V.max() - logp_V.min()) / 255
        stored_V = (logp_V / step).round() * step
    difference_V = stored_V - logp_V
    kl = (logp_V.exp() * (logp_V - torch.log_softmax(stored_V, -1))).sum()
    assert -1e-12 <= kl <= (difference_V.max() - difference_V.min()) ** 2 / 8 + 1e-12


def test_tokens_without_probability_stay_without():
    teacher = synthetic.head()
    teacher.weight_VD[7:] = 0.0
    teacher.weight_VD[7:, 0] = -1e30
    _, _, _, logits_NV = stored("float16", teacher=teacher, hidden_ND=synthetic.states(48).abs())
    assert (logits_NV[:, 7:] == -math.inf).all() and logits_NV[:, :7].isfinite().all()


def test_the_measured_error_of_float16_is_that_of_rounding():
    teacher, hidden_ND, _, logits_NV = stored("float16", teacher=synthetic.head())
    read = dense.LogitTargets(logits_NV=logits_NV)
    error = measure(read, hidden_ND=hidden_ND.float(), head=teacher)
    assert error.per_position < 2e-3 and error.kl_nats < 3e-6 and error.kept_mass == 1.0


def test_a_witness_that_contradicts_the_distribution_is_refused():
    teacher, rows, hidden_ND = synthetic.head(), synthetic.positions(COUNTS), synthetic.states(48)
    settings = {"dtype": "float32"}
    encoded = dense.encode(hidden_ND, head=teacher, positions=rows, temperature=1.0, settings=settings, tables={})
    other = dense.encode(hidden_ND.flip(0), head=teacher, positions=rows, temperature=1.0, settings=settings, tables={})
    mixed = [
        np.frombuffer(dense.sealed(a[: n * V * 4] + b[n * V * 4 : n * V * 4 + n], rows.next_ids_N[place]), np.uint8)
        for a, b, n, place in zip(encoded.rows, other.rows, COUNTS, dense.slices_of(rows), strict=True)
    ]
    with pytest.raises(Mismatch, match="witness") as refused:
        dense.decode(mixed, positions=rows, n_vocabulary=V, temperature=1.0, settings=settings, tables={})
    assert not refused.value.damaged


@pytest.mark.parametrize("budget", [{"bytes_per_token": 100.0}, {"fixed": {"dtype": "int4"}}, {"fixed": {"k": 3}}])
def test_a_budget_that_cannot_be_met_says_what_can(budget):
    rows, hidden_ND = synthetic.positions(COUNTS), synthetic.states(48)
    with pytest.raises(ConfigError, match="cache"):
        synthetic.fitted(dense, hidden_ND=hidden_ND, teacher=synthetic.head(), rows=rows, budget=Budget(**budget))


def test_the_dtype_is_chosen_outright():
    rows, hidden_ND = synthetic.positions(COUNTS), synthetic.states(48)
    budget = Budget(fixed={"dtype": "float64"})
    fitted = synthetic.fitted(dense, hidden_ND=hidden_ND, teacher=synthetic.head(), rows=rows, budget=budget)
    assert isinstance(fitted, Fitted) and fitted.settings == {"dtype": "float64"}


def test_a_rows_bytes_do_not_depend_on_its_neighbours():
    """At a size where a matrix product of one row and one of many round differently."""
    teacher = synthetic.head(vocabulary=3000, hidden=96)
    counts = (1, 37, 5, 80)
    rows, hidden_ND = synthetic.positions(counts, vocabulary=3000), synthetic.states(sum(counts), hidden=96) / 6
    _, _, whole, _ = stored("float32", teacher=teacher, hidden_ND=hidden_ND, rows=rows)
    for row in range(len(counts)):
        place, alone = synthetic.part(rows, row)
        _, _, one, _ = stored("float32", teacher=teacher, hidden_ND=hidden_ND[place], rows=alone)
        assert one.rows == whole.rows[row : row + 1]
