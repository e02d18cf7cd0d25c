"""The plan of an epoch: pure, every row whole and as often as its weight says, windows full."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import pack

lengths_and_room = st.integers(2, 40).flatmap(
    lambda room: st.tuples(st.lists(st.integers(2, room), min_size=1, max_size=60), st.just(room))
)


def naive_best_fit(lengths: list[int], room: int) -> list[int]:
    """The window of each row: the tightest one it fits in, of equals the one that was filled last."""
    left: list[int] = []
    touched: list[int] = []
    windows = []
    for n, length in enumerate(lengths):
        fitting = [w for w in range(len(left)) if left[w] >= max(length, pack.MIN_ROW_TOKENS)]
        if not fitting:
            left.append(room)
            touched.append(n)
            fitting = [len(left) - 1]
        window = min(fitting, key=lambda w: (left[w], -touched[w]))
        left[window] -= length
        touched[window] = n
        windows.append(window)
    return windows


@given(lengths_and_room)
def test_packing_is_best_fit(case):
    lengths, room = case
    plan = pack.pack(np.arange(len(lengths)), np.array(lengths), max_length=room)
    expected = naive_best_fit(lengths, room)
    assert [plan.window(w).tolist() for w in range(len(plan))] == [
        [n for n in range(len(lengths)) if expected[n] == w] for w in range(max(expected) + 1)
    ]


@given(lengths_and_room, st.booleans())
def test_every_row_is_in_one_window_and_no_window_is_longer_than_allowed(case, packed):
    lengths, room = case
    plan = pack.pack(np.arange(len(lengths)), np.array(lengths), max_length=room, packed=packed)
    assert sorted(plan.rows.tolist()) == list(range(len(lengths)))
    assert plan.sums(np.array(lengths)).max() <= room
    assert plan.sums(np.array(lengths)).tolist() == [sum(lengths[n] for n in plan.window(w)) for w in range(len(plan))]
    assert packed or len(plan) == len(lengths)


def test_an_old_window_is_closed():
    lengths = [10] + [13] * (pack.N_OPEN + 1) + [6]
    plan = pack.pack(np.arange(len(lengths)), np.array(lengths), max_length=16)
    assert len(plan) == len(lengths)
    lengths = [10] + [13] * (pack.N_OPEN - 1) + [6]
    plan = pack.pack(np.arange(len(lengths)), np.array(lengths), max_length=16)
    assert plan.window(0).tolist() == [0, pack.N_OPEN]


@given(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9))
def test_the_order_of_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch(n, seed, epoch):
    order = pack.epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == pack.epoch_order(n, seed=seed, epoch=epoch)).all()
    if n > 20:
        assert (order != pack.epoch_order(n, seed=seed + 1, epoch=epoch)).any()
        assert (order != pack.epoch_order(n, seed=seed, epoch=epoch + 1)).any()
        assert (order != np.arange(n)).any()


def test_the_order_is_the_same_on_every_machine_and_version():
    assert pack.epoch_order(10, seed=0, epoch=0).tolist() == [0, 7, 1, 4, 6, 5, 9, 8, 2, 3]


@given(st.floats(0, 3), st.integers(0, 5))
def test_a_row_appears_as_often_as_its_weight_says(weight, epoch):
    keys = np.random.default_rng(0).integers(0, 256, (2000, 32), dtype=np.uint8)
    times = pack.repeats(keys, np.full(2000, weight), seed=1, epoch=epoch)
    assert set(times.tolist()) <= {int(weight), int(weight) + 1}
    assert abs(times.mean() - weight) < 0.06  # five standard errors of a share of 2000
    if weight == int(weight):
        assert (times == weight).all()


def test_a_fraction_of_a_weight_falls_on_other_rows_in_another_epoch():
    keys = np.random.default_rng(0).integers(0, 256, (500, 32), dtype=np.uint8)
    first, second = (pack.repeats(keys, np.full(500, 0.5), seed=0, epoch=epoch) for epoch in (0, 1))
    assert 0.4 < (first == second).mean() < 0.6
    moved = pack.repeats(keys[::-1], np.full(500, 0.5), seed=0, epoch=0)[::-1]
    assert (moved == first).all()  # the draw belongs to the row, not to its place


def test_windows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(2, 513, 20_000)
    plan = pack.pack(np.arange(len(lengths)), lengths, max_length=512)
    assert lengths.sum() / 512 / len(plan) > 0.98


@pytest.mark.slow
def test_a_million_rows_are_planned_in_seconds():
    lengths = np.random.default_rng(0).integers(2, 513, 1_000_000)
    begin = time.process_time()
    order = pack.epoch_order(len(lengths), seed=0, epoch=0)
    pack.pack(order, lengths, max_length=512)
    assert time.process_time() - begin < 10


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 2000),
    st.integers(0, 3),
    st.integers(1, 6),
)
def test_turns_take_the_wanted_tokens_within_one_row_and_no_row_again_before_all_others(tokens, wanted, seed, n_epochs):
    tokens_R = np.array(tokens)
    times = [pack.turns(tokens_R, wanted, seed=seed, epoch=epoch) for epoch in range(n_epochs)]
    for each in times:
        assert abs(int((each * tokens_R).sum()) - wanted) < max(tokens)
    total = sum(times)
    assert abs(int((total * tokens_R).sum()) - n_epochs * wanted) < max(tokens)
    assert total.max() - total.min() <= 1
