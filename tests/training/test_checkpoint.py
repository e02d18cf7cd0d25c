"""Checkpoints against every fault of faults.md A2, A5-A9, A19: kill, full disk, bad disk, bit rot, power loss."""

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.instruments import faults
from tests.instruments.quick_disk import QUICK_DISK
from tests.training.saved import FOREIGN, REQUIRED, RUN, bits, newest_step, save
from tutelage import tensor_file
from tutelage.errors import IntegrityError, ResourceError
from tutelage.training import checkpoint


@pytest.fixture
def disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        yield Path(name)


# --- what is saved is what is loaded ------------------------------------------------------------------------------

ODD_TENSORS = {
    "nan with a payload": torch.tensor([0x7FC00001, 0x7F800001], dtype=torch.int32).view(torch.float32),
    "minus zero, subnormal": torch.tensor([-0.0, 5e-324], dtype=torch.float64),
    "bfloat16": torch.tensor([1.0, 3e38, -1e-40], dtype=torch.bfloat16),
    "float16": torch.tensor([65504.0, 6e-8], dtype=torch.float16),
    "step of Adam, no dimension": torch.tensor(41.0),
    "large int64": torch.tensor([2**62 + 1, -(2**63)]),
    "bool": torch.tensor([True, False, True]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "every second": torch.arange(10.0)[::2],
}


def test_every_dtype_and_layout_comes_back_bit_for_bit(disk: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(0)))
    groups = {"odd": {**ODD_TENSORS, "parameter": parameter}, "nothing": {}}
    path = checkpoint.save(disk, step=1, run_id=RUN, tensors=groups, state={})
    loaded = checkpoint.load(path)
    assert loaded.tensors["nothing"] == {}
    for name, expected in groups["odd"].items():
        actual = loaded.tensors["odd"][name]
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
        assert torch.equal(bits(actual), bits(expected.detach())), name


def test_tensors_on_the_cpu_are_written_from_where_they_lie() -> None:
    """No copy of them, or a checkpoint would need the memory of the run a second time."""
    tensors = {"a": torch.randn(64, 8), "b": torch.zeros(3, dtype=torch.bfloat16)}
    _, *data = tensor_file.pieces(tensors)
    assert [np.frombuffer(piece, np.uint8).ctypes.data for piece in data] == [t.data_ptr() for t in tensors.values()]


def test_numbers_sort_as_numbers_beyond_the_padding(disk: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        save(disk, step)
    assert newest_step(disk) == 1_000_000


def test_another_runs_checkpoints_are_not_this_runs(disk: Path) -> None:
    save(disk, 1000, run_id=FOREIGN)
    assert newest_step(disk) is None
    save(disk, 7)
    assert newest_step(disk) == 7 and newest_step(disk, run_id=FOREIGN) == 1000


def test_a_taken_name_is_left_alone_and_the_newer_save_wins(disk: Path) -> None:
    first = save(disk, 3, run_id=FOREIGN)
    second, third = save(disk, 3), save(disk, 3)
    assert [p.name for p in (first, second, third)] == ["step-000003", "step-000003-2", "step-000003-3"]
    found = checkpoint.newest(disk, run_id=RUN)
    assert found is not None and found.path == third


# --- kill, full disk, bad disk ------------------------------------------------------------------------------------


def _every_n(disk: Path, hook_of: Callable[[int], faults.Hook], *, outcomes: set[int]) -> int:
    """Saves step 1, then step 2 under the N-th fault in a child, for every N; checks what is left; returns N."""
    n = 0
    while True:
        folder = disk / str(n)
        save(folder, 1)
        code = faults.in_child(lambda folder=folder: save(folder, 2), hook_of(n))
        assert newest_step(folder) == (2 if code == 0 else newest_step(folder)) in (1, 2)
        if code == 0:
            return n
        assert code in outcomes
        save(folder, 3)
        assert newest_step(folder) == 3
        assert not [p.name for p in folder.iterdir() if p.suffix in (".partial", ".tmp")], "not swept by the next save"
        shutil.rmtree(folder)
        n += 1


def test_a_save_killed_at_any_operation_leaves_the_previous_or_the_new_one(disk: Path) -> None:
    assert _every_n(disk, faults.die_inside, outcomes={faults.DIED}) > 15


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_save_that_fails_at_any_operation_is_never_called_good(number: int, disk: Path) -> None:
    save(disk / "count", 1)
    todo = faults.operations(lambda: save(disk / "count", 2))
    for n, operation in enumerate(todo):
        folder = disk / str(n)
        save(folder, 1)
        with faults.hooked(faults.raise_at(n, number)), pytest.raises(ResourceError) as caught:
            save(folder, 2)
        is_fsync = operation.kind.startswith("fsync")
        expected = "DISK_FULL" if number == errno.ENOSPC else "FSYNC" if is_fsync else "SAVE_FAILED"
        assert (caught.value.code, caught.value.exit_code) == (expected, 6)
        assert "step-000002 not saved" in caught.value.message
        assert "step-000001 is the newest valid" in caught.value.message
        assert newest_step(folder) == 1
        assert [p.name for p in folder.iterdir()] == ["step-000001"], "a failed save keeps the room it took"
        save(folder, 3)
        assert newest_step(folder) == 3


def test_a_disk_that_stays_full_leaves_the_previous_one(disk: Path) -> None:
    save(disk, 1)
    full = faults.raise_from(2, errno.ENOSPC, only=("create", "write", "mkdir"))
    with faults.hooked(full), pytest.raises(ResourceError, match="step-000001 is the newest valid"):
        save(disk, 2)
    assert newest_step(disk) == 1


def test_a_failed_first_save_says_that_nothing_is_valid(disk: Path) -> None:
    with faults.hooked(faults.raise_at(8, errno.EIO)), pytest.raises(ResourceError, match="no checkpoint of this run"):
        save(disk, 1)


def test_a_real_file_size_limit_leaves_the_previous_one(disk: Path) -> None:
    save(disk, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(ResourceError, match=r"EFBIG.*step-000001 is the newest valid"):
            save(disk, 2)

    assert faults.in_child(limited) == 0
    assert newest_step(disk) == 1


def test_too_little_room_is_found_before_writing(disk: Path) -> None:
    huge = torch.zeros(1).expand(10**15)  # 4 PB, of which 4 bytes exist
    with pytest.raises(ResourceError, match="need 4000000") as caught:
        checkpoint.save(disk, step=1, run_id=RUN, tensors={"student": {"w": huge}}, state={})
    assert caught.value.code == "DISK_FULL" and not os.listdir(disk)


def test_ctrl_c_at_any_operation_of_a_save_leaves_only_whole_checkpoints(disk: Path) -> None:
    save(disk / "count", 1)
    n_operations = len(faults.operations(lambda: save(disk / "count", 2)))
    for n in range(n_operations):
        folder = disk / str(n)
        save(folder, 1)
        with faults.hooked(faults.interrupt_at(n)), pytest.raises(KeyboardInterrupt):
            save(folder, 2)
        assert newest_step(folder) == 1 and os.listdir(folder) == ["step-000001"]


def test_short_writes_are_completed(disk: Path) -> None:
    for n in range(6):
        with faults.hooked(faults.shorten_at(n, 3)):
            save(disk, n)
        assert newest_step(disk) == n


# --- damage (A5), missing parts, versions -------------------------------------------------------------------------


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["student.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_one_flipped_bit_anywhere_falls_back_loudly(name: str, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(disk, 300)
    path = save(disk, 400) / name
    n_bits, whole = path.stat().st_size * 8, path.read_bytes()
    for bit in range(3, n_bits, max(1, n_bits // 60)):
        path.write_bytes(whole)
        _flip(path, bit)
        assert newest_step(disk) == 300
        warning = capsys.readouterr().err
        assert warning.startswith("warning[CKPT_CHECKSUM]: step-000400/") and warning.count("\n") == 1
        assert "using step-000300 instead" in warning
    assert path.exists(), "the damaged file is kept for inspection"


@pytest.mark.parametrize("name", ["student.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["absent", "cut", "empty"])
def test_a_file_that_is_absent_or_cut_falls_back(name: str, damage: str, disk: Path) -> None:
    save(disk, 300)
    path = save(disk, 400) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(content[:-1] if damage == "cut" else b"")
    assert newest_step(disk) == 300


def test_without_a_good_one_the_damage_is_an_error(disk: Path) -> None:
    _flip(save(disk, 5) / "student.safetensors", 999)
    with pytest.raises(IntegrityError, match="no valid checkpoint is left") as caught:
        newest_step(disk)
    assert caught.value.code == "CHECKSUM" and caught.value.exit_code == 3


def test_after_damage_the_same_step_can_be_saved_again(disk: Path) -> None:
    save(disk, 300)
    _flip(save(disk, 400) / "state.json", 8)
    assert save(disk, 400).name == "step-000400-2" and newest_step(disk) == 400


@pytest.mark.parametrize("missing", ["scheduler", "teacher"])
def test_a_missing_part_is_named(missing: str, disk: Path) -> None:
    save(disk, 400)
    with pytest.raises(IntegrityError, match=f"step-000400 has no {missing} state") as caught:
        checkpoint.newest(disk, run_id=RUN, required=[*REQUIRED, missing])
    assert caught.value.code == "CKPT_INCOMPLETE" and caught.value.exit_code == 3


def test_a_newer_format_is_refused_by_name(disk: Path) -> None:
    path = save(disk, 1)
    framed = json.loads((path / "manifest.json").read_text())
    framed["manifest"]["version"] = 2
    (path / "manifest.json").write_text(json.dumps(framed))
    for read in (lambda: checkpoint.load(path), lambda: newest_step(disk)):
        with pytest.raises(IntegrityError, match="format 2, this tutelage reads up to 1") as caught:
            read()
        assert caught.value.code == "FORMAT_VERSION"


def test_a_manifest_cannot_name_a_file_elsewhere(disk: Path) -> None:
    path = save(disk, 1)
    framed = json.loads((path / "manifest.json").read_text())
    framed["manifest"]["files"]["../outside.safetensors"] = framed["manifest"]["files"].pop("state.json")
    framed["sha256"] = checkpoint._sha256_of(framed["manifest"])
    (path / "manifest.json").write_text(json.dumps(framed))
    with pytest.raises(IntegrityError, match="is not a manifest"):
        checkpoint.load(path)


# --- rotation (A7) ------------------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest_and_the_protected(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (8, 9, 10, 11):
        path = save(disk, step)
    capsys.readouterr()
    assert checkpoint.rotate(disk, run_id=RUN, keep=2, protect={8}, fresh=path) == [9]
    line = "note[ROTATED]: removed step-000009; kept step-000008, step-000010, step-000011\n"
    assert capsys.readouterr().err == line


def test_rotation_never_removes_the_only_good_one(disk: Path) -> None:
    for step in (1, 2, 3):
        path = save(disk, step)
    _flip(path / "student.safetensors", 700)
    assert checkpoint.rotate(disk, run_id=RUN, keep=1) == [1]
    assert newest_step(disk) == 2


@given(
    steps=st.lists(st.integers(0, 10**7), min_size=1, max_size=6, unique=True),
    keep=st.integers(1, 3),
    foreign=st.sets(st.integers(0, 10**7), max_size=2),
    damaged=st.sets(st.integers(0, 5), max_size=2),
    kill_at=st.integers(0, 60),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rotation_keeps_foreign_runs_and_the_newest_good_one_wherever_it_is_killed(
    steps: list[int], keep: int, foreign: set[int], damaged: set[int], kill_at: int
) -> None:
    """Any order of steps, damage to any, a kill anywhere in save + rotate: the newest good step never goes back."""
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        folder = Path(name)
        for step in foreign:
            save(folder, step, run_id=FOREIGN)
        paths = {step: save(folder, step) for step in steps}
        for index in damaged & set(range(len(steps) - 1)):
            _flip(paths[steps[index]] / "state.json", 17)
        good = {s for i, s in enumerate(steps) if i not in damaged or i == len(steps) - 1}
        new = max([*steps, 0]) + 1

        def save_and_rotate() -> None:
            fresh = save(folder, new)
            checkpoint.rotate(folder, run_id=RUN, keep=keep, fresh=fresh)

        died = faults.in_child(save_and_rotate, faults.die_at(kill_at)) == faults.DIED
        assert newest_step(folder) in ({max(good), new} if died else {new})
        for step in foreign:
            checkpoint.load(next(p for p in folder.glob(f"step-{step:06d}*") if _owner(p) == FOREIGN))
        if not died:
            own = sorted(s for s in good | {new})
            expected = {s for s in [*sorted(set(steps)), new][-keep:] if s in own}
            left = {s for s in own if (folder / f"step-{s:06d}").exists() or list(folder.glob(f"step-{s:06d}-*"))}
            assert expected <= left


def _owner(path: Path) -> str:
    return str(json.loads((path / "manifest.json").read_text())["manifest"]["run_id"])
