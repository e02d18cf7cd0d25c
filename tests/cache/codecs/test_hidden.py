"""Hidden states in eight bits: small error, the head kept as it is, any temperature, and a foreign head refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cache import synthetic
from tutelage.cache.codec import Budget, Mismatch
from tutelage.cache.codecs import hidden
from tutelage.cache.error import measure
from tutelage.errors import ConfigError
from tutelage.types import Head

V, D = 300, 8
COUNTS = (30, 0, 1, 17)


def made(teacher: Head | None = None, hidden_ND=None):
    teacher = teacher or synthetic.head()
    hidden_ND = synthetic.states(48) if hidden_ND is None else hidden_ND
    rows = synthetic.positions(COUNTS)
    fitted = synthetic.fitted(hidden, hidden_ND=hidden_ND, teacher=teacher, rows=rows)
    encoded = synthetic.encoded(hidden, fitted, hidden_ND=hidden_ND, teacher=teacher, rows=rows)
    return teacher, hidden_ND, rows, fitted, encoded


def read(fitted, encoded, rows):
    return synthetic.decoded(hidden, fitted, synthetic.bytes_of(encoded), rows=rows, vocabulary=V)


def test_the_states_come_back_within_half_a_step_of_the_positions_largest():
    _, hidden_ND, rows, fitted, encoded = made()
    scale_D, offset_D = fitted.tables["column_scale"], fitted.tables["column_offset"]
    difference_ND = (read(fitted, encoded, rows).hidden_ND - hidden_ND).abs() / scale_D
    largest_N1 = ((hidden_ND - offset_D) / scale_D).abs().amax(-1, keepdim=True)
    assert (difference_ND <= 0.5001 * largest_N1 / 127 + largest_N1 * 2**-10).all()


def test_a_row_has_exactly_the_bytes_that_the_page_says():
    *_, encoded = made()
    assert [len(row) for row in encoded.rows] == [n * (D + 3) + 6 for n in COUNTS]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distribution_is_near_the_teachers_at_every_temperature(temperature):
    teacher, hidden_ND, rows, fitted, encoded = made()
    error = measure(read(fitted, encoded, rows), hidden_ND=hidden_ND, head=teacher, temperature=temperature)
    assert error.kl_nats < 5e-4 / temperature**2
    assert error.per_position < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_head_comes_back_as_it_is(dtype):
    weight_VD = torch.randn(V + 20, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias_V = torch.linspace(-1, 1, V + 20).to(dtype)
    teacher = Head(
        weight_VD=weight_VD, bias_V=bias_V, n_vocabulary=V, scale=0.5, soft_cap=9.0, fingerprint="of the teacher"
    )
    _, _, rows, fitted, encoded = made(teacher)
    head = read(fitted, encoded, rows).head
    assert torch.equal(head.weight_VD, weight_VD[:V]) and head.weight_VD.dtype == dtype
    assert torch.equal(head.bias_V, bias_V[:V])
    assert (head.n_vocabulary, head.scale, head.soft_cap, head.fingerprint) == (V, 0.5, 9.0, "of the teacher")


def test_the_head_is_not_copied_for_every_batch():
    *_, rows, fitted, encoded = made()
    heads = [read(fitted, encoded, rows).head for _ in range(2)]
    assert heads[0].weight_VD is heads[1].weight_VD is fitted.tables["head.weight"]


def test_columns_of_very_different_size_keep_their_precision():
    """One column a thousand times larger, as in real models: one scale for a position's columns would lose the rest."""
    sizes_D = torch.tensor([1000.0, *[1.0] * (D - 1)])
    teacher = synthetic.head()
    teacher = replace(teacher, weight_VD=teacher.weight_VD / sizes_D)
    hidden_ND = synthetic.states(48) * sizes_D
    _, _, rows, fitted, encoded = made(teacher, hidden_ND)
    assert measure(read(fitted, encoded, rows), hidden_ND=hidden_ND, head=teacher).kl_nats < 5e-4


def test_a_column_that_is_constant_comes_back():
    hidden_ND = synthetic.states(48)
    hidden_ND[:, 3] = 2.5
    _, _, rows, fitted, encoded = made(hidden_ND=hidden_ND)
    assert (read(fitted, encoded, rows).hidden_ND[:, 3] - 2.5).abs().max() < 1e-5


def test_states_of_zero_come_back():
    _, _, rows, fitted, _ = made()
    zero_ND = torch.zeros(48, D)
    encoded = synthetic.encoded(hidden, fitted, hidden_ND=zero_ND, teacher=synthetic.head(), rows=rows)
    assert read(fitted, encoded, rows).hidden_ND.abs().max() < 0.02


def test_a_foreign_head_is_refused_by_the_witness():
    _, _, rows, fitted, encoded = made()
    other = {**fitted.tables, "head.weight": synthetic.head(seed=9).weight_VD}
    with pytest.raises(Mismatch, match="head") as refused:
        read(replace(fitted, tables=other), encoded, rows)
    assert not refused.value.damaged


def test_hidden_states_of_a_shifted_forward_pass_are_refused_by_the_witness():
    """A writer that pairs states with the wrong tokens: checksum and token hash are right, the witness is not."""
    teacher, hidden_ND, rows, fitted, encoded = made()
    shifted = synthetic.encoded(hidden, fitted, hidden_ND=hidden_ND.roll(1, 0), teacher=teacher, rows=rows)
    mixed = []
    for n, right, wrong, place in zip(COUNTS, encoded.rows, shifted.rows, hidden._row.slices_of(rows), strict=True):
        payload = wrong[: n * (D + 2)] + right[n * (D + 2) : n * (D + 3)]
        mixed.append(np.frombuffer(hidden._row.sealed(payload, rows.next_ids_N[place]), np.uint8))
    with pytest.raises(Mismatch, match="witness"):
        synthetic.decoded(hidden, fitted, mixed, rows=rows, vocabulary=V)


@pytest.mark.parametrize("budget", [{"bytes_per_token": D + 2.0}, {"error": 1e-6}, {"fixed": {"bits": 4}}])
def test_a_budget_that_cannot_be_met_says_what_can(budget):
    rows = synthetic.positions(COUNTS)
    with pytest.raises(ConfigError, match="cache"):
        synthetic.fitted(
            hidden, hidden_ND=synthetic.states(48), teacher=synthetic.head(), rows=rows, budget=Budget(**budget)
        )
