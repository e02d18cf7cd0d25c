"""Shape legend: n sequences, K bins."""

import math

import numpy as np
import pytest

from tutelage.evaluation import stats
from tutelage.evaluation.metrics import ece, held_out_loss, perplexity, top1_agreement
from tutelage.evaluation.score import N_BINS, SequenceScore


def sequence(
    row: int, *, n_tokens: int = 10, nll: float = 20.0, agree: int = 5, bins: dict[int, tuple] | None = None
) -> SequenceScore:
    filled = {k: (0, 0.0, 0) for k in range(N_BINS)} | (bins or {3: (n_tokens, 0.25 * n_tokens, n_tokens // 4)})
    return SequenceScore(
        row=row,
        n_tokens=n_tokens,
        n_unscored=0,
        nll_nats=nll,
        kl_nats=nll / 2,
        n_agree=agree,
        n_correct=agree,
        brier=0.5 * n_tokens,
        bin_n=tuple(filled[k][0] for k in range(N_BINS)),
        bin_confidence=tuple(filled[k][1] for k in range(N_BINS)),
        bin_correct=tuple(filled[k][2] for k in range(N_BINS)),
    )


def simulated(rng: np.random.Generator, n: int = 200, *, shift: float = 0.0) -> list[SequenceScore]:
    """Sequences whose tokens share a level: loss 3 + shift, agreement 0.6; confidence 0.1 too high."""
    lengths, level = rng.integers(20, 80, n), rng.normal(0.0, 0.5, n)
    shared = rng.beta(3, 2, n)
    made = []
    for i, (length, loss, p) in enumerate(zip(lengths, level, shared, strict=True)):
        agree = int(rng.binomial(length, p))
        bins = {9: (int(length), 0.7 * length, agree)}
        nll = float((3 + shift + loss + rng.normal(0, 2, length)).sum())
        made.append(sequence(i, n_tokens=int(length), nll=nll, agree=agree, bins=bins))
    return made


def test_intervals_cover_the_truth_about_95_times_in_100_and_stderr_is_the_true_spread():
    rng = np.random.default_rng(7)
    trials = [simulated(rng, n=60) for _ in range(300)]
    for metric, truth in ((top1_agreement, 0.6), (held_out_loss, 3.0), (ece, 0.1)):
        estimates = [metric.compute(scores) for scores in trials]
        covered = np.mean([abs(e.value - truth) <= stats.quantile_95(e.n) * e.stderr for e in estimates])
        assert 0.915 <= covered <= 0.985  # 300 trials of 0.95: standard error 0.0126
        spread = np.std([e.value for e in estimates])
        assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.12)  # 300 trials: 4 % noise


def test_standard_error_counts_sequences_not_tokens():
    scores = simulated(np.random.default_rng(3))
    found = top1_agreement.compute(scores)
    n_tokens = sum(s.n_tokens for s in scores)
    per_token = math.sqrt(found.value * (1 - found.value) / n_tokens)
    assert found.stderr > 2 * per_token
    assert found.n == 200


def test_repeating_every_token_does_not_make_a_result_more_certain():
    scores = simulated(np.random.default_rng(4))
    doubled = [sequence(s.row, n_tokens=2 * s.n_tokens, nll=2 * s.nll_nats, agree=2 * (s.n_agree or 0)) for s in scores]
    assert held_out_loss.compute(doubled).stderr == pytest.approx(held_out_loss.compute(scores).stderr, rel=1e-12)


def test_ratio_agrees_with_the_textbook_mean_when_all_sequences_are_equally_long():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    found = stats.estimate(stats.ratio(values * 10, np.full(4, 10.0)), "nats")
    assert found.value == values.mean()
    assert found.stderr == pytest.approx(values.std(ddof=1) / 2, rel=1e-14)


def test_the_jackknife_of_a_ratio_is_near_its_linearisation():
    scores = simulated(np.random.default_rng(5))
    sums = np.array([[s.nll_nats, s.n_tokens] for s in scores])
    by_leaving_out = stats.estimate(stats.jackknife(lambda s: s[:, 0] / s[:, 1], sums), "")
    assert by_leaving_out.stderr == pytest.approx(held_out_loss.compute(scores).stderr, rel=0.02)


def test_perplexity_error_is_the_loss_error_times_perplexity():
    scores = simulated(np.random.default_rng(6))
    loss, found = held_out_loss.compute(scores), perplexity.compute(scores)
    assert found.value == pytest.approx(math.exp(loss.value))
    assert found.stderr == pytest.approx(found.value * loss.stderr)


def test_a_model_against_itself_is_no_difference():
    scores = simulated(np.random.default_rng(8))
    for metric in (held_out_loss, top1_agreement, ece, perplexity):
        found = stats.difference(metric.measure(scores), metric.measure(scores))
        assert (found.value, found.stderr, found.decided) == (0.0, 0.0, False)


def test_pairing_decides_what_two_separate_intervals_cannot():
    a = simulated(np.random.default_rng(9))
    b = [sequence(s.row, n_tokens=s.n_tokens, nll=s.nll_nats + 0.02 * s.n_tokens) for s in a]
    found = stats.difference(held_out_loss.measure(a), held_out_loss.measure(b))
    assert found.value == pytest.approx(-0.02)
    assert found.decided
    assert held_out_loss.compute(a).stderr > 0.02


def test_equal_models_are_told_apart_about_5_times_in_100():
    rng = np.random.default_rng(10)
    found = [
        stats.difference(held_out_loss.measure(simulated(rng, n=30)), held_out_loss.measure(simulated(rng, n=30)))
        for _ in range(250)
    ]
    assert 0.01 <= np.mean([f.decided for f in found]) <= 0.09  # 250 trials of 0.05: standard error 0.014


def test_one_sequence_has_no_known_error_and_decides_nothing():
    one, other = [sequence(0, nll=20.0)], [sequence(0, nll=90.0)]
    for metric in (held_out_loss, ece):
        assert metric.compute(one).stderr == math.inf
        assert not stats.difference(metric.measure(one), metric.measure(other)).decided


def test_pairs_are_the_sequences_that_both_models_scored():
    a, b = [sequence(i) for i in (0, 1, 2)], [sequence(i) for i in (3, 2, 1)]
    assert [[s.row for s in side] for side in stats.paired(a, b)] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("n", "exact"),
    [(2, 12.706204736), (3, 4.302652730), (4, 3.182446305), (5, 2.776445105), (6, 2.570581836), (10, 2.262157163),
     (30, 2.045229642), (200, 1.971956544), (10_000, 1.960201264)],
)  # fmt: skip
def test_the_quantile_is_students(n, exact):
    """Of n - 1 degrees of freedom, from printed tables; of 1 it is the tangent of 0.95 of a right angle."""
    assert stats.quantile_95(n) == pytest.approx(exact, rel=1e-8)
    assert stats.quantile_95(2) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 20, 100, 101, 102, 103, 500])
def test_the_interval_ends_where_p_is_5_percent(n):
    """So that `decided` and `p` never say different things of one comparison."""
    assert stats.p_value(stats.quantile_95(n), 1.0, n=n) == pytest.approx(0.05, rel=1e-7)
