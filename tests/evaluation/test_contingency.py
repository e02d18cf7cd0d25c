"""Shares and their intervals, exact tests, and the cells of two models' answers: closed forms and simulations."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from tutelage.evaluation import stats
from tutelage.evaluation.contingency import TWO_CHOICES, contingencies
from tutelage.evaluation.shares import binomial_tail, share, sign_test


@dataclass(frozen=True)
class Row:
    n: int = 1
    right: int = 1
    wrong: tuple[str, ...] = ()


def rows(said, true):
    """One answer a prompt."""
    return [Row(right=int(a == b), wrong=() if a == b else (a,)) for a, b in zip(said, true, strict=True)]


def test_wilson_intervals_cover_the_truth_also_near_0():
    draw = np.random.default_rng(0)
    for p in (0.02, 0.1, 0.5, 0.9):
        found = [share(k, 100) for k in draw.binomial(100, p, size=2_000)]
        assert 0.93 <= np.mean([one.low <= p <= one.high for one in found]) <= 0.985
    none = share(0, 20)
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(
        1.959963984540054**2 / (20 + 1.959963984540054**2)
    )
    assert (share(0, 0).low, share(0, 0).high) == (0, 1) and math.isnan(share(0, 0).value)


def test_the_sign_test_is_the_exact_binomial_one():
    for a, b in itertools.product(range(8), repeat=2):
        n, k = a + b, min(a, b)
        assert sign_test(a, b) == pytest.approx(min(1, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))
    assert binomial_tail(2, 3, p=1 / 3) == pytest.approx(3 * (1 / 9) * (2 / 3) + 1 / 27)


def test_holm_is_bonferroni_for_the_smallest_and_never_reorders():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5]) == [0.5] and stats.holm([]) == []


def test_identical_models_are_never_right_alone_and_always_wrong_alike():
    draw = np.random.default_rng(1)
    true = [str(n) for n in draw.integers(0, 50, 60)]
    said = [t if draw.random() < 0.6 else str(draw.integers(50, 90)) for t in true]
    (found,) = contingencies(("teacher", rows(said, true)), [("student", rows(said, true))])
    assert found.only_first.value == found.only_second.value == 0 and found.both.value + found.neither.value == 1
    assert not found.difference.decided and found.difference.value == 0 and found.p_value == 1
    assert found.same_wrong.share.value == 1 and found.same_wrong.decided


def test_the_four_cells_are_counted_and_add_up():
    true = list("aaaaaaaaaa")
    teacher, student = list("aaaaaabbbb"), list("aaabbbaabc")
    (found,) = contingencies(("teacher", rows(teacher, true)), [("student", rows(student, true))])
    cells = found.both, found.only_first, found.only_second, found.neither
    assert [10 * cell.value for cell in cells] == pytest.approx([3, 3, 2, 2])
    assert found.difference.value == pytest.approx(0.1) and found.p_value == pytest.approx(1.0)
    assert found.same_wrong.share.value == 0.5 and found.same_wrong.share.n == 2


def test_several_answers_to_a_prompt_count_as_parts_of_it():
    teacher, student = [Row(n=4, right=1, wrong=("x", "x", "y"))], [Row(n=2, right=1, wrong=("x",))]
    (found,) = contingencies(("teacher", teacher), [("student", student)])
    cells = found.both, found.only_first, found.only_second, found.neither
    assert [cell.value for cell in cells] == pytest.approx([1 / 8, 1 / 8, 3 / 8, 3 / 8])
    assert found.same_wrong.share.value == pytest.approx(2 / 3)  # a random wrong one of the four is x


def test_chance_is_the_mean_over_all_shuffles_of_the_answers():
    true = ["0"] * 5
    teacher, student = ["1", "1", "2", "3", ""], ["1", "2", "2", "1", ""]
    (found,) = contingencies(("teacher", rows(teacher, true)), [("student", rows(student, true))])
    every = [
        np.mean([a == b != "" for a, b in zip(teacher, order, strict=True)])
        for order in itertools.permutations(student)
    ]
    assert found.same_wrong.chance == pytest.approx(np.mean(every), abs=1e-12)
    assert found.same_wrong.share.value == pytest.approx(2 / 5)  # what nobody could read equals nothing


def test_of_a_choice_chance_is_one_of_the_wrong_choices():
    draw = np.random.default_rng(3)
    true = draw.integers(0, 4, 3_000)
    guess = [(true + draw.integers(1, 4, 3_000)) % 4 for _ in range(2)]
    first, second = (rows([*map(str, one)], [*map(str, true)]) for one in guess)
    (found,) = contingencies(("teacher", first), [("student", second)], choices=4)
    assert found.same_wrong.chance == pytest.approx(1 / 3)
    assert found.same_wrong.share.low < 1 / 3 < found.same_wrong.share.high


def test_with_two_choices_the_same_wrong_answer_is_no_finding_and_the_reason_is_given():
    true, said = ["a"] * 20, ["b"] * 12 + ["a"] * 8
    (found,) = contingencies(("teacher", rows(said, true)), [("student", rows(said, true))], choices=2)
    assert found.same_wrong is None and found.no_same_wrong == TWO_CHOICES
    (none,) = contingencies(("teacher", rows(true, true)), [("student", rows(said, true))], choices=4)
    assert none.same_wrong is None and none.no_same_wrong == "no prompt was answered wrong by both"
    (open_ended,) = contingencies(("teacher", rows(said, true)), [("student", rows(said, true))])
    assert open_ended.same_wrong is not None and open_ended.no_same_wrong == ""


def test_of_prompts_with_unequal_choices_each_has_its_own_chance_and_the_p_value_is_exact():
    choices = [3, 5, 4, 2, 3]
    true, first, second = "01230", "10012", "10312"
    (found,) = contingencies(("t", rows(first, true)), [("s", rows(second, true))], choices=choices)
    chances = [1 / 2, 1 / 4, 1 / 3, 1 / 2]  # the prompt with two choices says nothing
    exact = sum(
        math.prod(p if hit else 1 - p for p, hit in zip(chances, hits, strict=True))
        for hits in itertools.product((0, 1), repeat=4)
        if sum(hits) >= 3
    )
    assert found.same_wrong.chance == pytest.approx(np.mean(chances)) and found.same_wrong.choices is None
    assert found.same_wrong.share.value == 3 / 4 and found.same_wrong.p_value == pytest.approx(exact)


def test_independent_models_are_said_to_err_alike_in_one_of_twenty_cases_at_most():
    draw = np.random.default_rng(4)
    alarms, n = 0, 150
    for _ in range(n):
        true = ["r"] * 25
        first, second = ([str(k) for k in draw.geometric(0.4, 25)] for _ in range(2))
        (found,) = contingencies(("teacher", rows(first, true)), [("student", rows(second, true))])
        alarms += found.same_wrong.decided
    assert alarms <= 14  # 7.5 expected; more than 14 has a chance below 1 %


def test_many_students_do_not_make_a_finding():
    true = ["r"] * 8
    teacher, student = rows(["r"] * 8, true), rows(["r", "r", *"wwwwww"], true)
    (alone,) = contingencies(("teacher", teacher), [("student", student)])
    assert alone.difference.decided and alone.p_value == pytest.approx(2 / 64)
    many = contingencies(("teacher", teacher), [(f"s{i}", student) for i in range(2)])
    assert not any(one.difference.decided for one in many)


def test_models_that_are_right_equally_often_with_other_numbers_of_answers_are_not_told_apart():
    """A share of four answers lies below 1 more often than one answer does: the order of shares is no evidence."""
    draw, n_told = np.random.default_rng(5), 0
    for _ in range(200):
        four = [Row(n=4, right=int(k), wrong=("x",) * (4 - int(k))) for k in draw.binomial(4, 0.75, size=200)]
        one = [Row(right=int(k), wrong=() if k else ("y",)) for k in draw.binomial(1, 0.75, size=200)]
        (found,) = contingencies(("teacher", four), [("student", one)])
        n_told += found.difference.decided
    assert n_told <= 20  # 5 % expected; 196 by the order of shares
