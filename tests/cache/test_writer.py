"""A cache is written in shards: killed anywhere, shared by processes, grown later, the bytes are the same."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.cache.tiny_cache import Rows, folder_bytes, job, row_targets, teacher
from tests.instruments import faults
from tutelage.cache.reader import TeacherCache
from tutelage.cache.writer import write
from tutelage.errors import ConfigError, ResourceError


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(40)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "cache"
    write(folder, job(rows))
    return folder_bytes(folder)


def test_a_cache_has_several_shards_and_nothing_that_only_the_work_needed(whole):
    assert sum(name.startswith("shards/") for name in whole) >= 5
    assert {name for name in whole if not name.startswith("shards/")} == {
        "manifest.json", "tables.safetensors", "probe.safetensors", "head.safetensors",
    }  # fmt: skip


def test_the_bytes_do_not_depend_on_where_the_rows_stand_in_the_data(rows, whole, tmp_path):
    order = np.random.default_rng(3).permutation(40)
    write(tmp_path / "cache", job([(rows, order[:25]), (rows, order[25:])]))
    again = folder_bytes(tmp_path / "cache")
    assert {n: b for n, b in again.items() if "shards/" in n} == {n: b for n, b in whole.items() if "shards/" in n}


def killed_at(n: int, folder: Path, rows: Rows, whole: dict[str, bytes]) -> bool:
    code = faults.in_child(lambda: write(folder, job(rows)), faults.die_inside(n))
    if code == 0:
        return False
    assert code == faults.DIED
    write(folder, job(rows))
    assert folder_bytes(folder) == whole
    return True


@pytest.mark.parametrize("n", [0, 2, 9, 17, 26, 33, 41, 50, 64, 75])
def test_killed_here_and_there_the_same_call_ends_in_the_same_bytes(n, rows, whole, tmp_path):
    assert killed_at(n, tmp_path / "cache", rows, whole)


@pytest.mark.slow
def test_killed_at_every_fourth_file_operation_the_same_call_ends_in_the_same_bytes(rows, whole, tmp_path):
    n = 1
    while killed_at(n, tmp_path / f"cache-{n}", rows, whole):
        n += 4
    assert n > 60


@pytest.mark.parametrize("n", [3, 20, 47])
def test_a_full_disk_stops_with_one_line_and_the_same_call_goes_on(n, rows, whole, tmp_path):
    folder = tmp_path / "cache"
    with (
        faults.hooked(faults.raise_at(n, 28, only=("write", "create"))),
        pytest.raises(ResourceError, match="make room"),
    ):
        write(folder, job(rows))
    write(folder, job(rows))
    assert folder_bytes(folder) == whole


def test_a_resumed_capture_says_how_many_shards_were_kept(rows, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert faults.in_child(lambda: write(folder, job(rows)), faults.die_inside(60)) == faults.DIED
    write(folder, job(rows))
    assert "note[CAPTURE_RESUMED]" in capsys.readouterr().err


@pytest.mark.slow
def test_three_processes_share_the_work_and_end_in_the_same_bytes(rows, whole, tmp_path):
    folder, children = tmp_path / "cache", []
    for _ in range(3):
        if not (pid := os.fork()):
            try:
                own = write(folder, job(rows)).n_shards
            except BaseException:
                os._exit(99)
            os._exit(own)
        children.append(pid)
    own = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert 99 not in own
    assert sum(own) == sum(name.startswith("shards/") for name in whole)
    assert folder_bytes(folder) == whole


def test_grown_data_add_what_is_new_and_leave_the_rest(rows, whole, tmp_path):
    folder, more = tmp_path / "cache", Rows(12, seed=9)
    write(folder, job(rows))
    grown = write(folder, job([(rows, np.arange(40)), (more, np.arange(12))]))
    assert grown.n_positions == more.n_trained.sum()
    after = folder_bytes(folder)
    assert all(after[name] == data for name, data in whole.items() if name != "manifest.json")
    cache = TeacherCache(folder)
    assert cache.has(rows.keys).all()
    assert cache.has(more.keys).all()
    assert row_targets(cache, more, [3, 4]).ids_NK.shape[1] == 5


def test_labelling_again_asks_nothing(rows, tmp_path):
    write(tmp_path / "cache", job(rows))
    before = folder_bytes(tmp_path / "cache")
    again = write(tmp_path / "cache", job(rows))
    assert (again.n_positions, again.n_shards) == (0, 0)
    assert folder_bytes(tmp_path / "cache") == before


OTHERWISE = [
    {"fixed": {"k": 6}}, {"temperature": 2.0}, {"draws": 2}, {"codec": "dense"}, {"tokenizer": "u" * 64},
    {"template": "x" * 64}, {"max_length": 17}, {"n_vocabulary": 47}, {"bytes_per_token": 9.0}, {"error": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERWISE, ids=lambda change: next(iter(change)))
def test_a_cache_does_not_grow_with_what_was_asked_for_otherwise(change, rows, tmp_path):
    write(tmp_path / "cache", job(rows))
    before = folder_bytes(tmp_path / "cache")
    with pytest.raises(ConfigError, match=next(iter(change))) as caught:
        write(tmp_path / "cache", job(rows, **change))
    assert caught.value.code == "CACHE_MISMATCH"
    assert folder_bytes(tmp_path / "cache") == before


def test_a_cache_does_not_grow_with_another_teacher_but_with_the_same_under_another_name(rows, tmp_path):
    write(tmp_path / "cache", job(rows))
    with pytest.raises(ConfigError, match=r"teacher\.weights"):
        write(tmp_path / "cache", job(rows, asked_teacher=teacher(seed=1)))
    asked = job(rows).asked
    renamed = asked.teacher.model_copy(update={"name": "elsewhere"})
    write(tmp_path / "cache", job(rows, teacher=renamed))


def test_an_unfinished_cache_is_not_gone_on_with_on_other_data(rows, tmp_path):
    folder = tmp_path / "cache"
    assert faults.in_child(lambda: write(folder, job(rows)), faults.die_inside(60)) == faults.DIED
    with pytest.raises(ConfigError, match="other data"):
        write(folder, job(Rows(41, seed=5)))
    with pytest.raises(ConfigError, match="tutelage label") as caught:
        TeacherCache(folder)
    assert caught.value.code == "CACHE_UNFINISHED"


def test_rows_of_equal_content_are_stored_once(rows, tmp_path):
    twice = job([(rows, np.arange(40)), (rows, np.arange(10))])
    assert write(tmp_path / "cache", twice).manifest.n_rows == 40
