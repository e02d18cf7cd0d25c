"""What an evaluation knows of rows and tokens, from a real store."""

import numpy as np
import pytest

from tests.data.tiny_data import END, build_tiny, tokenizer
from tutelage.data.sources import SourceSpec
from tutelage.evaluation import facts
from tutelage.models import vocabulary

TEXTS = ["the cat sat on the mat", "the cat", "a cat sat", "the the the cat sat on"]


@pytest.fixture
def store():
    parts = [("plain", TEXTS[:3]), ("other", TEXTS[3:])]
    return build_tiny([SourceSpec(kind="examples", examples=texts, name=name) for name, texts in parts])


def test_rarity_counts_the_tokens_of_the_training_rows_alone(store, monkeypatch):
    n_vocabulary = vocabulary.real_vocabulary(tokenizer())
    seen = store.row(0).ids
    for group in (1, 1024):  # counted in groups of rows
        monkeypatch.setattr(facts, "_GROUP", group)
        found = facts.token_facts(tokenizer(), store, training_rows=np.array([0]), n_vocabulary=n_vocabulary)
        assert set(np.flatnonzero(found.rarity_V)) == set(seen.tolist())


def test_of_large_training_data_the_first_tokens_are_counted(store, monkeypatch):
    monkeypatch.setattr(facts, "_COUNTED_TOKENS", 1)
    rows = np.arange(len(store))
    found = facts.token_facts(
        tokenizer(), store, training_rows=rows, n_vocabulary=vocabulary.real_vocabulary(tokenizer())
    )
    assert set(np.flatnonzero(found.rarity_V)) == set(store.row(0).ids.tolist())


def test_the_bytes_of_the_tokens_of_a_text_are_those_of_the_text(store):
    n_bytes_V = facts.bytes_of_tokens(tokenizer(), n_vocabulary=vocabulary.real_vocabulary(tokenizer()))
    text = "the cät sat"
    assert n_bytes_V[tokenizer()(text)["input_ids"]].sum() == len(text.encode())
    assert n_bytes_V[tokenizer().convert_tokens_to_ids(END)] == 0


def test_a_row_is_known_by_its_source_and_length_in_the_order_asked_for(store):
    rows = np.arange(len(store))[::-1]
    found = facts.set_facts(store, rows)
    assert [found.sources[i] for i in found.source] == [store.source_names[i] for i in store.sources[rows]]
    assert found.length == tuple(len(store.row(int(r)).ids) for r in rows)


def test_an_excerpt_is_of_its_own_row(store):
    rows = np.arange(len(store))[::-1]
    known = facts.with_excerpts(
        facts.set_facts(store, rows), [(0, 1), (0, 1)], store=store, rows=rows, tokenizer=tokenizer()
    )
    (excerpt,) = known.excerpts
    ids = store.row(int(rows[0])).ids.tolist()
    assert excerpt.text.replace("⟦", "").replace("⟧", "") == vocabulary.decoded(tokenizer(), ids)
    assert known.text(0, 1) == excerpt.text
    assert known.text(0, 2) == ""
