"""The temperature that mends, from seven losses and slopes, against a direct minimisation in float64.

Shape legend: N tokens, V vocabulary, n sequences.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.test_stats import sequence
from tutelage.evaluation import stats
from tutelage.evaluation.metrics import ece, held_out_loss, mending_temperature, saved_by_temperature
from tutelage.evaluation.positions import Product, numbers
from tutelage.evaluation.sums import Positions, SequenceScore, Totals

N_TOKENS, N_VOCABULARY = 4000, 97


def logits_and_truth(miscalibration: float) -> tuple[Tensor, Tensor]:
    """Tokens drawn from a softmax, and logits `miscalibration` times those that they were drawn from."""
    draw = torch.Generator().manual_seed(3)
    true_NV = 2.5 * torch.randn(N_TOKENS, N_VOCABULARY, generator=draw, dtype=torch.float64)
    ids_N = torch.multinomial(true_NV.softmax(-1), 1, generator=draw)[:, 0]
    return true_NV * miscalibration, ids_N


def scores_of(logits_NV: Tensor, ids_N: Tensor) -> list[SequenceScore]:
    totals = Totals()
    columns = numbers(Product(logits_NV), None, ids_N)
    rows_N, places_N = np.arange(N_TOKENS) // 40, np.arange(N_TOKENS) % 40
    totals.add(Positions(columns=columns, row_N=rows_N, position_N=places_N, cells={}, n_bytes_N=None))
    return totals.scores()


def loss(logits_NV: Tensor, ids_N: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits_NV / temperature, ids_N))


def minimised(logits_NV: Tensor, ids_N: Tensor) -> float:
    """Golden section in the logarithm of the temperature: 1e-6 of it."""
    low, high, golden = math.log(0.3), math.log(6.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        if loss(logits_NV, ids_N, math.exp(a)) < loss(logits_NV, ids_N, math.exp(b)):
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("miscalibration", [0.6, 0.85, 1.0, 1.3, 1.9, 2.8])
def test_the_temperature_and_what_it_saves_are_those_of_a_direct_minimisation(miscalibration):
    logits_NV, ids_N = logits_and_truth(miscalibration)
    scores = scores_of(logits_NV, ids_N)
    best = minimised(logits_NV, ids_N)
    found = mending_temperature.compute(scores)
    assert found.value == pytest.approx(best, rel=1e-3)  # the polynomial between the temperatures that were measured
    assert abs(found.value - miscalibration) <= 3 * found.stderr
    saved = loss(logits_NV, ids_N, 1.0) - loss(logits_NV, ids_N, best)
    assert saved_by_temperature.compute(scores).value == pytest.approx(saved, rel=5e-4, abs=2e-5)


def test_dividing_the_logits_by_it_mends_the_calibration():
    logits_NV, ids_N = logits_and_truth(1.7)
    before = scores_of(logits_NV, ids_N)
    after = scores_of(logits_NV / mending_temperature.compute(before).value, ids_N)
    fallen = held_out_loss.compute(before).value - held_out_loss.compute(after).value
    assert fallen == pytest.approx(saved_by_temperature.compute(before).value, abs=2e-5)
    assert mending_temperature.compute(after).value == pytest.approx(1.0, abs=2e-4)
    assert ece.compute(after).value < 0.3 * ece.compute(before).value


@pytest.mark.parametrize(("miscalibration", "end"), [(9.0, 4.0), (0.1, 0.5)])
def test_at_an_end_of_the_range_the_error_is_unknown_and_nothing_is_decided(miscalibration, end):
    scores = scores_of(*logits_and_truth(miscalibration))
    found = mending_temperature.measure(scores)
    assert mending_temperature.compute(scores).value == end
    assert mending_temperature.compute(scores).stderr == math.inf
    other = mending_temperature.measure(scores_of(*logits_and_truth(1.0)))
    for second in (other, found):
        compared = stats.difference(found, second)
        assert (compared.stderr, compared.decided, compared.p) == (math.inf, False, 1.0)


def test_the_error_of_the_temperature_is_its_spread_over_resampled_rows():
    scores = scores_of(*logits_and_truth(1.4))
    rng = np.random.default_rng(1)
    drawn = [[scores[i] for i in rng.integers(0, len(scores), len(scores))] for _ in range(200)]
    spread = np.std([mending_temperature.measure(d).value for d in drawn])
    assert mending_temperature.compute(scores).stderr == pytest.approx(spread, rel=0.2)  # 200 draws: 5 % noise


def test_a_uniform_model_needs_no_mending():
    flat = {"heated_nats": (math.log(9.0) * 10,) * 7, "heated_slopes": (0.0,) * 7}
    scores = [replace(sequence(i), **flat) for i in range(4)]
    assert mending_temperature.compute(scores).value == 1.0
    assert saved_by_temperature.compute(scores).value == 0.0
