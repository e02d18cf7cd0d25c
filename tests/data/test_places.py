"""Sources that are compressed, behind a URL or on the hub: the same documents as from plain files."""

import bz2
import gzip
import json
import lzma
import os
import sys
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from tests.instruments.hub import COMMIT, Hub
from tutelage.data import hub, members, places
from tutelage.data.example import Example, Reject
from tutelage.data.sources import SourceSpec, content, input_files, read
from tutelage.errors import ConfigError, IntegrityError, RemoteError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

LINES = "".join(json.dumps({"text": f"document {n} " + "word " * n}) + "\n" for n in range(1, 300)).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def texts(kind: str, *patterns: object, **options: object) -> list[str]:
    spec = SourceSpec(kind=kind, patterns=tuple(map(str, patterns)), **options)  # type: ignore[arg-type]
    found = list(read(spec))
    assert all(isinstance(item, Example) for item in found), [i for i in found if isinstance(i, Reject)][:1]
    return [item.text for item in found if isinstance(item, Example)]


PLAIN = [json.loads(line)["text"] for line in LINES.splitlines()]


@pytest.mark.parametrize("ending", PACK)
def test_compressed_lines_and_texts_are_read_as_plain_ones_also_of_several_members(tmp_path, ending):
    packed = PACK[ending]
    middle = LINES.index(b"\n", len(LINES) // 2) + 1
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed(LINES[:middle]) + packed(LINES[middle:]))
    (tmp_path / f"b.txt{ending}").write_bytes(packed("één\n\ntwee\n".encode()))
    assert texts("jsonl", tmp_path / f"a.jsonl{ending}", columns={"text": "text"}) == PLAIN
    assert texts("text", tmp_path / f"b.txt{ending}") == ["één\n\ntwee\n"]
    assert texts("text", tmp_path / f"b.txt{ending}", separator="\n\n") == ["één", "twee\n"]


@pytest.mark.parametrize("ending", PACK)
def test_a_compressed_file_that_was_cut_is_an_error_with_file_and_line_and_never_fewer_documents(tmp_path, ending):
    path = tmp_path / f"cut.jsonl{ending}"
    packed = PACK[ending](LINES)
    for keep in (len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:keep])
        with pytest.raises(IntegrityError) as caught:
            texts("jsonl", path, columns={"text": "text"})
        assert caught.value.code == "TRUNCATED"
        assert f"{path} is cut short after line " in caught.value.message


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_later_member_is_an_error_and_never_fewer_documents(tmp_path, ending):
    path = tmp_path / f"two.jsonl{ending}"
    first, second = (PACK[ending](LINES[begin : begin + 2000]) for begin in (0, 2000))
    whole = LINES[:4000].count(b"\n") + 1
    n_errors, n_places = 0, len(second)
    if ending == ".zst":
        n_places = 4  # its magic: pyarrow writes no checksums, so that a damaged letter is another letter
    for place in range(n_places):
        damaged = bytearray(second)
        damaged[place] ^= 0x55
        path.write_bytes(first + damaged)
        try:
            found = list(read(SourceSpec(kind="jsonl", patterns=(str(path),), columns={"text": "text"})))
        except IntegrityError as error:
            assert error.code in ("DATA_READ", "TRUNCATED")
            n_errors += 1
        else:
            assert len(found) == whole
    assert n_errors > n_places // 2


@pytest.mark.parametrize("ending", PACK)
def test_what_stands_behind_the_last_member_is_an_error_unless_it_is_padding(tmp_path, ending):
    path = tmp_path / f"more.jsonl{ending}"
    for rest in (b"garbage that is no stream of any kind", PACK[ending](b"more\n")[:3]):
        path.write_bytes(PACK[ending](LINES) + rest)
        with pytest.raises(IntegrityError, match=r"is (damaged|cut short) after line \d+, "):
            texts("jsonl", path, columns={"text": "text"})


def test_xz_streams_may_be_padded_by_fours_of_zeros_and_by_nothing_else(tmp_path):
    path = tmp_path / "padded.jsonl.xz"
    middle = LINES.index(b"\n", len(LINES) // 2) + 1
    first, second = lzma.compress(LINES[:middle]), lzma.compress(LINES[middle:])
    for n_zeros in (4, 200_000):
        path.write_bytes(first + b"\0" * n_zeros + second + b"\0" * n_zeros)
        assert texts("jsonl", path, columns={"text": "text"}) == PLAIN
    path.write_bytes(first + b"\0" * 5 + second)
    with pytest.raises(IntegrityError, match="5 zero bytes behind a stream, expected a multiple of 4"):
        texts("jsonl", path, columns={"text": "text"})


@pytest.mark.parametrize("ending", [".bz2", ".xz"])
def test_a_bomb_is_unpacked_a_piece_at_a_time(ending):
    packed = BytesIO(PACK[ending](b"x" * (64 << 20)))
    unpack = {".bz2": members.unpacked_bz2, ".xz": members.unpacked_xz}[ending]
    tracemalloc.start()
    with unpack(packed) as stream:
        assert stream.read(1000) == b"x" * 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # a decompressor of xz keeps 8 MiB


def test_a_damaged_compressed_file_is_an_error_with_file_and_line(tmp_path):
    path = tmp_path / "bad.jsonl.gz"
    packed = bytearray(gzip.compress(LINES))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(IntegrityError, match=r"bad\.jsonl\.gz is (damaged|cut short) after line \d+, [\d,]+ unpacked"):
        texts("jsonl", path, columns={"text": "text"})
    path.write_bytes(b"this is no gzip file")
    with pytest.raises(IntegrityError, match="is damaged after line 0"):
        texts("jsonl", path, columns={"text": "text"})


def test_a_document_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.data.files.MAX_UNPACKED_BYTES", 3 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"x" * (8 << 20)))
    for separator in ("", "\n\n"):
        with pytest.raises(IntegrityError, match="unpacks to a document of more than 3,145,728 bytes") as caught:
            texts("text", tmp_path / "bomb.txt.gz", separator=separator)
        assert caught.value.code == "ARCHIVE"


# --- behind a URL ---
@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_files_behind_a_url_are_read_as_local_ones_and_known_by_their_version(memory, tmp_path):
    memory.pipe("/bucket/b.jsonl.gz", gzip.compress(LINES))
    memory.pipe("/bucket/a.jsonl", LINES)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": PLAIN}), sink)
    memory.pipe("/bucket/c.parquet", sink.getvalue().to_pybytes())
    assert texts("jsonl", "memory://bucket/*.jsonl*", columns={"text": "text"}) == PLAIN + PLAIN
    assert texts("parquet", "memory://bucket/c.parquet", columns={"text": "text"}) == PLAIN
    spec = SourceSpec(kind="jsonl", patterns=("memory://bucket/a.jsonl",))
    before = content(spec)
    assert before == content(spec)
    memory.pipe("/bucket/a.jsonl", LINES.replace(b"word", b"bird"))
    assert content(spec) != before
    path = tmp_path / "x.txt"
    path.write_text("by file://")
    assert texts("text", f"file://{path}") == ["by file://"]


class Ranged(AbstractFileSystem):
    """As the stores of objects are read: by ranges, with fsspec's own buffered file."""

    protocol = "ranged"

    def info(self, path, **options):
        return {"name": path, "size": len(LINES), "type": "file", "ETag": "1"}

    def _open(self, path, mode="rb", **options):
        return RangedFile(self, path, mode, block_size=1000, size=len(LINES))


class RangedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return LINES[start:end]


def test_a_store_that_is_read_by_ranges_gives_the_same_lines():
    fsspec.register_implementation("ranged", Ranged, clobber=True)
    assert texts("jsonl", "ranged://bucket/a.jsonl", columns={"text": "text"}) == PLAIN


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("memory://bucket/none*.txt", IntegrityError, "names no file"),
        ("memory://bucket/none.txt", IntegrityError, "names no file"),
        ("memory://bucket", IntegrityError, r"is a folder; name its files: memory://bucket/\*"),
        ("nosuch://bucket/a.txt", ConfigError, "expected a path, or a URL that fsspec knows"),
        ("s3://key:secret@bucket/a.txt", ConfigError, "s3://…@… holds credentials"),
    ],
)
def test_a_url_that_names_nothing_readable_is_refused(memory, pattern, error, message):
    memory.pipe("/bucket/a.txt", b"a")
    with pytest.raises(error, match=message) as caught:
        texts("text", pattern)
    assert "secret" not in str(caught.value)


def test_a_url_whose_library_is_not_here_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r'needs pip install "tutelage\[s3\]"') as caught:
        texts("text", "s3://bucket/a.txt")
    assert caught.value.code == "MISSING_EXTRA"


# --- the hub ---
CARD = b"""---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: "data/train-*.parquet"}
  - {split: test, path: ["data/test*"]}
- config_name: other
  data_files: other/*.jsonl
---
# A data set
"""


def parquet(lines: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": lines}), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


DATASETS = {
    "us/set": {
        "README.md": CARD,
        "data/train-00000-of-00002.parquet": parquet(PLAIN[:100]),
        "data/train-00001-of-00002.parquet": parquet(PLAIN[100:]),
        "data/test.jsonl.gz": gzip.compress(LINES),
        "other/a.jsonl": LINES,
    },
    "us/named": {"train.jsonl": LINES, "test.jsonl": b'{"text": "held out"}\n'},
}


@pytest.fixture
def served(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the server is on loopback
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with Hub(DATASETS) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub.files_of.cache_clear()
        yield server
    hub.files_of.cache_clear()


def test_a_split_of_the_hub_is_the_files_that_its_card_or_their_names_say(served):
    columns = {"text": "text"}
    assert texts("hub", "us/set", columns=columns) == PLAIN
    assert texts("hub", "us/set", split="test", columns=columns) == PLAIN
    assert texts("hub", "us/set", subset="other", columns=columns) == PLAIN
    assert texts("hub", "us/named", split="test", columns=columns) == ["held out"]
    paths = input_files([SourceSpec(kind="hub", patterns=("us/set",))])
    assert [path.parts[-3] for path in paths if isinstance(path, Path)] == [COMMIT, COMMIT]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("us/set", {"split": "dev"}, "no split 'dev'; it has: train, test; set split"),
        ("us/set", {"subset": "x"}, "no subset 'x'; set subset to one of main, other"),
        ("us/named", {"split": "dev"}, "no file of split 'dev'; it has: test.jsonl, train.jsonl"),
        ("us/none", {}, "no data set us/none on the hub"),
    ],
)
def test_a_set_subset_or_split_that_is_not_there_is_refused_with_those_that_are(served, name, options, message):
    with pytest.raises(ConfigError, match=message):
        texts("hub", name, **options)


def test_what_was_fetched_is_read_offline_and_a_part_of_it_is_refused(served, monkeypatch):
    columns = {"text": "text"}
    assert texts("hub", "us/set", columns=columns) == PLAIN
    fetched = input_files([SourceSpec(kind="hub", patterns=("us/set",))])
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.files_of.cache_clear()
    assert texts("hub", "us/set", columns=columns) == PLAIN
    os.remove(str(fetched[0]))
    hub.files_of.cache_clear()
    with pytest.raises(RemoteError, match="go online and rerun"):
        texts("hub", "us/set", columns=columns)


def test_a_store_that_tells_neither_time_nor_checksum_is_asked_for_the_bytes(memory):
    """A file of the same size is another file."""
    memory.pipe("/mute/a.txt", b"the cat sat")
    info = {"name": "/mute/a.txt", "size": 11, "type": "file"}
    assert places._version(info) is None
    before = places._digest(memory, "memory://mute/a.txt")
    memory.pipe("/mute/a.txt", b"the dog sat")
    assert places._digest(memory, "memory://mute/a.txt") != before


def test_the_ending_of_an_address_is_that_of_its_path():
    place = places.RemoteFile("https://h/b.jsonl.gz?download=true", 1, "1", None)
    assert place.name == "b.jsonl.gz" and places.is_compressed(place)
