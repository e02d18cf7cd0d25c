"""Batches: layout, exact resume, the same windows for every micro-batch size, packed == unpacked."""

import itertools
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.data.tiny_data import ChatML, build_tiny, store_of, tokenizer
from tutelage.data.example import Example, Message
from tutelage.data.loader import Loader, evaluation_batches
from tutelage.data.sources import SourceSpec
from tutelage.data.store import Store
from tutelage.errors import IntegrityError
from tutelage.types import IGNORED, Batch

PAD = 1


@cache
def random_store(*, n_rows: int = 30, seed: int = 0, masked: bool = True, max_length: int = 16) -> Store:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(2, 48, rng.integers(2, max_length + 1)).tolist() for _ in range(n_rows)]
    masks = [[True] * len(row) if not masked else [*(rng.random(len(row) - 1) < 0.7), True] for row in rows]
    return store_of(rows, [[bool(m) for m in mask] for mask in masks], max_length=max_length)


def loader_of(store: Store, **settings) -> Loader:
    defaults = {"rows": np.arange(len(store)), "max_length": 16, "rows_per_step": 4, "micro_batch": 2, "seed": 0}
    return Loader(store, fingerprint="f", pad_id=PAD, **(defaults | settings))


def rows_in(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, labels and positions of each row, found again by the restarts of the positions; padding included."""
    view, found = batch.view, []
    positions_BT = view.positions_BT
    if positions_BT is None:
        positions_BT = torch.arange(view.ids_BT.shape[1]).expand_as(view.ids_BT)
    for ids, labels, positions in zip(view.ids_BT, view.labels_BT, positions_BT, strict=True):
        cuts = [*(positions == 0).nonzero().squeeze(-1).tolist(), len(ids)]
        found += [tuple(x[a:b].tolist() for x in (ids, labels, positions)) for a, b in itertools.pairwise(cuts)]
    return found


def is_padding(row: tuple[list[int], list[int], list[int]]) -> bool:
    return set(row[0]) <= {PAD} and set(row[1]) == {IGNORED}


@settings(max_examples=30)
@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_the_layout_is_whole_rows_restarting_positions_and_no_label_on_a_first_token(seed, per_step, micro, packed):
    store = random_store(seed=seed % 3)
    for batch in loader_of(store, seed=seed, rows_per_step=per_step, micro_batch=micro, packed=packed).step(seed):
        rows = [row for row in rows_in(batch) if not is_padding(row)]
        by_key = {key.tobytes().hex(): store.row(n) for n, key in enumerate(store.keys)}
        assert len(rows) == len(batch.row_keys)
        for (ids, labels, positions), key in zip(rows, batch.row_keys, strict=True):
            expected = by_key[key]
            if not packed:  # no positions: the padding behind the row is part of it
                assert batch.view.positions_BT is None and is_padding((ids[len(expected.ids) :], [IGNORED], []))
                ids, labels, positions = (values[: len(expected.ids)] for values in (ids, labels, positions))
            assert ids == expected.ids.tolist() and positions == list(range(len(ids)))
            masked = [i if m else IGNORED for i, m in zip(ids, expected.loss_mask, strict=True)]
            assert labels == [IGNORED, *masked[1:]]


@settings(max_examples=30)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 40), st.booleans(), st.booleans())
def test_the_rows_that_a_run_reads_are_those_of_its_batches(seed, per_step, n_steps, packed, weighted):
    store = random_store(seed=seed % 3)
    rows = np.arange(3, len(store))
    made = loader_of(store, rows=rows, seed=seed, rows_per_step=per_step, packed=packed, weights=[0.4] * weighted)
    keys = {key for step in range(n_steps) for batch in made.step(step) for key in batch.row_keys}
    read = made.rows_read(n_steps)
    assert read.tolist() == sorted(set(read.tolist())) and set(read.tolist()) <= set(rows.tolist())
    assert {store.keys[n].tobytes().hex() for n in read} == keys


def test_an_epoch_holds_every_row_once():
    store = random_store()
    loader = loader_of(store, rows_per_step=1)
    n_windows = len(loader.plan(0))
    for epoch in range(3):
        first = sum(len(loader.plan(e)) for e in range(epoch))
        seen = Counter(k for n in range(len(loader.plan(epoch))) for b in loader.step(first + n) for k in b.row_keys)
        assert seen == Counter(key.tobytes().hex() for key in store.keys)
    assert loader.steps_for_epochs(1) == n_windows
    assert loader.plan(0).rows.tolist() != loader.plan(1).rows.tolist()


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.row_keys == b.row_keys
        and torch.equal(a.view.ids_BT, b.view.ids_BT)
        and torch.equal(a.view.labels_BT, b.view.labels_BT)
        for a, b in zip(first, second, strict=True)
    )


def test_a_resumed_loader_gives_the_exact_ordered_suffix_from_every_step():
    store = random_store()
    whole = loader_of(store)
    steps = [whole.step(n) for n in range(12)]  # more than two epochs
    assert whole.epoch_of(12 * 4) >= 2
    for cut in range(12):
        resumed = loader_of(store)
        assert all(same(resumed.step(n), steps[n]) for n in range(cut, 12))
    assert not same(loader_of(store, seed=1).step(0), steps[0])


def test_a_batch_says_how_many_epochs_have_seen_each_row_before():
    loader = loader_of(random_store())
    seen: Counter[str] = Counter()
    for n in range(12):
        for batch in loader.step(n):
            assert len(batch.row_visits) == len(batch.row_keys)
            for key, visits in zip(batch.row_keys, batch.row_visits, strict=True):
                assert visits == seen[key]
                seen[key] += 1
    assert max(seen.values()) > 2


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(0, 6))
def test_the_windows_of_a_step_do_not_depend_on_the_micro_batch(micro_batch, step):
    store = random_store()
    keys = [k for b in loader_of(store, rows_per_step=5, micro_batch=5).step(step) for k in b.row_keys]
    batches = loader_of(store, rows_per_step=5, micro_batch=micro_batch).step(step)
    assert [k for b in batches for k in b.row_keys] == keys
    assert max(len(b.view.ids_BT) for b in batches) == min(5, micro_batch)


def test_mixed_by_tokens_a_weight_is_the_share_of_trained_tokens_in_every_epoch():
    rng = np.random.default_rng(3)
    longest = {"a": (200, 16), "b": (40, 60), "c": (60, 16)}  # rows, and tokens at most: those of b are few and long
    asked = {"a": 0.0, "b": 0.5, "c": 0.75}  # the part of a row that is not trained
    specs = []
    for name, (n_rows, most) in longest.items():
        ids = [rng.integers(2, 48, rng.integers(4, most)).tolist() for _ in range(n_rows)]
        examples = [
            {"token_ids": row, "loss_mask": [i >= len(row) * asked[name] for i in range(len(row))]} for row in ids
        ]
        specs.append(SourceSpec(kind="examples", examples=examples, name=name))
    store = build_tiny(specs)
    loader = loader_of(store, max_length=64, weights=[1.0, 2.0, 5.0], by_tokens=True)
    for epoch in range(4):
        plan = loader.plan(epoch)
        trained, source = store.n_trained[plan.rows], store.sources[plan.rows]
        by_source = np.bincount(source, weights=trained, minlength=3)
        assert abs(by_source.sum() - store.n_trained.sum()) < 3 * 64
        assert by_source / by_source.sum() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    again = loader_of(store, max_length=64, weights=[0.5, 1.0, 2.5], by_tokens=True)  # only their ratio counts
    assert [b.row_keys for b in again.step(31)] == [b.row_keys for b in loader.step(31)]
    with pytest.raises(IntegrityError, match="0 trainable tokens in b"):
        loader_of(store, max_length=64, weights=[1.0, 1.0, 1.0], by_tokens=True, rows=np.arange(200)).plan(0)


def test_weights_say_how_often_a_source_is_seen():
    specs = [SourceSpec(kind="examples", examples=[f"{name} {n}" for n in range(40)], name=name) for name in "abc"]
    store = build_tiny(specs)
    loader = loader_of(store, max_length=64, weights=[2.0, 0.0, 0.5])
    seen = Counter(store.sources[loader.plan(0).rows].tolist())
    assert seen[0] == 80 and seen[1] == 0 and 8 <= seen[2] <= 32
    with pytest.raises(IntegrityError, match="0 trainable tokens"):
        loader_of(store, max_length=64, weights=[0.0, 0.0, 0.0])


def test_trained_positions_are_the_answers_counted_independently():
    chats = [("what is it", "yes"), ("the cat", "of course it is the cat"), ("a?", "no.\n")]
    messages = [(Message("user", q), Message("assistant", a)) for q, a in chats]
    examples = [Example(source="s", name="n", messages=m) for m in messages]
    store = build_tiny([SourceSpec(kind="examples", examples=examples)], renderer=ChatML(), train_on="answers")
    expected = sum(len(tokenizer().encode(answer)) + 1 for _, answer in chats)
    loader = loader_of(store, max_length=64, rows_per_step=len(loader_of(store, max_length=64).plan(0)))
    assert sum(batch.n_trained for batch in loader.step(0)) == expected == loader.n_trained_tokens
    evaluated = evaluation_batches(store, rows=np.arange(3), max_length=64, micro_batch=2, fingerprint="f", pad_id=PAD)
    counts = Counter(n for e in evaluated for n in e.row_N.tolist())
    assert counts == {n: len(tokenizer().encode(answer)) + 1 for n, (_, answer) in enumerate(chats)}


def test_padding_with_the_end_token_trains_every_end_and_no_padding():
    end = 1
    store = store_of([[5, 6, end], [7, end], [8] * 15 + [end]], max_length=16)
    batches = loader_of(store, rows_per_step=2, micro_batch=2).step(0)
    assert sum(batch.n_trained for batch in batches) == 2 + 1 + 15
    assert sum(int((batch.view.next_ids_N == end).sum()) for batch in batches) == 3


def test_positions_are_left_out_only_when_every_window_is_one_whole_row():
    full = store_of([[n] * 8 for n in range(2, 8)], max_length=8)
    assert all(b.view.positions_BT is None for b in loader_of(full, max_length=8).step(0))
    mixed = store_of([[2] * 8, [3] * 5], max_length=8)
    positions_BT = loader_of(mixed, max_length=8, rows_per_step=2).step(0)[0].view.positions_BT
    assert sorted(positions_BT.tolist()) == [[0, 1, 2, 3, 4, 0, 1, 2], list(range(8))]
    halves = store_of([[2] * 4, [3] * 4], max_length=8)
    (batch,) = loader_of(halves, max_length=8, rows_per_step=1).step(0)
    assert batch.view.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]


def test_a_micro_batch_is_no_wider_than_its_longest_window():
    store = store_of([[n] * 5 for n in range(2, 6)])
    (batch,) = loader_of(store, max_length=9, rows_per_step=2).step(0)
    assert batch.view.ids_BT.shape == (2, 5)


def loss_table(model, batches) -> dict[tuple[int, int, int], float]:
    """Loss of each trained token by row, position in the row and token."""
    table = {}
    for item in batches:
        view = item.batch.view
        with torch.no_grad():
            logits_BTV = model(input_ids=view.ids_BT, position_ids=view.positions_BT, use_cache=False).logits
        losses_N = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1)[view.index_N], view.next_ids_N, reduction="none"
        )
        positions_BT = view.positions_BT
        if positions_BT is None:
            positions_BT = torch.arange(view.ids_BT.shape[1]).expand_as(view.ids_BT)
        places = zip(item.row_N, positions_BT.flatten()[view.index_N], view.next_ids_N, losses_N, strict=True)
        table |= {(int(r), int(p), int(i)): float(loss) for r, p, i, loss in places}
    return table


# float64, rounding of another summation order; Gemma-2's attention takes its softmax in float32 in any case
@pytest.mark.parametrize(
    ("make_model", "tolerance"), [(tiny.llama, 1e-12), (tiny.gemma2, 1e-5)], ids=["llama", "gemma2"]
)
def test_every_token_has_the_same_loss_packed_padded_shuffled_or_alone(make_model, tolerance):
    store, model = random_store(n_rows=14), make_model(vocabulary=48)
    rows = np.arange(len(store))
    layouts = [
        evaluation_batches(store, rows=rows, max_length=16, micro_batch=1, fingerprint="f", pad_id=PAD, packed=False),
        evaluation_batches(store, rows=rows, max_length=16, micro_batch=5, fingerprint="f", pad_id=PAD, packed=False),
        evaluation_batches(store, rows=rows, max_length=16, micro_batch=3, fingerprint="f", pad_id=PAD),
        evaluation_batches(store, rows=rows, max_length=48, micro_batch=2, fingerprint="f", pad_id=PAD),
    ]
    alone, *others = [loss_table(model, layout) for layout in layouts]
    assert len(alone) == store.n_trained.sum()
    for other in others:
        assert other.keys() == alone.keys()
        assert max(abs(other[k] - alone[k]) for k in alone) < tolerance
    shuffled = evaluation_batches(store, rows=rows[::-1], max_length=16, micro_batch=4, fingerprint="f", pad_id=PAD)
    table = {(len(rows) - 1 - r, p, i): loss for (r, p, i), loss in loss_table(model, shuffled).items()}
    assert max(abs(table[k] - alone[k]) for k in alone) < tolerance


def test_attention_across_rows_would_change_the_losses():
    store, model = random_store(n_rows=14), tiny.llama(vocabulary=48)
    (item,) = evaluation_batches(
        store, rows=np.arange(4), max_length=64, micro_batch=9, fingerprint="f", pad_id=PAD, packed=True
    )
    view = item.batch.view
    packed = model(input_ids=view.ids_BT, position_ids=view.positions_BT, use_cache=False).logits
    joined = model(input_ids=view.ids_BT, use_cache=False).logits
    assert (packed - joined).abs().max() > 1e-3


def test_evaluation_holds_each_row_asked_for_exactly_once():
    store = random_store()
    rows = np.array([7, 3, 21, 4])
    batches = list(evaluation_batches(store, rows=rows, max_length=16, micro_batch=2, fingerprint="f", pad_id=PAD))
    assert sorted(k for e in batches for k in e.batch.row_keys) == sorted(store.keys[n].tobytes().hex() for n in rows)
    counts = Counter(n for e in batches for n in e.row_N.tolist())
    assert [counts[n] for n in range(4)] == store.n_trained[rows].tolist()


@settings(max_examples=30)
@given(st.integers(1, 2000), st.integers(1, 5))
def test_the_steps_for_a_budget_are_the_fewest_that_see_so_many_tokens(tokens, rows_per_step):
    loader = loader_of(random_store(), rows_per_step=rows_per_step)
    steps = loader.steps_for_tokens(tokens)

    def seen(n_steps: int) -> int:
        windows = [loader._window(n) for n in range(n_steps * rows_per_step)]
        return sum(int(loader.store.lengths[w].sum()) for w in windows)

    assert seen(steps - 1) < tokens <= seen(steps)


def test_epochs_in_steps():
    loader = loader_of(random_store(), rows_per_step=3)
    windows = [len(loader.plan(epoch)) for epoch in range(3)]
    assert loader.steps_for_epochs(2) == -(-sum(windows[:2]) // 3)
    assert loader.steps_for_epochs(1.5) == -(-(windows[0] + -(-windows[1] // 2)) // 3)
