"""Easy rows first: nothing before its time, no row twice in an epoch, and afterwards the ordinary order."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_loader import loader_of, random_store, same
from tests.data.tiny_data import store_of
from tutelage.data.curriculum import N_STAGES, Curriculum


def ranks(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


def taught(store, *, steps: int, start: float = 0.2, seed: int = 0, **settings):
    order = Curriculum(ranks_R=ranks(len(store), seed=seed), start=start, n_steps=steps)
    return loader_of(store, curriculum=order, seed=seed, **settings), order


def numbers(store, window_keys):
    places = {key.tobytes().hex(): n for n, key in enumerate(store.keys)}
    return [places[key] for key in window_keys]


@settings(max_examples=25)
@given(st.integers(0, 4), st.integers(1, 90), st.floats(0.01, 0.9), st.booleans())
def test_no_row_comes_before_it_is_in_the_pool_nor_twice_in_an_epoch_and_the_last_epoch_has_all(
    seed, steps, start, packed
):
    store = random_store(seed=seed % 3)
    loader, order = taught(store, steps=steps, start=start, seed=seed, packed=packed)
    lead = loader._lead
    assert len(lead.plan) >= steps * loader.rows_per_step
    pool_of_step = [order.shown(first, n) for first, n in order.stages() for _ in range(n)]
    assert len(pool_of_step) == steps and sum(1 for _ in order.stages()) <= N_STAGES
    seen: dict[int, list[int]] = {}
    pool_at_end: dict[int, int] = {}
    for position in range(len(lead.plan)):
        step = position // loader.rows_per_step
        pool = pool_of_step[step] if step < steps else len(store)
        window = lead.plan.window(position).tolist()
        assert max(order.ranks_R[window]) < pool
        seen.setdefault(int(lead.epochs[position]), []).extend(window)
        pool_at_end[int(lead.epochs[position])] = pool
    assert sorted(seen) == list(range(lead.first_epoch))
    for epoch, rows in seen.items():
        assert len(set(rows)) == len(rows)
        missing = set(range(len(store))) - {*rows}
        assert all(order.ranks_R[row] >= min(pool_of_step) for row in missing)
        if epoch == lead.first_epoch - 1:
            assert not missing
        else:  # it ended because its pool had come; at the last jump the pool may just have grown
            assert len(rows) <= pool_at_end[epoch]


def test_an_epoch_that_ends_holds_exactly_its_pool():
    store = random_store(n_rows=30)
    loader, order = taught(store, steps=3, start=0.3, rows_per_step=60)  # a stage of several epochs each
    lead = loader._lead
    for stage in range(3):
        here = np.unique(lead.epochs[stage * 60 : (stage + 1) * 60])[1:-1]  # whole ones
        assert len(here)
        for epoch in here:
            places = np.flatnonzero(lead.epochs == epoch)
            rows = [row for place in places for row in lead.plan.window(place).tolist()]
            assert sorted(order.ranks_R[rows]) == list(range(order.pool(stage) if stage < 2 else len(store)))


@pytest.mark.parametrize("steps", [3, 640, 649])
def test_the_hardest_rows_come_in_a_curriculum_that_is_as_long_as_the_run(steps):
    order = Curriculum(ranks_R=ranks(3000), start=0.3, n_steps=steps)
    shown = [order.shown(first, n) for first, n in order.stages()]
    assert shown[-1] == 3000 and shown[:-1] == [order.pool(first) for first, _ in order.stages()][:-1]


def test_the_pool_grows_by_the_square_root_from_its_start_to_all_rows_and_no_further():
    order = Curriculum(ranks_R=ranks(1000), start=0.3, n_steps=200)
    assert [order.pool(0), order.pool(200), order.pool(10**6)] == [300, 1000, 1000]
    assert order.pool(100) == math.ceil(1000 * math.sqrt((1 + 0.09) / 2))
    pools = [order.pool(step) for step in range(200)]
    assert pools == sorted(pools) and len(set(pools)) > 150
    assert [*Curriculum(ranks_R=ranks(9), start=0.3, n_steps=130).stages()][-1] == (129, 1)


def test_afterwards_the_epochs_are_the_ordinary_ones_and_a_run_is_as_long_as_without():
    store = random_store()
    loader, _ = taught(store, steps=5)
    plain = loader_of(store)
    begin, epoch = len(loader._lead.plan), loader._lead.first_epoch
    for number in range(epoch, epoch + 3):
        for n in range(len(plain.plan(number))):
            assert np.array_equal(loader._window(begin + n), plain.plan(number).window(n))
            assert loader.epoch_of(begin + n) == number
        begin += len(plain.plan(number))
    assert loader.steps_for_epochs(2.5) == plain.steps_for_epochs(2.5)
    assert loader.steps_for_tokens(999) == plain.steps_for_tokens(999)


def test_a_run_of_one_epoch_shows_every_row_once_the_easy_ones_first():
    store = random_store(n_rows=300)
    n_steps = loader_of(store).steps_for_epochs(1)
    loader, order = taught(store, steps=n_steps // 2)
    shown = [key for n in range(n_steps) for batch in loader.step(n) for key in batch.row_keys]
    rows = numbers(store, shown)
    counts = Counter(rows)
    assert max(counts.values()) == 1 and len(counts) >= 0.97 * len(store)  # the last windows may be in the next step
    quarter = len(rows) // 4
    assert order.ranks_R[rows[:quarter]].mean() < 0.6 * order.ranks_R[rows[-quarter:]].mean()
    drawn = [numbers(store, b.row_keys) for n in range(2) for b in taught(store, steps=n_steps // 2)[0].step(n)]
    ordered = [sorted(batch, key=lambda row: order.ranks_R[row]) for batch in drawn]
    assert drawn != ordered  # inside of the pool chance decides


def test_steps_are_resumed_exactly_and_do_not_depend_on_the_micro_batch():
    store = random_store(n_rows=60)
    whole, _ = taught(store, steps=6)
    steps = [whole.step(n) for n in range(14)]
    for cut in (1, 5, 6, 7, 13):
        assert same(taught(store, steps=6)[0].step(cut), steps[cut])
    for micro in (1, 3, 4):
        keys = [k for b in taught(store, steps=6, micro_batch=micro)[0].step(4) for k in b.row_keys]
        assert keys == [k for b in steps[4] for k in b.row_keys]
    other = Curriculum(ranks_R=whole._curriculum.ranks_R, start=0.2, n_steps=6)
    assert not same(loader_of(store, curriculum=other, seed=1).step(0), steps[0])


def test_a_weight_is_how_often_a_row_of_the_pool_comes_in_an_epoch():
    store = store_of([[n + 2, n + 3, n + 4] for n in range(40)], max_length=16)
    order = Curriculum(ranks_R=ranks(40), start=0.5, n_steps=2)
    loader = loader_of(store, curriculum=order, weights=[2.0], rows_per_step=100)
    for epoch in range(1, loader._lead.first_epoch):
        places = np.flatnonzero(loader._lead.epochs == epoch)
        counts = Counter(row for place in places for row in loader._lead.plan.window(place).tolist())
        assert {*counts.values()} <= {1, 2} and 2 in counts.values()
    last = Counter(
        row
        for place in np.flatnonzero(loader._lead.epochs == loader._lead.first_epoch - 1)
        for row in loader._lead.plan.window(place).tolist()
    )
    assert {*last.values()} == {2} and len(last) == 40


@pytest.mark.parametrize("packed", [True, False])
def test_its_windows_are_about_as_full_as_ordinary_ones(packed):
    store = random_store(n_rows=3000)
    loader, _ = taught(store, steps=40, rows_per_step=8, packed=packed)
    plain = loader_of(store, packed=packed).plan(0)
    ours = loader._lead.plan.sums(store.lengths)[: 40 * 8].mean()
    assert ours > 0.98 * plain.sums(store.lengths).mean()
