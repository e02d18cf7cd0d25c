"""The only module that writes, renames or deletes files: whole or absent, durable, private.

Every commit has one order: write aside, fsync the file, rename, fsync the directory.  Only this order survives every
state that a power loss can leave behind; `tests/instruments/power_loss.py` enumerates them.

Each file operation is shown to `FAULTS` before it happens.  Tests number the operations there and let number N die,
fail or fall short, or log them all for the power-loss model.  In production it is None.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from tutelage.errors import IntegrityError, ResourceError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Buffer: TypeAlias = bytes | memoryview
Result = TypeVar("Result")
Kind: TypeAlias = Literal[
    "create", "write", "fsync", "fsync_directory", "rename", "unlink", "rmdir", "mkdir", "symlink", "truncate"
]

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700  # prompts and texts are private; the umask can only take more away
_PUBLIC_FILE = 0o666
_WRITE_BYTES = 64 << 20  # one write call: Linux stops at 2 GiB anyway, and the fault layer wants more than one
_MAKE_ROOM = "make room and rerun the same command to continue"
_SERIAL = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One file operation, as the fault layer sees it before it happens."""

    kind: Kind
    path: Path
    target: Path | None = None  # rename: the new name; symlink: what it points to
    offset: int = 0  # write: where; truncate: the new size
    data: Buffer | None = None  # write: what; None: another library has just written the file


FAULTS: Callable[[Operation], int | None] | None = None  # may raise OSError, exit, or return how many bytes to write


@dataclass(frozen=True, slots=True)
class Digest:
    """What a manifest says about a file."""

    sha256: str
    n_bytes: int


def _announce(operation: Operation) -> int | None:
    return FAULTS(operation) if FAULTS is not None else None


def _perform(operation: Operation, act: Callable[..., Result], *arguments: object) -> Result:
    """What is announced and what is done stand in one line, so that neither is ever without the other."""
    _announce(operation)
    return act(*arguments)


@contextmanager
def mapped(path: Path, verb: str) -> Iterator[None]:
    """Turns an OSError of the body into the ResourceError that tells the user what to do."""
    try:
        yield
    except OSError as error:
        raise _resource_error(error, path, verb) from error


def _resource_error(error: OSError, path: Path, verb: str) -> ResourceError:
    name = errno.errorcode.get(error.errno or 0, str(error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("DISK_FULL", f"no space left to write {path} ({name}); {_MAKE_ROOM}")
    if verb == "fsync":
        return ResourceError("FSYNC", f"{path} could not be made durable ({name}); check the disk and rerun")
    return ResourceError("IO", f"cannot {verb} {path} ({name}: {error.strerror}); check the path and its permissions")


# --- the primitive operations: each is announced, each maps its errors ---------------------------------------------


def _create(path: Path, *, private: bool) -> int:
    with mapped(path, "create"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        mode = PRIVATE_FILE if private else _PUBLIC_FILE
        return _perform(Operation(kind="create", path=path), os.open, path, flags, mode)


def _write(fd: int, path: Path, data: Buffer, *, offset: int = 0) -> None:
    """Writes all of `data`; a short write goes on where it stopped, as the kernel expects."""
    rest = memoryview(data).cast("B")
    with mapped(path, "write"):
        while rest.nbytes:
            piece = rest[:_WRITE_BYTES]
            limit = _announce(Operation(kind="write", path=path, offset=offset, data=piece))
            n_written = os.write(fd, piece if limit is None else piece[:limit])
            rest, offset = rest[n_written:], offset + n_written


def _fsync(fd: int, path: Path, *, kind: Kind = "fsync") -> None:
    """Never retried: after a failed fsync the kernel may call lost pages clean."""
    with mapped(path, "fsync"):
        _perform(Operation(kind=kind, path=path), os.fsync, fd)


def fsync_file(path: Path) -> None:
    """Makes what was written to `path` durable (not its name: see `fsync_directory`)."""
    _fsync_path(path, kind="fsync")


def fsync_directory(path: Path) -> None:
    """Makes the names in `path` durable."""
    _fsync_path(path, kind="fsync_directory")


def _fsync_path(path: Path, *, kind: Kind) -> None:
    fd = _open(path, os.O_RDONLY)
    try:
        _fsync(fd, path, kind=kind)
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    with mapped(path, "open"):
        return os.open(path, flags | os.O_CLOEXEC, PRIVATE_FILE)


def _rename(path: Path, target: Path) -> None:
    with mapped(target, "rename to"):
        _perform(Operation(kind="rename", path=path, target=target), os.rename, path, target)


def _unlink(path: Path) -> None:
    with mapped(path, "remove"):
        _perform(Operation(kind="unlink", path=path), os.unlink, path)


# --- whole or absent ----------------------------------------------------------------------------------------------


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name beside `path` for the body to fill; then it becomes `path`, or is gone if the body failed."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_SERIAL)}.tmp")
    try:
        yield temporary
        _rename(temporary, path)
    except BaseException:  # Ctrl-C too: readers must not meet half a file
        with suppress(OSError, ResourceError):
            _unlink(temporary)
        raise
    fsync_directory(path.parent)


def write_new(path: Path, pieces: Iterable[Buffer], *, private: bool = True) -> Digest:
    """Creates `path`, which must not exist, and makes its bytes durable; for folders that are committed as a whole.

    The digest is taken of the bytes in memory, so a read-back is compared with what was meant.
    """
    sha256, offset = hashlib.sha256(), 0
    fd = _create(path, private=private)
    try:
        for piece in pieces:
            sha256.update(piece)
            _write(fd, path, piece, offset=offset)
            offset += memoryview(piece).nbytes
        _fsync(fd, path)
    finally:
        os.close(fd)
    return Digest(sha256.hexdigest(), offset)


def write_pieces(path: Path, pieces: Iterable[Buffer], *, private: bool = True) -> Digest:
    """Writes or replaces `path`: after a crash it holds the old bytes or the new ones."""
    with _aside(path) as temporary:
        return write_new(temporary, pieces, private=private)


def write_bytes(path: Path, data: Buffer, *, private: bool = True) -> None:
    """`write_pieces` of one piece."""
    write_pieces(path, [data], private=private)


def write_text(path: Path, text: str, *, private: bool = True) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode(), private=private)


def write_json(path: Path, value: Json, *, private: bool = True) -> None:
    """`write_text` of indented JSON; NaN and infinity are a ValueError, since other programs cannot read them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", private=private)


def write_with(path: Path, writer: Callable[[Path], None], *, private: bool = True) -> None:
    """Lets another library write the file: `writer` gets the name of an empty file beside `path`."""
    with _aside(path) as temporary:
        os.close(_create(temporary, private=private))
        try:
            writer(temporary)
        except Exception as error:
            raise _writer_error(error, path) from error
        with mapped(path, "write"):
            _announce(Operation(kind="write", path=temporary))
            if private:
                os.chmod(temporary, PRIVATE_FILE)  # the writer may have replaced our file by its own
        fsync_file(temporary)


def _writer_error(error: Exception, path: Path) -> Exception:
    if isinstance(error, OSError):
        return _resource_error(error, path, "write")
    # Libraries in Rust (safetensors, tokenizers) hide the OSError in the text of an exception of their own.
    if found := re.search(r"os error (\d+)", str(error)):
        number = int(found[1])
        return _resource_error(OSError(number, os.strerror(number)), path, "write")
    return error


def symlink(path: Path, target: str) -> None:
    """Makes `path` point to `target` (relative to the folder of `path`), replacing another link."""
    with _aside(path) as temporary, mapped(path, "link"):
        _perform(Operation(kind="symlink", path=temporary, target=Path(target)), os.symlink, target, temporary)


def commit_directory(partial: Path, final: Path, *, replace: bool = False) -> None:
    """Makes every file under `partial` durable and private, then gives the folder its name.

    `final` must not exist, unless `replace`: then it is removed first (only for what can be made again).
    When the name itself cannot be made durable it is taken back: a failed commit must not look like a good one.
    """
    for folder, _, files in os.walk(partial):
        os.chmod(folder, PRIVATE_FOLDER)
        for name in sorted(files):
            os.chmod(Path(folder, name), PRIVATE_FILE)
            fsync_file(Path(folder, name))
        fsync_directory(Path(folder))
    if replace:
        remove_tree(final)
    _rename(partial, final)
    try:
        fsync_directory(final.parent)
    except BaseException:
        with suppress(OSError, ResourceError):
            _rename(final, partial)
        raise


def make_directory(path: Path) -> None:
    """Makes `path` and what is missing above it, durably and private; one that exists is left as it is."""
    missing = list(itertools.takewhile(lambda p: not p.is_dir(), [path, *path.parents]))
    for folder in reversed(missing):
        with mapped(folder, "make"):
            try:
                _perform(Operation(kind="mkdir", path=folder), os.mkdir, folder, PRIVATE_FOLDER)
            except FileExistsError:
                if not folder.is_dir():  # else another process was faster
                    raise
        fsync_directory(folder.parent)


def rename(path: Path, target: Path) -> None:
    """Moves within one folder, durably."""
    assert path.parent == target.parent, "two folders cannot be changed in one durable step"
    _rename(path, target)
    fsync_directory(target.parent)


def remove_file(path: Path) -> None:
    """Removes `path` durably; absent is fine."""
    if path.exists() or path.is_symlink():
        _unlink(path)
        fsync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Removes a folder: its name goes first and durably, so nobody ever meets half of it.  Absent is fine."""
    if path.is_symlink() or not path.is_dir():
        return remove_file(path)
    doomed = path.with_name(f".{path.name}.{os.getpid()}-{next(_SERIAL)}.tmp")
    rename(path, doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        return _unlink(path)
    for entry in sorted(path.iterdir()):
        _remove(entry)
    with mapped(path, "remove"):
        _perform(Operation(kind="rmdir", path=path), os.rmdir, path)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left aside in `folder`; only for who holds the lock of the folder."""
    for path in sorted(folder.glob(".*.tmp")):
        _remove(path)


# --- files that grow ----------------------------------------------------------------------------------------------
def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Adds one line; see `append_lines`."""
    append_lines(path, [line], durable=durable)


def append_lines(path: Path, lines: Sequence[str], *, durable: bool = False) -> None:
    """Adds lines in one write, which are taken back when they cannot be written whole.

    Refuses a file that ends in half a line: what is appended would be lost with it (see `drop_torn_tail`).
    """
    assert not any("\n" in line for line in lines), "one record, one line"
    if not path.exists():
        os.close(_create(path, private=True))
        fsync_directory(path.parent)
    fd = _open(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            raise IntegrityError("TRUNCATED", f"{path} ends in half a line; rerun the same command to repair it")
        try:
            _write(fd, path, "".join(f"{line}\n" for line in lines).encode(), offset=size)
        except BaseException:
            with suppress(OSError):
                _perform(Operation(kind="truncate", path=path, offset=size), os.ftruncate, fd, size)
            raise
        if durable:
            _fsync(fd, path)
    finally:
        os.close(fd)


def truncate(path: Path, size: int) -> None:
    """Cuts `path` to `size` bytes, durably."""
    fd = _open(path, os.O_RDWR)
    try:
        with mapped(path, "truncate"):
            _perform(Operation(kind="truncate", path=path, offset=size), os.ftruncate, fd, size)
        _fsync(fd, path)
    finally:
        os.close(fd)


def drop_torn_tail(path: Path) -> int:
    """Cuts a last line without its end; returns how many bytes were dropped (0: the file was whole or absent)."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    if (good := data.rfind(b"\n") + 1) < len(data):
        truncate(path, good)
    return len(data) - good


# --- room, locks ---------------------------------------------------------------------------------------------------
def require_free_space(path: Path, n_bytes: int) -> None:
    """ResourceError[DISK_FULL] when the disk of `path` (which need not exist yet) has no room for `n_bytes`."""
    usage = shutil.disk_usage(next(p for p in [path.absolute(), *path.absolute().parents] if p.exists()))
    if usage.total and usage.free < n_bytes:  # some network disks report a size of 0: they don't say
        found = f"need {n_bytes / 1e9:.2f} GB in {path}, {usage.free / 1e9:.2f} GB free"
        raise ResourceError("DISK_FULL", f"{found}; {_MAKE_ROOM}")


def take_lock(path: Path) -> int | None:
    """A handle (os.close it) that keeps `path` to this process, None if another has it; any death of ours frees it.

    The file is never removed: who has opened a removed one could hold a lock that nobody else sees.
    """
    handle = _open(path, os.O_RDWR | os.O_CREAT)
    with mapped(path, "lock"):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
    return handle
