"""What the training data do not cover: planted foreign items, and false alarms on text of the same kind."""

import json
import random

import numpy as np
import pytest

from tutelage.data.words import words_of
from tutelage.errors import IntegrityError
from tutelage.evaluation.traffic import Item, judge, read


def sentence(draw, words, n):
    """A chain of words in which each is followed by one of a few."""
    made = [draw.randrange(len(words))]
    while len(made) < n:
        made.append((made[-1] * 7 + draw.randrange(6)) % len(words))
    return " ".join(words[i] for i in made)


WORDS = ["".join(pair) for pair in zip("abcdefghijklmnopqrst" * 10, "klmnopqrstabcdefghij" * 10, strict=True)]
WORDS = [f"{word}{i}" for i, word in enumerate(WORDS)]


def corpus(seed, n, length=60):
    draw = random.Random(seed)
    return [words_of(sentence(draw, WORDS, draw.randrange(length // 2, length))) for _ in range(n)]


def items(draw, n, *, foreign=()):
    return [
        Item(name=f"item {i}", text=" ".join(f"q{draw.random()}" for _ in range(9)) if i in foreign else
             sentence(draw, WORDS, draw.randrange(4, 30)))
        for i in range(n)
    ]  # fmt: skip


def test_foreign_items_are_named_worst_first_and_the_others_are_not():
    draw = random.Random(5)
    foreign = {3, 17, 40}
    found = judge(items(draw, 60, foreign=foreign), corpus(1, 80), corpus(2, 150))
    named = [int(one.item.name.split()[1]) for one in found.uncovered]
    assert set(named[:3]) == foreign and found.uncovered[0].seen == 0
    assert found.share.n == 60 and found.share.value == len(named) / 60 < 0.15


def test_of_text_like_the_training_data_at_most_one_in_twenty_is_called_foreign():
    training = corpus(2, 150)
    shares = []
    for seed in range(12):
        found = judge(items(random.Random(seed), 50), corpus(100 + seed, 80), training)
        shares.append(found.share.value)
    assert 0.01 < np.mean(shares) < 0.065


def test_items_of_a_few_words_are_counted_and_not_judged_and_too_little_held_out_text_is_refused():
    found = judge([Item(name="a", text="hi"), Item(name="b", text="q w e r t")], corpus(1, 40), corpus(2, 60))
    assert (found.n_items, found.share.n) == (2, 1)
    with pytest.raises(IntegrityError, match="18 held-out rows") as caught:
        judge([Item(name="b", text="q w e r t")], corpus(1, 18), corpus(2, 60))
    assert caught.value.code == "NO_SCORED_TOKENS"


def test_prompts_are_read_from_lines_and_from_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("how are you\n\nwhat is this\n")
    assert [one.text for one in read(tmp_path / "a.txt")] == ["how are you", "what is this"]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"messages": turns}, {"prompt": "p", "text": "no"}, "plain", {"other": 1}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    found = read(tmp_path / "b.jsonl")
    assert [one.text for one in found] == ["u", "p", "plain"] and found[1].name.endswith("b.jsonl:2")
    (tmp_path / "c.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(IntegrityError, match="holds no prompt"):
        read(tmp_path / "c.jsonl")
