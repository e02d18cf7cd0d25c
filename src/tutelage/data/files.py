"""Documents in the user's own files: text and JSON lines, read as a stream.

A file that cannot be read as what it is (missing, empty, a directory, not UTF-8) is an error; a row that cannot be
trained on is a Reject, and the stream goes on.
"""

import difflib
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.example import Example, Reject, RowDefectError, example_of_row
from tutelage.errors import IntegrityError

MAX_ROW_BYTES = 10_000_000
BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find(patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files that the patterns name, each once, in the order of the patterns and then of their names."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(_matches(str(Path(pattern).expanduser()))))
    return tuple(found)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        raise IntegrityError("DATA_READ", f"{pattern} is a directory; name its files: {path / '*'}")
    if path.exists():
        if path.stat().st_size == 0:
            raise IntegrityError("DATA_READ", f"{pattern} is empty (0 bytes); remove it from data.sources or fill it")
        return [path]
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        raise IntegrityError("DATA_READ", f"no file matches '{pattern}'{_nearest(path)}; looked in {Path.cwd()}")
    return files


def _nearest(path: Path) -> str:
    """A hint: what lies where the pattern first goes wrong, by the nearest name."""
    here = Path(path.anchor) if path.anchor else Path()
    for part in path.relative_to(here).parts if path.anchor else path.parts:
        if (here / part).is_dir():
            here /= part
            continue
        names = sorted(child.name for child in here.iterdir()) if here.is_dir() else []
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
        return f" (nearest: {here / near[0]})" if near else ""
    return ""


def read_text(path: Path, *, source: str, separator: str) -> Iterator[Example | Reject]:
    """The documents of one text file: the whole file, or what stands between separators."""
    pieces = _pieces(path, separator.encode()) if separator else [(0, 1, _bytes(path))]
    for offset, line, data in pieces:
        name = f"{path}:{line}" if separator else str(path)
        text = _decode(data.removeprefix(BYTE_ORDER_MARK) if offset == 0 else data, path, offset=offset, line=line)
        if separator and not text.strip():
            continue  # a separator at the end of a file opens no document
        yield _example(text, {}, source=source, name=name)


def read_jsonl(path: Path, *, source: str, columns: Mapping[str, str]) -> Iterator[Example | Reject]:
    """The documents in the rows of one file of JSON lines."""
    for row in read_rows(path, source=source):
        if isinstance(row, Reject):
            yield row
        else:
            yield _example(row.content, columns, source=source, name=row.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one JSON line holds, and where it stands."""

    name: str
    content: object


def read_rows(path: Path, *, source: str, ids_once: bool = True) -> Iterator[Row | Reject]:
    """The rows of one file of JSON lines; only line feeds end a line (U+2028 may stand inside a string).

    With `ids_once` a row with the `id` of an earlier one is a Reject.
    """
    ids: set[str] = set()
    for number, (offset, line) in enumerate(_lines(path), start=1):
        name = f"{path}:{number}"
        if len(line) > MAX_ROW_BYTES:
            yield Reject(source=source, name=name, reason=f"row of more than {MAX_ROW_BYTES:,} bytes")
            continue
        text = _decode(line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line, path, offset=offset, line=number)
        if text.strip():
            yield _row(text.rstrip("\r\n"), source=source, name=name, ids=ids if ids_once else None)


def _row(text: str, *, source: str, name: str, ids: set[str] | None) -> Row | Reject:
    """One JSON line; `ids` are the row ids of this file so far, and grow."""
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
        row_id = row.get("id") if isinstance(row, dict) else None
        if isinstance(row_id, str | int) and ids is not None:
            key = json.dumps(row_id)
            if key in ids:
                raise RowDefectError("duplicate id: an earlier row of this file has it")
            ids.add(key)
    except json.JSONDecodeError as error:
        return Reject(source=source, name=name, reason=f"not JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return Reject(source=source, name=name, reason="not JSON: nested too deeply")
    except ValueError as error:
        return Reject(source=source, name=name, reason=str(error))
    return Row(name=name, content=row)


def _example(row: object, columns: Mapping[str, str], *, source: str, name: str) -> Example | Reject:
    try:
        return example_of_row(row, columns, source=source, name=name)
    except RowDefectError as defect:
        return Reject(source=source, name=name, reason=str(defect))


def _refuse_constant(constant: str) -> object:
    raise RowDefectError(f"{constant} is not JSON")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its byte offset; of a line over the limit only its beginning, one byte longer than the limit."""
    offset = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_ROW_BYTES + 1):
                yield offset, line
                while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES + 1)
                offset = file.tell()
    except OSError as error:
        raise _unreadable(path, error) from error


def _pieces(path: Path, separator: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line number and bytes of what stands between separators, a block in memory at a time."""
    offset, line, rest = 0, 1, b""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                *complete, rest = (rest + block).split(separator)
                for piece in complete:
                    yield offset, line, piece
                    offset += len(piece) + len(separator)
                    line += piece.count(b"\n") + separator.count(b"\n")
    except OSError as error:
        raise _unreadable(path, error) from error
    yield offset, line, rest


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def whole_text(path: Path) -> str:
    """The text of a file, without a byte order mark; IntegrityError[DATA_READ] where it is not UTF-8."""
    return _decode(_bytes(path).removeprefix(BYTE_ORDER_MARK), path, offset=0, line=1)


def _decode(data: bytes, path: Path, *, offset: int, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        place = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        fix = f"convert it: iconv -f latin1 -t utf-8 {path}"
        raise IntegrityError("DATA_READ", f"{path} line {line} is not UTF-8 ({place}); {fix}") from None


def _unreadable(path: Path, error: OSError) -> IntegrityError:
    return IntegrityError("DATA_READ", f"{path} cannot be read ({error.strerror}); check that it is there and readable")
