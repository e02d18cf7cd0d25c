"""The front of a sweep: every row against every other one, by hand."""

import random

import pytest

from tutelage.evaluation.sums import SequenceScore
from tutelage.evaluation.transfer import Cost
from tutelage.planning.contest import TOKENS
from tutelage.reports.contest import Entry
from tutelage.reports.sweep import Measured, family


def score(row, nats):
    return SequenceScore(row=row, n_tokens=10, n_unscored=0, nll_nats=nats, kl_nats=None, n_agree=None, n_correct=5,
                         brier=5.0, bin_n=(10,) * 20, bin_confidence=(5.0,) * 20, bin_correct=(5,) * 20)  # fmt: skip


def entry(technique, *, parameters, n_bytes, loss, rows):
    scores = {"held_out": [score(i, 10 * (loss + noise)) for i, noise in enumerate(rows)]}
    return Entry(technique=technique, seed=0, views=(TOKENS,), tokens=100, run="", scores=scores, training_s=1.0,
                 teacher_s=0.0, flops=1.0, cost=Cost(parameters=parameters, parameter_bytes=n_bytes))  # fmt: skip


def found(entries):
    return Measured(entries=entries, teacher={}, teacher_cost=None, facts={}, refused={})


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_smaller_or_equal_in_parameters_and_bytes_beats(seed):
    draw = random.Random(seed)
    rows = [draw.gauss(0.0, 0.1) for _ in range(12)]
    made = {
        f"s{i}": found(
            [
                entry(t, parameters=draw.choice((5, 9)), n_bytes=draw.choice((10, 20)), loss=draw.choice((3, 4, 5)),
                      rows=rows)
                for t in ("control", "soft")
            ]
        )
        for i in range(4)
    }  # fmt: skip
    everything = [(e.cost.parameters, e.cost.parameter_bytes, round(sum(s.nll_nats for s in e.scores["held_out"]), 6))
                  for one in made.values() for e in one.entries]  # fmt: skip
    for row in family(made, made_by="x").rows:
        own = (row.parameters, row.parameter_bytes, round(row.loss * 120, 6))
        beaten = any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own and other[2] <= own[2]
                     for other in everything)  # fmt: skip
        assert bool(row.beaten_by) == beaten, row


def test_who_is_beaten_by_more_than_noise():
    """A copy that is a nat worse is beaten; one that is hardly worse, on other rows by turns, is not shown to be."""
    draw = random.Random(0)
    rows = [draw.gauss(0.0, 0.1) for _ in range(12)]
    unsure = [noise + (0.3 if i % 2 else -0.29) for i, noise in enumerate(rows)]
    made = {
        name: found([entry("control", parameters=5, n_bytes=10, loss=loss, rows=own)])
        for name, loss, own in (("good", 3.0, rows), ("near", 3.0, unsure), ("worse", 4.0, rows))
    }
    assert {(r.setting, r.beaten_by, r.sure) for r in family(made, made_by="x").rows} == {
        ("good", "", False), ("near", "good control", False), ("worse", "good control", True)
    }  # fmt: skip
