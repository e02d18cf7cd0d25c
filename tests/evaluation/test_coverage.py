"""Coverage: what is left of the distance to the teacher, against a second computation from the sequences."""

import math
from itertools import combinations

import numpy as np
import pytest

from tutelage.evaluation import stats
from tutelage.evaluation.coverage import KL, coverage_of
from tutelage.evaluation.transfer import SetResult, Transfer
from tutelage.reports import coverage as table

MODELS = ("teacher", "student_before", "student")


def ratio(a_n, b_n):
    value = a_n.sum() / b_n.sum()
    return stats.Measured(float(value), (a_n - value * b_n) / b_n.sum())


def transfer(draw, *, n, left):
    """Two sets, and the KL of each sequence; `left` is what remains of the distance in each, on average."""
    by_set, sets = {}, {}
    for name, share in left.items():
        hard, length = draw.gamma(4, 0.25, n), draw.integers(20, 60, n).astype(float)
        before = 4 * hard * length
        kl = by_set[name] = dict(zip(MODELS, (0 * hard, before, share * before * draw.gamma(9, 1 / 9, n)), strict=True))
        measured = {model: ratio(kl[model], length) for model in MODELS}
        compared = [
            stats.Compared(metric=KL, first=a, second=b, difference=stats.difference(measured[a], measured[b]))
            for a, b in combinations(MODELS, 2)
        ]
        sets[name] = SetResult(
            n_sequences=n,
            n_tokens=int(length.sum()),
            n_unscored=dict.fromkeys(MODELS, 0),
            estimates={model: {KL: stats.estimate(found, "nats")} for model, found in measured.items()},
            compared=tuple(compared),
        )
    return by_set, Transfer(teacher="teacher", models=MODELS, sets=sets)


def test_what_is_left_has_the_error_of_the_ratio_of_both_sums():
    by_set, found = transfer(np.random.default_rng(0), n=40, left={"held_out": 0.2, "out_of_domain": 0.5})
    (covered,) = coverage_of(found)
    for gap in (covered.in_domain, covered.others[0].gap):
        direct = stats.estimate(ratio(by_set[gap.name]["student"], by_set[gap.name]["student_before"]), "share")
        assert gap.left.value == pytest.approx(direct.value, rel=1e-12)
        assert gap.left.stderr == pytest.approx(direct.stderr, rel=1e-9)
    assert covered.others[0].decided and 1.7 < covered.others[0].ratio < 3.7
    listed = table.listed((covered,))
    assert "covers it less" in listed.note and len(listed.rows) == 2


def test_intervals_of_the_ratio_cover_the_truth_and_equal_sets_are_called_equal():
    draw = np.random.default_rng(1)
    held, alarms = [], 0
    for _ in range(200):
        (covered,) = coverage_of(transfer(draw, n=30, left={"held_out": 0.3, "out_of_domain": 0.3})[1])
        (other,) = covered.others
        held.append(other.low <= 1 <= other.high)
        alarms += other.decided
    assert np.mean(held) >= 0.91 and alarms <= 19  # 10 expected


def test_of_a_few_sequences_the_p_value_is_that_of_student_and_agrees_with_the_interval():
    _, found = transfer(np.random.default_rng(3), n=4, left={"held_out": 0.3, "out_of_domain": 0.5})
    (covered,) = coverage_of(found)
    (other,) = covered.others
    stderr = math.log(other.high / other.ratio) / stats.quantile_95(4)
    assert other.p_value == pytest.approx(stats.p_value(math.log(other.ratio), stderr, n=4))
    assert other.p_value > 1.5 * math.erfc(abs(math.log(other.ratio)) / stderr / math.sqrt(2))


def test_without_a_student_before_training_nothing_is_said():
    _, found = transfer(np.random.default_rng(2), n=5, left={"held_out": 0.3, "out_of_domain": 0.3})
    assert coverage_of(Transfer(teacher="teacher", models=("teacher", "student"), sets=found.sets)) == ()
    assert table.listed(()) is None
