"""What models write: counts in closed form, the teacher against itself, and files that give the same numbers."""

import numpy as np
import pytest

from tutelage.evaluation import writing
from tutelage.evaluation.writing import Text, result_of


def text(model, prompt, ids, *, ended=True, wants_json=False, said=""):
    return Text(model=model, prompt=prompt, ids=tuple(ids), ended=ended, wants_json=wants_json, text=said)


def test_repetition_and_variety_are_counted_in_sequences_of_tokens():
    loop, plain = [1, 2] * 6, list(range(9))
    found = result_of([text("m", 0, loop, ended=False), text("m", 1, plain)], max_tokens=12, teacher=None).estimates[
        "m"
    ]
    assert found["repeated_4"].value == pytest.approx(7 / (9 + 6))  # 2 of the 9 in the loop are new, all of the others
    assert found["distinct_2"].value == pytest.approx((2 + 8) / (11 + 8))
    assert (found["tokens"].value, found["ended"].value) == (10.5, 0.5) and "valid_json" not in found


def test_json_is_counted_where_it_is_asked_for_and_the_text_was_not_cut():
    texts = [
        text("m", 0, [1], wants_json=True, said='{"a": 1}'),
        text("m", 1, [1], wants_json=True, said="no"),
        text("m", 2, [1], wants_json=True, ended=False, said='{"a": '),
        text("m", 3, [1], said="[]"),
    ]
    assert result_of(texts, max_tokens=9, teacher=None).estimates["m"]["valid_json"].value == 0.5


def test_the_teacher_against_itself_shows_no_difference_and_a_student_that_loops_shows_one():
    draw = np.random.default_rng(0)
    own = [draw.integers(0, 500, int(draw.integers(20, 60))).tolist() for _ in range(24)]
    texts = [text(model, i, ids) for model in ("teacher", "copy") for i, ids in enumerate(own)]
    texts += [text("loops", i, [7, 8, 9] * 20, ended=False) for i in range(24)]
    found = result_of(texts, max_tokens=60, teacher="teacher").against_teacher
    assert {m: d.value for m, d in found["copy"].items()} == dict.fromkeys(found["copy"], 0.0)
    assert not any(d.decided for d in found["copy"].values())
    assert all(found["loops"][m].decided for m in ("repeated_4", "distinct_2", "tokens", "ended"))


def test_two_samples_of_one_model_raise_a_false_alarm_rarely():
    draw, alarms = np.random.default_rng(1), 0
    for _ in range(120):
        texts = [
            text(model, i, draw.integers(0, 12, int(draw.integers(10, 40))).tolist(), ended=bool(draw.random() < 0.5))
            for model in ("teacher", "student")
            for i in range(16)
        ]
        found = result_of(texts, max_tokens=40, teacher="teacher").against_teacher["student"]
        alarms += any(d.decided for d in found.values())
    assert alarms <= 13  # 6 expected at most


def test_texts_give_the_same_numbers_again(tmp_path):
    assert writing.read(tmp_path) is None
    texts = [text(m, i, range(i + 5), ended=i % 2 == 0) for m in ("teacher", "student") for i in range(4)]
    assert writing.write(tmp_path, texts, max_tokens=9, teacher="teacher") == writing.read(tmp_path)
