"""Rows are known by content alone: sorted by key, each once, with a seed that no process salts."""

import numpy as np
import torch

from tests.cache.tiny_cache import Rows
from tutelage.cache.rows import RowSet, draw_seeds

GOLDEN = (6655343360812637694, 6929631479487854045, 9085887318319164186, 16335199404009468371, 15743094884522234174)


def test_a_seed_is_a_function_of_key_draw_and_teacher_on_every_machine():
    keys = [bytes(32), bytes(range(32))]
    assert draw_seeds(keys, [0, 0], teacher="a").tolist() == [GOLDEN[0], GOLDEN[1]]
    assert draw_seeds(keys, [1, 0], teacher="a").tolist() == [GOLDEN[2], GOLDEN[1]]
    assert draw_seeds(keys, [0, 0], teacher="b").tolist() == [GOLDEN[3], GOLDEN[4]]


def test_a_row_set_is_the_same_for_the_same_rows_in_any_order_and_number():
    rows = Rows(20)
    once = RowSet.of([(rows, np.arange(20))])
    shuffled = RowSet.of([(rows, np.array([5, 3, 3, 9])), (rows, np.arange(20)[::-1])])
    assert once.sha256() == shuffled.sha256()
    assert once.n_trained.tolist() == shuffled.n_trained.tolist()


def test_every_row_is_in_exactly_one_batch():
    a, b = Rows(15), Rows(9, seed=1)
    rows = RowSet.of([(a, np.arange(15)), (b, np.arange(9))])
    seen = []
    for places, item in rows.batches(max_length=16, windows=2, fingerprint="x", pad_id=0):
        seen += places.tolist()
        assert item.batch.n_trained == rows.n_trained[places].sum()
        assert torch.equal(item.batch.view.index_N, item.batch.view.index_N.sort().values)
    assert sorted(seen) == list(range(24))
