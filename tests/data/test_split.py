"""The held-out split: by content, stable, and nothing on both sides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.tiny_data import build_tiny, store_of
from tutelage.data.sources import SourceSpec
from tutelage.data.split import Split, by_share, by_sources
from tutelage.data.store import Store
from tutelage.errors import IntegrityError


def store_of_texts(*texts: str, max_length: int = 8) -> Store:
    return build_tiny([SourceSpec(kind="examples", examples=texts)], max_length=max_length)


def documents(store: Store, rows) -> set[bytes]:
    return {store.documents[n].tobytes() for n in rows}


words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "Dog"]), min_size=1, max_size=12)


@settings(max_examples=15)
@given(st.lists(words, min_size=3, max_size=20, unique_by=lambda w: " ".join(w).lower()), st.floats(0.05, 0.95))
def test_no_document_is_on_both_sides_not_even_a_copy_in_other_case_or_white_space(texts, share):
    copies = ["\n ".join(text).upper() for text in texts[::2]]
    store = store_of_texts(*(" ".join(text) for text in texts), *copies)
    split = by_share(store, share)
    assert not documents(store, split.train) & documents(store, split.held_out)
    assert not {store.keys[n].tobytes() for n in split.train} & {store.keys[n].tobytes() for n in split.held_out}
    assert len(split.train) + len(split.held_out) + split.n_dropped == len(store)
    assert len(split.train) and len(split.held_out)


def test_the_share_is_held_out_and_stays_when_documents_are_added():
    texts = [f"the cat {n} sat" for n in range(800)]
    small, large = store_of_texts(*texts[:400]), store_of_texts(*texts)
    first, second = by_share(small, 0.25), by_share(large, 0.25)
    assert 0.2 < len(first.held_out) / len(small) < 0.3
    assert documents(small, first.held_out) == documents(large, second.held_out) & documents(small, range(len(small)))


def test_a_tiny_share_holds_out_one_document_and_a_huge_one_leaves_one():
    store = store_of_texts(*(f"the cat {n}" for n in range(5)))
    assert len(documents(store, by_share(store, 1e-9).held_out)) == 1
    assert len(documents(store, by_share(store, 1 - 1e-9).train)) == 1
    assert len(by_share(store, 0.0).held_out) == 0


def test_one_document_cannot_be_on_both_sides():
    with pytest.raises(IntegrityError, match="one document .*example 0.* cannot be trained on and held out") as caught:
        by_share(store_of_texts("the cat sat on the mat, the cat sat on the mat"), 0.5)
    assert caught.value.code == "NO_SCORED_TOKENS"


def test_what_held_out_sources_share_with_training_is_left_out_of_training_and_said(capsys):
    train = store_of_texts("the cat sat", "The  CAT sat", "yes", "no, of course", max_length=64)
    held_out = store_of_texts("the cat\nsat", "what is it", max_length=64)
    split = by_sources(train, held_out)
    assert split.train.tolist() == [2, 3] and split.held_out.tolist() == [0, 1]
    message = "warning[OVERLAP]: 1 of 2 held-out rows occur in the training data"
    assert message in capsys.readouterr().err
    assert (split.n_overlapping, split.n_dropped) == (1, 2)


def test_a_share_of_held_out_sources_is_what_training_on_them_would_hold_out():
    texts = [f"the cat {n} sat" for n in range(200)]
    source, other = store_of_texts(*texts), store_of_texts("yes", texts[0], texts[1], "of course")
    kept = by_share(source, 0.1).held_out
    split = by_sources(other, source, share=0.1)
    assert split.held_out.tolist() == kept.tolist() and 5 < len(kept) < 50
    assert by_sources(source, source, share=0.1).train.tolist() == by_share(source, 0.1).train.tolist()


def test_a_window_that_two_documents_share_is_on_one_side_only():
    head = [5] * 8
    train, held_out = (store_of([head + [end] * 7], max_length=8) for end in (6, 7))
    split = by_sources(train, held_out)
    assert split == Split(train=split.train, held_out=split.held_out, n_overlapping=1, n_dropped=1)
    assert split.train.tolist() == [1]


def test_rows_without_a_trained_token_are_on_no_side():
    store = store_of([[5, 6, 7, 8] * 3 + [n] for n in range(9, 19)], [[False] * 12 + [True]] * 10, max_length=7)
    split = by_share(store, 0.3)
    assert {int(store.n_trained[n]) for n in [*split.train, *split.held_out]} == {1}
    assert len(split.train) + len(split.held_out) == 10


def test_nothing_left_to_train_on_is_an_error():
    with pytest.raises(IntegrityError, match="0 of 1 rows are left") as caught:
        by_sources(store_of_texts("yes"), store_of_texts("YES"))
    assert caught.value.code == "NO_TOKENS"
