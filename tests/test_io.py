"""io.py: whole or absent, durable, private, and every failure has its code.  Instruments: faults, power_loss."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from tests.instruments import faults
from tests.instruments.power_loss import Disk
from tutelage import io, reading
from tutelage.errors import IntegrityError, ResourceError

OLD, NEW = b"old " * 10, b"new! " * 2000
EXPECTED_CODE = {errno.ENOSPC: "DISK_FULL", errno.EDQUOT: "DISK_FULL", errno.EIO: "IO"}


def _external(path: Path) -> None:
    path.write_bytes(NEW)


WRITERS = {
    "write_bytes": lambda path: io.write_bytes(path, NEW),
    "write_with": lambda path: io.write_with(path, _external),
}


def _prepared(folder: Path) -> Path:
    path = folder / "file"
    io.write_bytes(path, OLD)
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_killed_at_any_operation_holds_the_old_bytes_or_the_new(writer: str, tmp_path: Path) -> None:
    n = 0
    while True:
        folder = tmp_path / str(n)
        path = _prepared(folder)
        exit_code = faults.in_child(lambda path=path: WRITERS[writer](path), faults.die_inside(n))
        assert path.read_bytes() in (OLD, NEW)
        if exit_code == 0:
            break
        assert exit_code == faults.DIED
        io.remove_leftovers(folder)
        assert os.listdir(folder) == ["file"]
        n += 1
    assert path.read_bytes() == NEW and n >= 4  # create, write, fsync, rename, fsync of the folder


@pytest.mark.parametrize("number", EXPECTED_CODE, ids=errno.errorcode.get)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fails_at_any_operation_leaves_no_half_file(writer: str, number: int, tmp_path: Path) -> None:
    counted = _prepared(tmp_path / "count")
    todo = faults.operations(lambda: WRITERS[writer](counted))
    assert [o.kind for o in todo] == ["create", "write", "fsync", "rename", "fsync_directory"]
    for n, operation in enumerate(todo):
        path = _prepared(tmp_path / str(n))
        with faults.hooked(faults.raise_at(n, number)), pytest.raises(ResourceError) as caught:
            WRITERS[writer](path)
        fsync_failed = operation.kind.startswith("fsync") and number == errno.EIO
        assert caught.value.code == ("FSYNC" if fsync_failed else EXPECTED_CODE[number])
        assert path.read_bytes() == (NEW if operation.kind == "fsync_directory" else OLD)
        assert os.listdir(path.parent) == ["file"], "something is left aside"


def test_ctrl_c_at_any_operation_leaves_nothing_aside(tmp_path: Path) -> None:
    for n in range(5):
        path = _prepared(tmp_path / str(n))
        with faults.hooked(faults.interrupt_at(n)), pytest.raises(KeyboardInterrupt):
            io.write_bytes(path, NEW)
        assert path.read_bytes() in (OLD, NEW) and os.listdir(path.parent) == ["file"]


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path) -> None:
    kinds: list[str] = []

    def hook(operation: io.Operation) -> None:
        kinds.append(operation.kind)
        if operation.kind == "fsync":
            raise OSError(errno.EIO, "no")

    with faults.hooked(hook), pytest.raises(ResourceError, match="could not be made durable"):
        io.write_bytes(tmp_path / "file", NEW)
    assert kinds.count("fsync") == 1 and "rename" not in kinds


def test_a_short_write_is_completed(tmp_path: Path) -> None:
    with faults.hooked(faults.shorten_at(0, 7)):
        io.write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("writer", WRITERS)
def test_a_real_file_size_limit_keeps_the_old_file(writer: str, tmp_path: Path) -> None:
    path = _prepared(tmp_path)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel writes 1000 bytes, then EFBIG
        with pytest.raises(ResourceError, match="EFBIG"):
            WRITERS[writer](path)

    assert faults.in_child(limited) == 0
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["file"]


def test_a_full_device_is_disk_full() -> None:
    with pytest.raises(ResourceError) as caught:
        io.append_line(Path("/dev/full"), "x")
    assert caught.value.code == "DISK_FULL" and caught.value.exit_code == 6


def test_an_error_of_a_rust_library_keeps_its_meaning(tmp_path: Path) -> None:
    def writer(_: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ResourceError) as caught:
        io.write_with(tmp_path / "file", writer)
    assert caught.value.code == "DISK_FULL" and not os.listdir(tmp_path)


def test_another_error_of_a_writer_passes_through(tmp_path: Path) -> None:
    def writer(_: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        io.write_with(tmp_path / "file", writer)
    assert not os.listdir(tmp_path)


# --- power loss ---------------------------------------------------------------------------------------------------


def _power_loss_violation(root: Path, ignore: frozenset[str] = frozenset()) -> str | None:
    """Writes OLD, then NEW into one file; what a reachable state breaks, or None."""
    disk, acknowledged = Disk(root, ignore=ignore), [None]
    broken: list[str] = []

    def hook(operation: io.Operation) -> None:
        disk(operation)
        for state in disk.new_states():
            content = state.get("d/file")
            if content not in ({None: (None, OLD), OLD: (OLD, NEW), NEW: (NEW,)}[acknowledged[0]]):
                broken.append(f"after {operation.kind}: {content!r:.20}")

    with faults.hooked(hook):
        for content in (OLD, NEW):
            io.write_bytes(root / "d" / "file", content)
            acknowledged[0] = content
            disk.forget()
        hook(io.Operation(kind="fsync_directory", path=root))  # nothing more: the state after the last save
    return broken[0] if broken else None


def test_after_a_power_loss_a_file_is_old_or_new_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    assert _power_loss_violation(tmp_path) is None


@pytest.mark.parametrize("lost", ["fsync", "fsync_directory"])
def test_the_power_loss_model_sees_a_missing_fsync(lost: str, tmp_path: Path) -> None:
    assert _power_loss_violation(tmp_path, frozenset([lost])) is not None


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_whose_name_cannot_be_made_durable_is_not_committed(tmp_path: Path) -> None:
    partial, final = tmp_path / "x.partial", tmp_path / "x"
    partial.mkdir()
    (partial / "a").write_bytes(NEW)
    with faults.hooked(faults.raise_at(1, errno.EIO, only=("fsync_directory",))), pytest.raises(ResourceError):
        io.commit_directory(partial, final)
    assert partial.exists() and not final.exists()
    io.commit_directory(partial, final)
    assert (final / "a").read_bytes() == NEW and not partial.exists()


def test_half_a_removed_folder_is_never_seen_under_its_name(tmp_path: Path) -> None:
    for n in range(20):
        folder = tmp_path / str(n) / "x"
        for name in ("a", "b", "c/d"):
            io.write_text(folder / name, name)
        exit_code = faults.in_child(lambda folder=folder: io.remove_tree(folder), faults.die_at(n))
        assert not folder.exists() or len([p for p in folder.rglob("*") if p.is_file()]) == 3
        io.remove_leftovers(folder.parent)
        assert os.listdir(folder.parent) in ([], ["x"])
        if exit_code == 0:
            return
    raise AssertionError("it never came to an end")


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    io.write_text(tmp_path / "models" / "a" / "f", "x")
    io.symlink(tmp_path / "student", "models/a")
    assert (tmp_path / "student" / "f").read_text() == "x"
    io.symlink(tmp_path / "student", "models")
    io.remove_tree(tmp_path / "student")
    assert sorted(os.listdir(tmp_path)) == ["models"] and (tmp_path / "models" / "a" / "f").exists()


def test_files_and_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        io.write_with(tmp_path / "d" / "with", _external)
        io.write_text(tmp_path / "d" / "text", "x")
        io.append_line(tmp_path / "d" / "lines", "x")
        io.write_text(tmp_path / "d" / "public", "x", private=False)
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "external").write_text("x")
        io.commit_directory(tmp_path / "p", tmp_path / "e")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    private = {"d": 0o700, "with": 0o600, "text": 0o600, "lines": 0o600, "e": 0o700, "external": 0o600}
    assert modes == private | {"public": 0o666}


# --- files that grow ----------------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_can_grow_again(tmp_path: Path) -> None:
    path, whole = tmp_path / "lines", b'{"a": 1}\n{"b": 22}\n{"c": 333}\n'
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        good = whole[:size].rfind(b"\n") + 1
        assert io.drop_torn_tail(path) == size - good
        io.append_line(path, "new")
        assert path.read_bytes() == whole[:good] + b"new\n"


def test_a_line_is_not_appended_to_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"whole\nhal")
    with pytest.raises(IntegrityError) as caught:
        io.append_line(tmp_path / "lines", "lost")
    assert caught.value.code == "TRUNCATED" and (tmp_path / "lines").read_bytes() == b"whole\nhal"


def test_a_line_that_cannot_be_written_whole_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    io.append_line(path, "first", durable=True)
    count = [0]

    def short_then_full(operation: io.Operation) -> int | None:
        if operation.kind == "write":
            count[0] += 1
            if count[0] == 2:
                raise OSError(errno.ENOSPC, "full")
            return 3
        return None

    with faults.hooked(short_then_full), pytest.raises(ResourceError):
        io.append_line(path, "second")
    assert path.read_bytes() == b"first\n"


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    io.require_free_space(tmp_path / "absent" / "folder", 1)
    with pytest.raises(ResourceError, match="need 1000000000.00 GB") as caught:
        io.require_free_space(tmp_path / "absent", 10**18)
    assert caught.value.code == "DISK_FULL" and not os.listdir(tmp_path)


def test_json_that_other_programs_cannot_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        io.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 100_000], ids=str)
def test_a_file_that_is_no_json_is_an_integrity_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        reading.read_json(tmp_path / "x.json")
    assert caught.value.code == "DATA_READ"
