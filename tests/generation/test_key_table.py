"""Keys outside of the process's memory: what a dict would say, and flat however many there are."""

import gc
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tutelage
from tests.generation.asking import recipe
from tests.instruments.endpoint import Endpoint
from tutelage.errors import ResourceError
from tutelage.generation import product
from tutelage.generation.journal import Journal
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import Finals, Place
from tutelage.generation.task import open_task

HASHES = [hashlib.sha256(bytes([n])).hexdigest() for n in range(4)]
KEYS = st.sampled_from([*HASHES, HASHES[0].upper(), f"judge:{HASHES[0]}", "x" * 64, "", "é"])
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(st.booleans(), KEYS, NUMBERS, NUMBERS)))
def test_it_says_what_a_dict_says(operations):
    table, known = KeyTable(), dict[str, tuple[int, int, int]]()
    for overwrite, key, a, b in operations:
        if overwrite:
            table.put(key, a, b, a)
            known[key] = (a, b, a)
        else:
            assert table.add(key, a, b) == (key not in known)
            known.setdefault(key, (a, b, 0))
        assert table.get(key) == known[key] and key in table and len(table) == len(known)
    assert set(table) == set(known) and all(table.get(key) == numbers for key, numbers in known.items())
    assert "unknown" not in table and 7 not in table and table.get("unknown") is None


def test_places_beyond_four_gigabytes_are_kept_and_unknown_keys_are_errors():
    finals = Finals()
    finals[HASHES[0]] = ("answer", Place(1 << 44, 1 << 24))
    finals[HASHES[1]] = ("truncated", Place(0, 1))
    assert finals[HASHES[0]] == ("answer", (1 << 44, 1 << 24)) and finals[HASHES[1]][0] == "truncated"
    with pytest.raises(KeyError):
        finals[HASHES[2]]


def test_no_room_for_it_is_said_with_what_to_do(monkeypatch):
    table = KeyTable()
    table._db.execute("PRAGMA max_page_count = 3")
    with pytest.raises(ResourceError, match=r"TMPDIR, then rerun") as caught:
        for n in range(1000):
            table.add(hashlib.sha256(b"%d" % n).hexdigest())
    assert caught.value.code == "DISK_FULL"


def answered(folder: Path, n: int) -> dict[str, Any]:
    """A recipe, and a journal in which all of its prompts have an answer."""
    folder.mkdir()
    made = recipe(folder, "http://127.0.0.1:1/v1", n=n, price=None, budget_usd=None, max_requests=10 * n)
    task = open_task(tutelage.load_recipe(made))
    with Endpoint() as server:
        body = server._answer(server.script(0, {}), {"prompt": "x"}).decode()
    journal, group = Journal(task.folder, lambda _: None), list[tuple[str, Any]]()
    for number, request in enumerate(task.sound()):
        key = {"id": number, "key": request.key}
        group.append(("reserved", {**key, "amount": 0}))
        group.append(("answered", {**key, "at": "2026-01-01T00:00:00+00:00", "status": 200, "body": body}))
        group.append(("parsed", {**key, "paid": 0, "outcome": "answer", "final": True, "spent": True}))
        if len(group) >= 60:
            journal.commit(group)
            group = []
    journal.commit(group)
    journal.close()
    return json.loads(json.dumps(made))


def peak_bytes(made: dict[str, Any]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        tutelage.generate(made, ask=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_prompts_take_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(product, "_LINES", 50)  # rows of one write: they are in memory together
    few, many = answered(tmp_path / "few", 100), answered(tmp_path / "many", 600)
    # The least of several: what libraries make once, and the interpreter's lists of free tuples, are not per prompt.
    small, large = (min(peak_bytes(made) for _ in range(4)) for made in (few, many))
    assert large - small < 16 * 500, (large - small) / 500
