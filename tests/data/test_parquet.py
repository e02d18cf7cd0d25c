"""Parquet: the same rows as from JSON lines, and what is said of a file or a value that cannot be read."""

import json

import numpy as np
import pytest

from tests.data.test_places import texts
from tutelage.data import arrow
from tutelage.data.example import Example, Reject
from tutelage.data.sources import SourceSpec, read
from tutelage.errors import IntegrityError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

COLUMNS = {"messages": "chat"}


def test_parquet_rows_are_the_rows_of_json_lines(tmp_path):
    rows = [
        {"chat": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}], "other": n}
        for n in range(700)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=256)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        [i.messages for i in read(SourceSpec(kind=kind, patterns=(str(tmp_path / f"a.{kind}"),), columns=COLUMNS))]
        for kind in ("parquet", "jsonl")
    ]
    assert found[0] == found[1] and len(found[0]) == 700


@pytest.mark.parametrize("columns", [{"text": "text"}, {}])
def test_a_row_is_a_copy_when_an_earlier_one_of_its_file_has_its_id_and_its_content(tmp_path, columns):
    """Rows may share an id (the turns of one chat) or a text; both together is a file that was written twice."""
    rows = [(1, "a"), (1, "b"), (2, "a"), (1, "a"), (None, "c"), (None, "c"), (2, "a")]
    table = [{"id": row_id, "text": text, "n": n} for n, (row_id, text) in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    for kind in ("parquet", "jsonl"):
        found = list(read(SourceSpec(kind=kind, patterns=(str(tmp_path / f"a.{kind}"),), columns=columns)))
        assert [n for n, item in enumerate(found) if isinstance(item, Reject)] == [3, 6], kind


def test_a_column_that_is_not_there_and_a_damaged_parquet_file_are_errors_that_name_what_is_there(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"body": [f"{n:0100}" for n in range(3000)], "n": list(range(3000))})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    with pytest.raises(IntegrityError, match=r"a\.parquet has no column 'text'; it has: body, n; name one"):
        texts("parquet", path, columns={"text": "text"})
    whole = bytearray(path.read_bytes())
    whole[150_000] ^= 1  # a digit of a text: only a checksum can tell
    path.write_bytes(whole)
    with pytest.raises(IntegrityError, match=r"a\.parquet is no Parquet file, or damaged (at its start|after row \d+)"):
        texts("parquet", path, columns={"text": "body"})
    path.write_bytes(whole[:-20])
    with pytest.raises(IntegrityError, match="is no Parquet file"):
        texts("parquet", path, columns={"text": "body"})


def test_a_value_of_parquet_that_python_cannot_hold_is_a_reject_of_its_row_where_it_is_used(tmp_path):
    """A file written elsewhere may have other bytes than UTF-8 in its strings, and dates after the year 9999."""
    path = tmp_path / "a.parquet"
    ends = np.array([0, 9, 12, 20], dtype="<i4")
    letters = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"good text\xff\xfe\xfdmore too")]
    )
    late = pa.array([2**40, 0, 1], type=pa.timestamp("s"))
    pq.write_table(pa.table({"text": letters, "when": late}), path)
    read_as = [
        list(read(SourceSpec(kind="parquet", patterns=(str(path),), columns=columns)))
        for columns in ({"text": "text"}, {"text": "when"}, {})
    ]
    for found in (read_as[0], read_as[2]):  # where all columns are read, too, only those that are used count
        assert [item.text for item in found if isinstance(item, Example)] == ["good text", "more too"]
        (bad,) = [item for item in found if isinstance(item, Reject)]
        assert bad.name == f"{path}:2"
        assert bad.reason.startswith("text must be a string, this is a value that cannot be read ('utf-8' codec")
    assert [item.reason for item in read_as[1] if isinstance(item, Reject)] == [
        "when must be a string, this is a value that cannot be read (date value out of range)",
        *["when must be a string, this is a datetime"] * 2,
    ]


def test_parquet_gives_a_structure_only_the_fields_that_its_own_row_has(tmp_path):
    """Arrow merges the structures of all rows: a tool call would get the arguments of every other one, as null."""
    calls = [{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "add", "arguments": {"a": 1, "b": 2}}]
    rows = [{"id": n, "note": None, "messages": [{"role": "assistant", "tool_calls": [call]}]}
            for n, call in enumerate(calls)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        assert list(arrow.parquet_rows(file, (), name="a.parquet")) == rows
