"""The journal of one generation: what was asked, what came back and what it cost, durable before anything uses it.

A file of lines.  Records are written in groups, one write and one fsync each; a group counts once its fsync returned:

    group CRC N BYTES CRC'      N record lines follow, BYTES in all, with this CRC; CRC' is that of the line before it
    CRC LENGTH JSON             a record; CRC and LENGTH are those of its JSON

The next group is written only after the fsync of the one before.  So a bad group at the end of the file was never
acknowledged (a crash), and a bad group with a good one anywhere behind it is damage.  `close` ends the file with an
empty group: then a bad last answer is damage too.  CRCs are CRC-32 as 8 hexadecimal digits.

What the records mean stands in ledger.py.
"""

import json
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tutelage import console, io
from tutelage.errors import ConfigError, IntegrityError

NAME = "journal.jnl"
LOCK = ".lock"
_HEAD_BYTES = 80  # no header is longer
_Data: TypeAlias = bytes | mmap.mmap
Fields: TypeAlias = Mapping[str, Any]  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record: its kind, its fields, and where its line lies in the file."""

    kind: str
    fields: Fields
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes in the middle of the file that are not what was written."""

    begin: int
    end: int  # here the next good group begins
    n_before: int  # good records before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a file holds: good groups up to `good_bytes`, then `n_torn` bytes that were never acknowledged."""

    good_bytes: int
    n_torn: int
    n_records: int
    damages: tuple[Damage, ...]


def _crc(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)


def line_of(kind: str, fields: Fields) -> str:
    """A record as its line, without the line feed."""
    text = json.dumps([kind, fields], allow_nan=False, separators=(",", ":"))
    return f"{_crc(text.encode()).decode()} {len(text)} {text}"


def _header_of(lines: Sequence[str]) -> str:
    body = "".join(f"{line}\n" for line in lines).encode()
    head = f"group {_crc(body).decode()} {len(lines)} {len(body)}"
    return f"{head} {_crc(head.encode()).decode()}"


def record_of(line: bytes, offset: int) -> Record | None:
    """The record in a line without its line feed; None when a byte of it is not what was written."""
    crc, _, rest = line.partition(b" ")
    length, _, text = rest.partition(b" ")
    if not length.isdigit() or len(text) != int(length) or _crc(text) != crc:
        return None
    kind, fields = json.loads(text)
    return Record(kind=kind, fields=fields, offset=offset, n_bytes=len(line))


def _group_at(data: _Data, start: int) -> tuple[list[Record], int] | None:
    """The records of the whole group that begins at `start` and its end; None when it is torn, damaged or absent."""
    head, found, _ = data[start : start + _HEAD_BYTES].partition(b"\n")
    parts = head.split(b" ")
    if not found or len(parts) != 5 or parts[0] != b"group" or _crc(head[:-9]) != parts[4]:
        return None
    begin, end = start + len(head) + 1, start + len(head) + 1 + int(parts[3])
    body = data[begin:end]
    if len(body) != int(parts[3]) or _crc(body) != parts[1]:
        return None
    records: list[Record] = []
    for line in body.split(b"\n")[:-1]:
        record = record_of(line, begin)
        if record is None:
            return None
        records.append(record)
        begin += len(line) + 1
    return (records, end) if len(records) == int(parts[2]) else None


def _next_good(data: _Data, start: int) -> int:
    """Where the next whole group begins behind `start`, -1 when there is none."""
    at = start
    while (at := data.find(b"group ", at + 1)) >= 0:
        if _group_at(data, at) is not None:
            return at
    return -1


def read(path: Path, visit: Callable[[Record], object]) -> Extent:
    """Shows every good record to `visit`, in order, a group in memory at a time; the file may be absent."""
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return Extent(good_bytes=0, n_torn=0, n_records=0, damages=())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, n_records, damages = 0, 0, list[Damage]()
        while at < size:
            group = _group_at(data, at)
            if group is None:
                behind = _next_good(data, at)
                if behind < 0:
                    break
                damages.append(Damage(begin=at, end=behind, n_before=n_records))
                at = behind
                continue
            for record in group[0]:
                visit(record)
            n_records, at = n_records + len(group[0]), group[1]
        return Extent(good_bytes=at, n_torn=size - at, n_records=n_records, damages=tuple(damages))


def require_undamaged(path: Path, extent: Extent) -> None:
    """IntegrityError[JOURNAL_CORRUPT] when bytes in the middle are not what was written; the file is not touched."""
    if extent.damages:
        first = extent.damages[0]
        n_behind = extent.n_records - first.n_before
        raise IntegrityError(
            "JOURNAL_CORRUPT",
            f"{path} is damaged at bytes {first.begin} to {first.end} ({first.n_before} good records before, "
            f"{n_behind} after); restore it from a copy, or keep the good ones: tutelage status {path.parent} --repair",
        )


def repair(folder: Path) -> int:
    """Keeps the good groups of a damaged journal and the damaged file beside it; the number of damaged places."""
    path = folder / NAME
    handle = _lock(folder)
    try:
        extent = read(path, lambda _: None)
        if not extent.damages:
            return 0
        data, edges = path.read_bytes(), [0, *(e for d in extent.damages for e in (d.begin, d.end)), extent.good_bytes]
        number = 1
        while (aside := folder / f"{NAME}.damaged-{number}").exists():
            number += 1
        io.write_bytes(aside, data)
        io.write_pieces(path, [data[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)])
        return len(extent.damages)
    finally:
        os.close(handle)


def _lock(folder: Path) -> int:
    handle = io.take_lock(folder / LOCK)
    if handle is None:
        raise ConfigError("LOCKED", f"{folder} is in use by another tutelage generate; wait for it, or stop it")
    return handle


class Journal:
    """The open journal of `folder`, locked to this process; `visit` has seen every record that was there."""

    def __init__(self, folder: Path, visit: Callable[[Record], object]) -> None:
        io.make_directory(folder)
        self.path = folder / NAME
        self._handle = _lock(folder)
        try:
            extent = read(self.path, visit)
            require_undamaged(self.path, extent)
            if extent.n_torn:
                # Before the first append: what is appended to half a group would be lost with it.
                io.truncate(self.path, extent.good_bytes)
                found = f"dropped {extent.n_torn} torn bytes at {self.path.name}:{extent.good_bytes}"
                console.warning("JOURNAL_TAIL", f"{found} (never acknowledged)")
        except BaseException:
            os.close(self._handle)
            raise
        self._size, self._sealed, self._broken = extent.good_bytes, True, False

    def commit(self, records: Sequence[tuple[str, Fields]]) -> list[Record]:
        """Makes the records durable as one group; only then do they count.

        After a failure nothing more is written: what of the group has reached the disk is not known.
        """
        if self._broken:
            raise IntegrityError("TRUNCATED", f"{self.path}: an earlier write failed; rerun the same command")
        lines = [line_of(kind, fields) for kind, fields in records]
        header = _header_of(lines)
        self._broken = True
        io.append_lines(self.path, [header, *lines], durable=True)
        self._broken, self._sealed = False, not records
        placed, at = [], self._size + len(header) + 1
        for (kind, fields), line in zip(records, lines, strict=True):
            placed.append(Record(kind=kind, fields=fields, offset=at, n_bytes=len(line)))
            at += len(line) + 1
        self._size = at
        return placed

    def fields_at(self, offset: int, n_bytes: int) -> Fields:
        """The fields of a record that is on the disk, verified again."""
        return fields_at(self.path, offset, n_bytes)

    def close(self) -> None:
        """Seals the file (see above) and lets the lock go."""
        try:
            if not self._sealed and not self._broken:
                self.commit([])
        finally:
            os.close(self._handle)


def fields_at(path: Path, offset: int, n_bytes: int) -> Fields:
    """The fields of the record at a place; IntegrityError[JOURNAL_CORRUPT] when it is not there."""
    with path.open("rb") as file:
        file.seek(offset)
        record = record_of(file.read(n_bytes), offset)
    if record is None:
        raise IntegrityError("JOURNAL_CORRUPT", f"{path}: the record at byte {offset} changed while it was in use")
    return record.fields
