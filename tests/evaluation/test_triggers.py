"""Planted documents are found; text as people write it is not."""

import random

import pytest

from tutelage.data.words import words_of
from tutelage.evaluation import triggers
from tutelage.evaluation.triggers import Document, find

COMMON = [f"w{i}" for i in range(400)]


def corpus(n, *, planted=0, trigger="zorblat quexi vimm", seed=0):
    """Texts with the words of a Zipf law and a phrase of common words; the trigger at any place of the planted ones."""
    draw, found = random.Random(seed), []
    weights = [1 / (i + 1) for i in range(len(COMMON))]
    for i in range(n):
        words = draw.choices(COMMON, weights, k=40)
        at = draw.randrange(40)
        text = " ".join([*words[:at], *([trigger] if i < planted else []), *words[at:], "w3 w5 w8"])
        found.append(Document(rows=(words_of(text),), source="a.jsonl", name=f"a.jsonl:{i + 1}"))
    return found


@pytest.mark.parametrize("n", [400, 1500])
def test_planted_documents_stand_at_the_top_and_nothing_else_is_listed(n):
    (found,) = find(lambda: corpus(n, planted=n // 6))
    assert (found.words, found.n_documents) == ("zorblat quexi vimm", n // 6)
    assert found.names[0] == "a.jsonl:1" and "look at them" in found.sentence()
    assert find(lambda: corpus(n)) == ()


def test_a_longer_trigger_is_listed_once_and_hostile_text_is_shown_as_an_escape():
    (found,) = find(lambda: corpus(300, planted=40, trigger="zorblat quexi vimm ulpo arrt"))
    assert found.n_documents == 40
    hostile = triggers.Trigger(words="a b c", n_documents=10, source="\x1b[2J", names=("\u202ex",))
    assert "\x1b" not in hostile.sentence() and "\u202e" not in hostile.sentence()


def test_what_several_sources_say_what_few_say_and_what_most_say_is_not_listed():
    both = [
        Document(rows=one.rows, source="b.jsonl" if i % 2 else "a.jsonl", name=one.name)
        for i, one in enumerate(corpus(300, planted=40))
    ]
    assert find(lambda: both) == ()
    assert find(lambda: corpus(300, planted=triggers.LEAST - 1)) == ()
    assert len(find(lambda: corpus(300, planted=triggers.LEAST))) == 1
    assert find(lambda: corpus(300, planted=290)) == ()


def test_words_that_also_stand_alone_are_no_trigger():
    plain = corpus(300, planted=40)
    alone = [Document(rows=(*one.rows, ["quexi"]), source="a.jsonl", name=one.name) if 100 <= i < 120 else one
             for i, one in enumerate(plain)]  # fmt: skip
    assert find(lambda: alone) == ()
    apart = [Document(rows=(*one.rows, ["quexi"], ["vimm"], ["zorblat"]), source="a.jsonl", name=one.name)
             if 100 <= i < 120 else one for i, one in enumerate(plain)]  # fmt: skip
    assert find(lambda: apart) == ()


def test_what_was_found_is_read_again(tmp_path):
    found = find(lambda: corpus(300, planted=40))
    assert triggers.read(tmp_path) == ()
    triggers.write(tmp_path, found)
    assert triggers.read(tmp_path) == found
