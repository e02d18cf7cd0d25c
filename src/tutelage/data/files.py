"""Documents in the user's own files: text, JSON lines and Parquet, read as a stream.

A file that cannot be read as what it is (missing, empty, a directory, not UTF-8) is an error; a row that cannot be
trained on is a Reject, and the stream goes on.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tutelage.data import arrow
from tutelage.data.example import Example, Reject, RowDefectError
from tutelage.data.places import Place, is_compressed, reading
from tutelage.data.row import example_of_row
from tutelage.errors import IntegrityError

MAX_ROW_BYTES = 10_000_000
MAX_UNPACKED_BYTES = 1 << 30  # of one document in a compressed file
PARQUET_ENDINGS = (".parquet", ".pq")
BLOCK_BYTES = 1 << 20
ID = "id"  # the column by which a row is known, where rows have one
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
)


def read_text(path: Place, *, source: str, separator: str) -> Iterator[Example | Reject]:
    """The documents of one text file: the whole file, or what stands between separators."""
    pieces = _pieces(path, separator.encode()) if separator else [(0, 1, _bytes(path))]
    for offset, line, data in pieces:
        name = f"{path}:{line}" if separator else str(path)
        text = _decode(data.removeprefix(BYTE_ORDER_MARK) if offset == 0 else data, path, offset=offset, line=line)
        if separator and not text.strip():
            continue  # a separator at the end of a file opens no document
        yield _example(text, {}, source=source, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one row holds, and where it stands."""

    name: str
    content: object


def read_parquet(path: Place, *, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of one Parquet file, with these columns and their `id` where they have one; all where none is named."""
    with path.open("rb") as file:
        for number, values in enumerate(arrow.parquet_rows(file, columns, also=(ID,), name=str(path)), start=1):
            yield Row(name=f"{path}:{number}", content=values)


def read_rows(path: Place, *, source: str) -> Iterator[Row | Reject]:
    """The rows of one file of JSON lines; only line feeds end a line (U+2028 may stand inside a string)."""
    for number, (offset, line) in enumerate(_lines(path), start=1):
        name = f"{path}:{number}"
        if len(line) > MAX_ROW_BYTES:
            yield Reject(source=source, name=name, reason=f"row of more than {MAX_ROW_BYTES:,} bytes")
            continue
        text = _decode(line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line, path, offset=offset, line=number)
        if text.strip():
            yield _row(text.rstrip("\r\n"), source=source, name=name)


def _row(text: str, *, source: str, name: str) -> Row | Reject:
    """One JSON line."""
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return Reject(source=source, name=name, reason=f"not JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return Reject(source=source, name=name, reason="not JSON: nested too deeply")
    except ValueError as error:
        return Reject(source=source, name=name, reason=str(error))
    return Row(name=name, content=row)


def examples_of(rows: Iterable[Row | Reject], columns: Mapping[str, str], *, source: str) -> Iterator[Example | Reject]:
    """The examples in the rows of one file; one whose `id` and content an earlier row has is a Reject.

    Such a file was written twice.  Rows that share an id alone may be the turns of one chat.
    """
    seen: set[bytes] = set()
    for row in rows:
        item = row if isinstance(row, Reject) else _example(row.content, columns, source=source, name=row.name)
        row_id = row.content.get(ID) if isinstance(row, Row) and isinstance(row.content, Mapping) else None
        if isinstance(item, Example) and isinstance(row_id, str | int):
            key = hashlib.sha256(json.dumps([row_id, item.id]).encode()).digest()
            if key in seen:
                item = Reject(
                    source=source, name=item.name, reason="a copy: an earlier row of this file has its id and content"
                )
            seen.add(key)
        yield item


def _example(row: object, columns: Mapping[str, str], *, source: str, name: str) -> Example | Reject:
    try:
        return example_of_row(row, columns, source=source, name=name)
    except RowDefectError as defect:
        return Reject(source=source, name=name, reason=str(defect))


def _refuse_constant(constant: str) -> object:
    raise RowDefectError(f"{constant} is not JSON")


def _lines(path: Place) -> Iterator[tuple[int, bytes]]:
    """Each line with its byte offset; of a line over the limit only its beginning, one byte longer than the limit."""
    offset = 0
    with reading(path) as stream:
        while line := stream.readline(MAX_ROW_BYTES + 1):
            yield offset, line
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW_BYTES + 1)
            offset = stream.offset


def _pieces(path: Place, separator: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line number and bytes of what stands between separators, a block in memory at a time."""
    offset, line, rest = 0, 1, b""
    with reading(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            *complete, rest = (rest + block).split(separator)
            for piece in complete:
                yield offset, line, piece
                offset += len(piece) + len(separator)
                line += piece.count(b"\n") + separator.count(b"\n")
            _stop_if_too_large(path, len(rest))
    yield offset, line, rest


def _bytes(path: Place) -> bytes:
    blocks = []
    with reading(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            blocks.append(block)
            _stop_if_too_large(path, stream.offset)
    return b"".join(blocks)


def _stop_if_too_large(path: Place, n_bytes: int) -> None:
    """A small compressed file may unpack to more than a machine holds."""
    if is_compressed(path) and n_bytes > MAX_UNPACKED_BYTES:
        found = f"{path} unpacks to a document of more than {MAX_UNPACKED_BYTES:,} bytes"
        raise IntegrityError("ARCHIVE", f"{found}; give its source a separator that cuts it into documents")


def whole_text(path: Place) -> str:
    """The text of a file, without a byte order mark; IntegrityError[DATA_READ] where it is not UTF-8."""
    return _decode(_bytes(path).removeprefix(BYTE_ORDER_MARK), path, offset=0, line=1)


def _decode(data: bytes, path: Place, *, offset: int, line: int) -> str:
    if offset == 0 and (encoding := _wide_encoding(data)):
        raise IntegrityError("DATA_READ", f"{path} is not UTF-8 but {encoding}; {_conversion(encoding, path)}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        place = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        found = f"{path} line {line} is not UTF-8 ({place})"
        raise IntegrityError("DATA_READ", f"{found}; {_conversion('latin1', path)}") from None


def _conversion(encoding: str, path: Place) -> str:
    return f"convert it: iconv -f {encoding} -t utf-8 {path}"


def _wide_encoding(beginning: bytes) -> str:
    """What iconv calls the encoding of two or four bytes a character in which a file begins; empty for none of them."""
    for marks, encoding in _WIDE_MARKS:
        if beginning.startswith(marks):
            return encoding
    sample = beginning[:BLOCK_BYTES]
    zeros = (sample[::2].count(0), sample[1::2].count(0))  # Latin letters have one of their two bytes zero
    if max(zeros) > 0.4 * len(sample) and min(zeros) < 0.1 * len(sample):
        return "utf-16be" if zeros[0] > zeros[1] else "utf-16le"
    return ""
