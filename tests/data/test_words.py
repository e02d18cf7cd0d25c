"""Which sequences of words stand in other text: against a set of tuples, whatever the order and the cuts."""

import random

import numpy as np
import pytest

from tutelage.data import words
from tutelage.data.words import Words, seen_in, words_of


def naive(text, stream):
    known = {tuple(one[i : i + text.n]) for one in stream for i in range(len(one) - text.n + 1)}
    n_sequences = max(len(text.words) - text.n + 1, 0)
    return [tuple(text.words[i : i + text.n]) in known for i in range(n_sequences)]


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_sequences_are_seen_as_a_set_of_them_says_however_the_stream_is_cut(at_once, monkeypatch):
    monkeypatch.setattr(words, "_AT_ONCE", at_once)
    draw = random.Random(0)
    some = [[draw.choice("abcde") for _ in range(draw.randrange(0, 30))] for _ in range(40)]
    texts = [Words(words=one, n=n) for one in some[:20] for n in (1, 2, 3, 5)]
    found = seen_in(texts, iter(some[20:]))
    assert [one.tolist() for one in found] == [naive(text, some[20:]) for text in texts]


def test_no_sequence_reaches_over_the_end_of_a_text():
    (found,) = seen_in([Words(words=["a", "b"], n=2)], iter([["x", "a"], ["b", "y"]]))
    assert found.tolist() == [False]


def test_the_order_of_words_counts_and_case_and_punctuation_do_not():
    texts = [Words(words=words_of(text), n=3) for text in ("The cat, SAT.", "sat cat the")]
    found = seen_in(texts, iter([words_of("and 'the cat sat' there")]))
    assert [one.tolist() for one in found] == [[True], [False]]


def test_nothing_is_seen_in_an_empty_stream():
    assert [one.any() for one in seen_in([Words(words=["a"], n=1), Words(words=[], n=1)], iter([]))] == [False, False]
    assert seen_in([], iter([["a"]])) == [] and np.array_equal(seen_in([Words(words=["a"], n=2)], iter([]))[0], [])
