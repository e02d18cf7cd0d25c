"""Runs of several seeds taken together: what their sums are, and how often their intervals are right."""

import numpy as np
import pytest

from tests.evaluation.test_stats import sequence
from tutelage.errors import ConfigError
from tutelage.evaluation import pooling, stats
from tutelage.evaluation.metrics import ece, held_out_loss

N_ROWS, N_SEEDS = 40, 3


def found_in(rng, *, shift: float, seed_spread: float) -> pooling.Paired:
    """Two techniques on the same rows: a loss is that of its row, its technique's, its seed's, and noise."""
    rows_R, run_SR = rng.normal(0, 0.5, N_ROWS), rng.normal(0, 0.1, (2, N_SEEDS, N_ROWS))
    run_SR[0] += shift
    first_R, second_R = (3 + rows_R + run_SR[i].mean(0) for i in (0, 1))
    luck = rng.normal(0, seed_spread, (2, N_SEEDS))
    by_seed = run_SR.mean(-1) + luck
    first_R, second_R = first_R + luck[0].mean(), second_R + luck[1].mean()
    a, b = (stats.Measured(float(x.mean()), (x - x.mean()) / N_ROWS) for x in (first_R, second_R))
    return pooling.combined(stats.difference(a, b), list(by_seed[0] - by_seed[1]))


def test_sums_of_equal_runs_have_the_metrics_of_one():
    run = [sequence(r, nll=20.0 + r, bins={2: (10, 2.0 + r / 10, 3)}) for r in range(5)]
    for metric in (held_out_loss, ece):
        alone, together = metric.measure(run), metric.measure(pooling.pooled([run, run, run]))
        assert together.value == pytest.approx(alone.value, rel=1e-12)
        assert together.influence_n == pytest.approx(alone.influence_n, abs=1e-12)
    assert pooling.pooled([run]) == run


def test_runs_on_different_rows_are_not_taken_together():
    with pytest.raises(ConfigError, match="scored different rows"):
        pooling.pooled([[sequence(0)], [sequence(1)]])


def test_one_seed_is_the_difference_over_rows():
    rng = np.random.default_rng(0)
    a, b = ([sequence(r, nll=float(x)) for r, x in enumerate(rng.normal(20, 3, 9))] for _ in range(2))
    found = pooling.compare("held_out_loss", [a], [b])
    plain = stats.difference(held_out_loss.measure(a), held_out_loss.measure(b))
    assert (found.value, found.stderr, found.p, found.seeds_stderr) == (plain.value, plain.stderr, plain.p, None)


@pytest.mark.parametrize("seed_spread", [0.0, 0.01, 0.02, 0.05, 0.3])
def test_false_alarms_are_rare_whether_rows_or_seeds_vary_more(seed_spread):
    """From rows alone to seeds worth far more than rows, where the error over rows alone would cry nearly always."""
    rng = np.random.default_rng(5)
    found = [found_in(rng, shift=0.0, seed_spread=seed_spread) for _ in range(2000)]
    assert sum(f.p < 0.05 for f in found) / 2000 <= 0.06  # 2,000 trials of 0.05: standard error 0.005
    if seed_spread > 0.1:
        assert sum(abs(f.value) > 2.02 * f.rows_stderr for f in found) / 2000 > 0.7


def test_a_real_difference_is_seen():
    rng = np.random.default_rng(6)
    found = [found_in(rng, shift=-0.2, seed_spread=0.02) for _ in range(200)]
    assert sum(f.p < 0.05 for f in found) > 190 and all(len(f.by_seed) == N_SEEDS for f in found)
    assert np.mean([f.value for f in found]) == pytest.approx(-0.2, abs=0.01)


def test_the_comparison_of_two_techniques_takes_the_seeds_in_pairs():
    run = [[sequence(r, nll=20.0 + r + s) for r in range(6)] for s in range(3)]
    other = [[sequence(r, nll=21.0 + r + 2 * s) for r in range(6)] for s in range(3)]
    found = pooling.compare("held_out_loss", run, other)
    assert found.by_seed == pytest.approx((-0.1, -0.2, -0.3)) and found.value == pytest.approx(-0.2)
    assert found.seeds_stderr == pytest.approx(0.1 / 3**0.5)
