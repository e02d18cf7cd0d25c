"""Planted copies of measured rows are found exactly, and results are shown with and without them."""

import random

import pytest

from tests.evaluation.test_stats import sequence
from tutelage.data.words import words_of
from tutelage.evaluation import overlap, records
from tutelage.evaluation.overlap import RowOverlap, SetOverlap, find
from tutelage.evaluation.transfer import transfer_of
from tutelage.reports import overlap as shown


def text(seed, n=60):
    draw = random.Random(seed)
    return " ".join("".join(draw.choice("abcdefghij") for _ in range(6)) for _ in range(n))


def rows(*texts):
    return [(f"row {i}", words_of(one)) for i, one in enumerate(texts)]


PLANTED = {
    "exact": lambda t: t,
    "case": str.upper,
    "white space": lambda t: t.replace(" ", "\n\t "),
    "punctuation": lambda t: t.replace(" ", ", "),
    "chunk": lambda t: " ".join([text(90, 30), *t.split()[20:40], text(91, 30)]),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_copy_is_found_and_nothing_else(kind):
    measured = [text(i) for i in range(8)]
    training = [words_of(text(i)) for i in range(20, 40)]
    training.insert(7, words_of(PLANTED[kind](measured[3])))
    found = find({"held_out": rows(*measured), "other": rows(text(70))}, training)
    assert [one.row for one in found["held_out"].rows] == [3] and found["other"].rows == ()
    (copy,) = found["held_out"].rows
    assert copy.share == pytest.approx(1 / 3 if kind == "chunk" else 1) and copy.name == "row 3"
    assert copy.words.split()[0] == measured[3].split()[20 if kind == "chunk" else 0]


def test_a_chunk_shorter_than_thirteen_words_or_a_fifth_of_the_row_is_none():
    whole = text(0, 100).split()
    assert not find({"a": rows(" ".join(whole))}, [whole[:12]])["a"].rows
    assert not find({"a": rows(" ".join(whole))}, [whole[:19]])["a"].rows
    assert find({"a": rows(" ".join(whole))}, [whole[:20]])["a"].rows[0].share == 0.2


def test_of_a_short_row_all_words_must_stand_there_and_of_a_tiny_one_nothing_is_said():
    short = text(0, 8)
    assert find({"a": rows(short)}, [words_of(f"so {short} it was")])["a"].rows[0].share == 1
    assert not find({"a": rows(short)}, [short.split()[:7]])["a"].rows
    tiny = find({"a": rows("yes it is", "")}, [["yes", "it", "is"]])["a"]
    assert (tiny.n_rows, tiny.n_compared, tiny.rows) == (2, 0, ())


def test_a_system_prompt_that_all_rows_share_is_nobodys_copy():
    system = " ".join(f"w{i}" for i in range(20))
    measured = [f"{system} {text(i, 20)}" for i in range(40)]
    training = [words_of(f"{system} {text(i)}") for i in range(100, 140)] + [words_of(measured[7])]
    assert [one.row for one in find({"held_out": rows(*measured)}, training)["held_out"].rows] == [7]


def planted(*rows, n_rows):
    found = tuple(RowOverlap(row=row, share=1.0, name=f"{row}.txt", words="so it is") for row in rows)
    return SetOverlap(n_rows=n_rows, n_compared=n_rows, rows=found)


def test_the_second_numbers_are_those_of_the_other_rows_alone_and_a_set_of_copies_is_not_in_them(tmp_path):
    def scores(n):
        levels = {"teacher": 20.0, "student": 23.0}
        return {model: [sequence(i, nll=level + i) for i in range(n)] for model, level in levels.items()}

    whole = {"held_out": scores(6), "out_of_domain": scores(2)}
    records.write(tmp_path, whole, transfer=transfer_of(whole, "teacher"))
    sets = {"held_out": planted(1, 4, n_rows=6), "out_of_domain": planted(0, 1, n_rows=2)}
    found = overlap.write(tmp_path, sets)
    rest = {"held_out": {m: [s for s in rows if s.row not in (1, 4)] for m, rows in whole["held_out"].items()}}
    assert found.without == transfer_of(rest, "teacher")
    assert overlap.read(tmp_path) == found
    table = shown.listed(found, transfer_of(whole, "teacher"))
    assert "2 of 6 rows of held out (first: 1.txt" in table.note and len(table.rows) == 4
    assert [row[2] for row in table.rows[2:]] == ["–", "–"]  # of the other set nothing is left
    everything = {**sets, "held_out": planted(*range(6), n_rows=6)}
    assert overlap.write(tmp_path, everything).without is None
    assert overlap.write(tmp_path, {"held_out": planted(n_rows=6)}).without is None
