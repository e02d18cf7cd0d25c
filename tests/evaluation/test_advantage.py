"""Is the teacher better on these rows: in closed form, and how often two equal models are told apart."""

import numpy as np
import pytest

from tutelage.errors import IntegrityError
from tutelage.evaluation.advantage import advantage_of
from tutelage.evaluation.likelihood import RowLogp


def rows(logp, n_tokens):
    return RowLogp(np.asarray(logp, dtype=float), np.asarray(n_tokens))


def test_the_loss_counts_tokens_and_the_difference_is_the_students_less_the_teachers():
    found = advantage_of(rows([-10, -30], [10, 10]), rows([-20, -40], [10, 10]))
    assert (found.teacher.value, found.student.value) == (2.0, 3.0)
    assert found.difference.value == pytest.approx(1.0) and found.is_better
    assert "the teacher is better by 1.000" in found.sentence(rows="held-out", student="student")
    other = advantage_of(rows([-20, -40], [10, 10]), rows([-10, -30], [10, 10]))
    assert "the teacher is worse by 1.000" in other.sentence(rows="held-out", student="student")
    assert "let it learn the text first" in other.sentence(rows="held-out", student="student")


def test_a_row_without_a_finite_number_under_one_of_them_is_in_neither():
    found = advantage_of(rows([-10, np.nan, -30], [10] * 3), rows([-20, -5, -40], [10] * 3))
    assert (found.difference.n, found.teacher.value) == (2, 2.0)


def test_one_row_tells_no_error_and_the_sentence_says_so_in_words():
    said = advantage_of(rows([-10], [10]), rows([-20], [10])).sentence(rows="held-out", student="student")
    assert said.startswith("on 1 held-out row the teacher's loss is 1.000 nats a token, that of student 2.000")
    assert "one row tells no error" in said and "data.held_out" in said
    assert not {"inf", "nan", "rows"} & set(said.replace("(", " ").replace(")", " ").split())


def test_rows_of_which_none_can_be_scored_are_refused():
    with pytest.raises(IntegrityError, match="none of 2 rows has a finite loss") as caught:
        advantage_of(rows([np.nan, -1], [10, 0]), rows([-1, -1], [10, 0]))
    assert caught.value.code == "NO_SCORED_TOKENS"


def test_equal_models_are_told_apart_in_one_of_twenty_cases():
    draw = np.random.default_rng(0)
    told = 0
    for _ in range(600):
        n = draw.integers(20, 200, 60)
        shared = draw.normal(-3, 0.5, 60)
        a, b = (rows(n * (shared + draw.normal(0, 0.2, 60)), n) for _ in range(2))
        told += advantage_of(a, b).difference.decided
    assert 0.03 <= told / 600 <= 0.085
