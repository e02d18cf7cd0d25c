"""Intervals and decisions in simulation, with data as an evaluation gives them: rows of very different length, levels
of loss that differ by a factor from row to row, tokens of one row alike.

Shape legend: n sequences, S simulations.
"""

import math

import numpy as np
import pytest

from tutelage.evaluation import stats

N_SIMULATIONS = 4000  # of 0.95: standard error 0.0034; of 0.05 in 2,000 pairs: 0.0049


def rows_of_text(rng: np.random.Generator, n: int, *, simulations: int) -> tuple[np.ndarray, np.ndarray]:
    """KL summed over a row, and its tokens, [S, n]: lengths and levels log-normal, short rows harder, gamma noise."""
    tokens_Sn = np.clip(np.exp(rng.normal(5.0, 0.8, (simulations, n))), 4, 1024).round()
    level_Sn = 0.5 * np.exp(rng.normal(0.0, 0.5, (simulations, n))) * (tokens_Sn / 150) ** -0.2
    return rng.gamma(0.3 * tokens_Sn, level_Sn / 0.3), tokens_Sn


@pytest.mark.parametrize("n", [60, 200])
def test_intervals_cover_the_truth_95_times_in_100(n):
    rng = np.random.default_rng(n)
    many = rows_of_text(rng, 400_000, simulations=1)
    truth = many[0].sum() / many[1].sum()
    covered = 0
    for sums_n, tokens_n in zip(*rows_of_text(rng, n, simulations=N_SIMULATIONS), strict=True):
        found = stats.estimate(stats.ratio(sums_n, tokens_n), "nats")
        covered += abs(found.value - truth) <= stats.quantile_95(n) * found.stderr
    assert covered / N_SIMULATIONS == pytest.approx(0.95, abs=0.02)


def test_two_samples_of_one_model_are_told_apart_5_times_in_100():
    """Two models of one quality on the same rows: each row's level is shared, the rest is luck."""
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(N_SIMULATIONS // 2):
        (sums_n,), (tokens_n,) = rows_of_text(rng, 80, simulations=1)
        a, b = (stats.ratio(rng.gamma(8.0, sums_n / 8.0), tokens_n) for _ in range(2))
        false += stats.difference(a, b).decided
    assert false / (N_SIMULATIONS // 2) == pytest.approx(0.05, abs=0.015)


def test_of_many_comparisons_without_any_difference_one_is_claimed_5_times_in_100():
    """20 metrics, half of them alike, of two equal models: any claim is false, alone 5 % of 20 would be claimed."""
    rng = np.random.default_rng(6)
    alone = together = 0
    for _ in range(500):  # standard error 0.01
        shared_n, each_n20 = rng.normal(size=(60, 1)), rng.normal(size=(60, 20))
        gaps_n20 = np.where(np.arange(20) < 10, shared_n + 0.3 * each_n20, each_n20)
        zero = stats.ratio(np.zeros(60), np.ones(60))
        found = [stats.difference(stats.ratio(gaps_n20[:, k], np.ones(60)), zero) for k in range(20)]
        alone += any(d.decided for d in found)
        together += any(d.is_sure for d in stats.corrected(found))
    assert together / 500 <= 0.05 + 0.02
    assert alone / 500 > 0.3


def test_the_standard_error_of_rows_of_very_different_length_is_the_true_spread():
    rng = np.random.default_rng(7)
    found = [
        stats.estimate(stats.ratio(a, b), "")
        for a, b in zip(*rows_of_text(rng, 60, simulations=N_SIMULATIONS), strict=True)
    ]
    spread = np.std([e.value for e in found])
    assert math.sqrt(np.mean([e.stderr**2 for e in found])) == pytest.approx(spread, rel=0.04)


def test_a_ratio_is_its_own_jackknife():
    (sums_n,), (tokens_n,) = rows_of_text(np.random.default_rng(8), 40, simulations=1)
    closed = stats.ratio(sums_n, tokens_n)
    left_out = stats.jackknife(lambda s: s[..., 0] / s[..., 1], np.stack([sums_n, tokens_n], axis=-1))
    assert closed.value == left_out.value
    assert closed.influence_n == pytest.approx(left_out.influence_n, rel=1e-9, abs=1e-15)


# Two-sided probabilities of Student's t: closed forms of 1 and 2 degrees, points of printed tables.
@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [
        (1.0, 1, 0.5),
        (3.0, 1, 1 - 2 / math.pi * math.atan(3.0)),
        (3.0, 2, 1 - 3 / math.sqrt(11)),
        (2.776445, 4, 0.05),
        (2.262157, 9, 0.05),
        (4.780913, 9, 0.001),
        (2.045230, 29, 0.05),
        (1.971957, 199, 0.05),
        (1.960795, 2500, 0.05003),
    ],
)
def test_p_values_are_students(t, degrees, p):
    assert stats.p_value(2 * t, 2.0, n=degrees + 1) == pytest.approx(p, rel=5e-4)
    assert stats.p_value(-t, 1.0, n=degrees + 1) == stats.p_value(t, 1.0, n=degrees + 1)


def test_p_values_go_on_smoothly_where_the_formula_changes():
    below, above = stats.p_value(3.0, 1.0, n=1001), stats.p_value(3.0, 1.0, n=1002)
    assert 0 < 1 - above / below < 1e-4


def test_without_a_difference_or_an_error_there_is_nothing_to_claim():
    assert stats.p_value(0.0, 0.0, n=9) == stats.p_value(1.0, math.inf, n=9) == stats.p_value(1.0, 1.0, n=1) == 1.0
    assert stats.p_value(1.0, 0.0, n=9) == 0.0


def test_holm_steps_down_as_its_paper_does():
    def rejected(p_values: list[float]) -> list[bool]:
        return [p <= stats.ALPHA for p in stats.holm(p_values)]

    assert rejected([0.04, 0.011, 0.02, 0.001]) == [True, True, True, True]
    assert rejected([0.04, 0.03, 0.02, 0.001]) == [False, False, False, True]  # 0.02 > 0.05 / 3 ends it
    assert rejected([0.02, 0.02]) == [True, True]
    assert rejected([]) == []


def test_what_is_claimed_of_one_comparison_alone_needs_no_correction():
    found = stats.difference(stats.ratio([3.0, 2.0, 2.5, 3.1], np.ones(4)), stats.ratio(np.ones(4), np.ones(4)))
    assert (found.corrected, found.is_sure) == (None, True)
    (alone,) = stats.corrected([found])
    assert alone.is_sure
    crowd = stats.corrected([found, *[stats.negative(found)] * 40])
    assert not any(d.is_sure for d in crowd)
    assert all(d.decided for d in crowd)
