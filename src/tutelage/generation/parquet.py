"""The rows of a set as Parquet: what answers.jsonl holds, and in columns of their own who was asked, and how.

One row an answer, in the same order; row groups of 10,000, zstd, a checksum in each page.  Dates, money and counts
stand in card.json: they depend on when the answers came, and the bytes here do not (they do on pyarrow's version).
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage import io
from tutelage.data.answers import PARQUET, ROWS, Asked, Card
from tutelage.errors import ConfigError

GROUP_ROWS = 10_000


def require_pyarrow() -> ModuleType:
    """The library; ConfigError[CONFIG] that names what to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "CONFIG", 'generate.parquet needs pyarrow; run: pip install "tutelage[parquet]", or leave it out'
        ) from error
    return pyarrow  # type: ignore[no-any-return]  # it has no types


def write_parquet(folder: Path, card: Card) -> io.Digest:
    """Writes answers.parquet from answers.jsonl, whole or not at all; the same bytes for the same rows and card."""
    return io.write_pieces(folder / PARQUET, _pieces(folder / ROWS, card))


class _Sink:
    """A file that keeps what is written until it is taken; pyarrow asks it where it is."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:  # bytes or a buffer of pyarrow's
        """Takes the bytes in."""
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        """Bytes so far."""
        return self._size

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def taken(self) -> bytes:
        """What was written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _pieces(rows: Path, card: Card) -> Iterator[bytes]:
    pa = require_pyarrow()
    sink, schema, digest = _Sink(), _schema(pa), hashlib.sha256()
    same = {"sampling": json.dumps(card.sampling, sort_keys=True), "template": card.template}
    own = {name: _of_teacher(name or asked.model, asked) for name, asked in card.teachers.items()}
    writer = pa.parquet.ParquetWriter(
        pa.PythonFile(sink, mode="w"), schema, compression="zstd", write_page_checksum=True, store_schema=False
    )
    with rows.open("rb") as file:
        while lines := list(islice(file, GROUP_ROWS)):
            for line in lines:
                digest.update(line)
            read = (json.loads(line) for line in lines)
            found = [{**row, **same, **own[row.get("teacher", "")]} for row in read]
            writer.write_table(pa.Table.from_pylist([_row(row, schema.names) for row in found], schema=schema))
            yield sink.taken()
    writer.close()
    assert digest.hexdigest() == card.sha256, "the rows that the card is of"
    yield sink.taken()


def _of_teacher(name: str, asked: Asked) -> dict[str, str | None]:
    """Who wrote a row, at which price and under which terms."""
    price = json.dumps(asked.price, sort_keys=True) if asked.price is not None else None
    return {"teacher": name, "price": price, "terms": asked.terms}


def _schema(pa: Any) -> Any:
    text = pa.string()
    turns = pa.list_(pa.struct([("role", text), ("content", text)]))
    names = ("prompt", "answer", "reasoning", "reference", "finish_reason", "model")
    own = [("id", text), ("source", text), ("sample", pa.int64()), ("messages", turns), *((n, text) for n in names)]
    shared = [(name, text) for name in ("teacher", "sampling", "price", "template", "terms")]
    return pa.schema([*own, *shared, ("more", text)])


def _row(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What has no column of its own stands in `more`, as JSON."""
    more = {name: value for name, value in row.items() if name not in names}
    return {**row, "more": json.dumps(more, sort_keys=True, ensure_ascii=False) if more else None}
