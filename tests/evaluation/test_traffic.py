"""What the training data do not cover: planted foreign items, and false alarms on text of the same kind."""

import itertools
import json
import random

import numpy as np
import pytest

from tutelage.data.words import words_of
from tutelage.errors import IntegrityError
from tutelage.evaluation.shares import beta_binomial_tails
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


def test_a_file_that_is_not_utf_8_is_refused_with_what_to_type(tmp_path):
    (tmp_path / "a.txt").write_bytes("na\u00efve question here\n".encode("latin-1"))
    with pytest.raises(IntegrityError, match="iconv -f latin1 -t utf-8") as caught:
        read(tmp_path / "a.txt")
    assert caught.value.code == "DATA_READ"


def uneven(draw, n):
    """A text with its own share of rare words, as real texts have."""
    rare = draw.betavariate(1, 6)
    return " ".join(w if draw.random() > rare else f"r{draw.randrange(3000)}" for w in sentence(draw, WORDS, n).split())


def alarms(n_held_out, *, foreign, n, n_items=200):
    """How often traffic is called foreign of which a share is, the rest drawn as the training data are."""
    draw, found = random.Random(n_held_out), 0
    training = [words_of(uneven(draw, draw.randrange(20, 60))) for _ in range(150)]
    for _ in range(n):
        held_out = [words_of(uneven(draw, draw.randrange(20, 60))) for _ in range(n_held_out)]
        made = [" ".join(f"q{draw.random()}" for _ in range(9)) if draw.random() < foreign
                else uneven(draw, draw.randrange(4, 40)) for _ in range(n_items)]  # fmt: skip
        asked = [Item(name=str(i), text=text) for i, text in enumerate(made)]
        found += judge(asked, held_out, training).is_foreign
    return found


@pytest.mark.parametrize("n_held_out", [20, 50])
def test_traffic_like_the_training_data_is_rarely_called_foreign_with_few_held_out_rows(n_held_out):
    assert alarms(n_held_out, foreign=0, n=30) <= 4  # 1.5 expected at most; more than 4 has a chance of 2 %


@pytest.mark.parametrize("n_held_out", [20, 50])
def test_traffic_of_which_a_fifth_is_foreign_is_warned_of(n_held_out):
    assert alarms(n_held_out, foreign=0.2, n=6) >= 5


def test_how_many_are_not_covered_by_chance_is_a_beta_binomial():
    """n + 1 rows of one kind are equally likely to come in any order: counted over all orders of 5 rows and 3 items."""
    n_rows, n_items, k = 5, 3, 2  # an item is not covered when it is among the lowest of the rows: below the k-th
    orders = list(itertools.combinations(range(n_rows + n_items), n_rows))  # the places of the rows
    counts = [sum(place < rows[k - 1] for place in set(range(n_rows + n_items)) - set(rows)) for rows in orders]
    exact = [np.mean([c >= hits for c in counts]) for hits in range(n_items + 1)]
    assert beta_binomial_tails(n_items, a=k, b=n_rows + 1 - k) == pytest.approx(exact)


def test_fewer_held_out_rows_leave_more_to_luck():
    training, asked = corpus(2, 60), items(random.Random(5), 60)
    few, many = (judge(asked, corpus(1, n), training) for n in (30, 200))
    assert (few.n_rows, many.n_rows) < (31, 201) and few.by_chance > many.by_chance  # by a binomial both alike


def test_what_every_held_out_row_begins_or_ends_with_is_in_no_figure():
    held_out, training = corpus(1, 60), corpus(2, 150)
    framed = [["system", "be", "kind", "user", *row, "assistant"] for row in held_out]
    plain = judge(items(random.Random(3), 60, foreign={7}), held_out, training)
    found = judge(items(random.Random(3), 60, foreign={7}), framed, [*training, framed[0]])
    assert found == judge(items(random.Random(3), 60, foreign={7}), held_out, [*training, framed[0]])
    assert len(found.uncovered) == len(plain.uncovered) > 0
    own = [Item(name=one.name, text=f"System: be kind. User: {one.text} Assistant")
           for one in items(random.Random(3), 60, foreign={7})]  # fmt: skip
    assert judge(own, framed, [*training, framed[0]]).share == found.share


def test_one_text_asked_many_times_counts_once():
    many = [Item(name=f"again {i}", text="Zzz yyy, xxx www") for i in range(50)]
    found = judge([*items(random.Random(5), 60), *many], corpus(1, 80), corpus(2, 150))
    assert (found.n_items, found.share.n) == (110, 61) and not found.is_foreign
    assert found.uncovered[0].item.name == "again 0"


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
    assert [one.text for one in read(tmp_path / "a.txt").items] == ["how are you", "what is this"]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"messages": turns}, {"prompt": "p", "text": "no"}, "plain", {"other": 1}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    found = read(tmp_path / "b.jsonl")
    assert [one.text for one in found.items] == ["u", "p", "plain"] and found.items[1].name.endswith("b.jsonl:2")
    skipped = [(one.name.rpartition(":")[2], one.reason) for one in found.skipped]
    assert skipped[0] == ("4", "no prompt in it") and skipped[1][0] == "5" and "not JSON" in skipped[1][1]
    (tmp_path / "c.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(IntegrityError, match=r"holds no prompt \(1 line left out: no prompt in it\)"):
        read(tmp_path / "c.jsonl")
