"""What pyarrow reads: the rows of Parquet files, and zstd."""

from collections.abc import Iterator, Sequence
from io import BufferedReader
from types import ModuleType
from typing import Any, BinaryIO, cast

from tutelage.data.values import Unreadable
from tutelage.errors import ConfigError, IntegrityError

BATCH_ROWS = 256  # in memory as Python objects
N_NAMED = 12  # columns of a file that lacks one
_CANNOT_HOLD = (ValueError, OverflowError, NotImplementedError)  # Arrow's own errors are kinds of these
MOST_REASON = 200  # characters of what the library says


def require_pyarrow(what: str) -> ModuleType:
    """The library; ConfigError[MISSING_EXTRA] that says what needs it and what to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "MISSING_EXTRA", f'{what} needs pyarrow, which is not here; run: pip install "tutelage[parquet]"'
        ) from error
    return pyarrow  # type: ignore[no-any-return]  # it has no types


def unpacked_zstd(raw: BinaryIO) -> BinaryIO:
    """The bytes of a zstd file, of as many frames as it has."""
    pa = require_pyarrow("a .zst file")
    stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return cast(BinaryIO, BufferedReader(stream, 1 << 18))


def parquet_rows(
    file: BinaryIO, columns: Sequence[str], *, name: str, also: Sequence[str] = ()
) -> Iterator[dict[str, object]]:
    """The rows of a Parquet file, of these columns or, when there are none, of all; checksums are compared.

    The columns `also` are read where the file has them.

    IntegrityError[DATA_READ] for a file that is none or damaged, and for a column that it does not have.
    """
    pa = require_pyarrow("a Parquet file")
    row = 0
    try:
        table = pa.parquet.ParquetFile(file, page_checksum_verification=True)
        there = table.schema_arrow.names
        _require_columns(there, columns, name=name)
        wanted = list(dict.fromkeys([*columns, *(column for column in also if column in there)])) if columns else None
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
            for values in _rows_of(batch):
                row += 1
                yield {name: _as_written(value) for name, value in values.items()}
    except (pa.ArrowException, OSError) as error:
        where = f"after row {row}" if row else "at its start"
        why = " ".join(str(error).split())[:MOST_REASON]
        found = f"{name} is no Parquet file, or damaged {where} ({why})"
        raise IntegrityError("DATA_READ", f"{found}; copy or download it again") from error


def _rows_of(batch: Any) -> list[dict[str, object]]:
    """The rows of a batch; a value that Python cannot hold (no UTF-8, a date too late) is an Unreadable."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]  # the library has no types
    except _CANNOT_HOLD:
        columns = [[_value_of(scalar) for scalar in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _value_of(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except _CANNOT_HOLD as error:
        return Unreadable(" ".join(str(error).split())[:MOST_REASON])


def _as_written(value: object) -> object:
    """A nested value without the fields that Arrow gives a structure because another row has them."""
    if isinstance(value, dict):
        return {name: _as_written(inner) for name, inner in value.items() if inner is not None}
    return [_as_written(item) for item in value] if isinstance(value, list) else value


def _require_columns(there: Sequence[str], wanted: Sequence[str], *, name: str) -> None:
    lacking = [column for column in wanted if column not in there]
    if lacking:
        shown = ", ".join(there[:N_NAMED]) + (", …" if len(there) > N_NAMED else "")
        raise IntegrityError(
            "DATA_READ",
            f"{name} has no column '{lacking[0]}'; it has: {shown}; name one of them in the source's columns",
        )
