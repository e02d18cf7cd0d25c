"""Tokenised documents on disk, read through memory maps: larger than memory, read by every verb.

    HOME/data/KEY/  manifest.json      settings, counts, SHA-256 of every file, SHA-256 of itself
                    tokens-00000.bin   n x uint32 ids, then n x uint8 mask of trained tokens; whole rows
                    rows.npy           one record a row, see ROW
                    names.txt          the name of each document, a JSON string a line
                    reject.jsonl       the rows that were left out, and why
KEY is the SHA-256 of the inputs' content, the tokenizer's fingerprint and the settings.  A row is a document or one
window of it; its own key is the SHA-256 of its ids and mask.  Little-endian; not checked: the ids against the inputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from tutelage import reading
from tutelage.data.tokenize import TokenRow
from tutelage.errors import IntegrityError

FORMAT_VERSION = 1
MANIFEST, ROWS, NAMES, REJECTS = "manifest.json", "rows.npy", "names.txt", "reject.jsonl"
ROW = np.dtype(
    [
        ("key", "V32"),  # SHA-256 of the row's ids and mask
        ("document", "V32"),  # Example.document: equal for copies that differ in white space or case
        ("name", "<i8"),  # line of names.txt
        ("shard", "<u4"),
        ("offset", "<i8"),  # of the first token in its shard
        ("length", "<i4"),
        ("n_trained", "<i4"),  # tokens that are trained as a next token: without the first
        ("source", "<u2"),
    ]
)


class Manifest(BaseModel):
    """manifest.json of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    settings: dict[str, Any]  # JSON that only the key depends on
    sources: tuple[str, ...]
    n_examples: int  # with rejects
    n_rejects: int
    n_control_text: int  # documents in which a user wrote what spells a control token
    n_tokens: int
    n_rows: int
    shard_tokens: tuple[int, ...]
    sha256: dict[str, str]  # of each file
    sha256_of_this: str = ""

    def checksum(self) -> str:
        """SHA-256 of everything else in the manifest."""
        content = self.model_dump(mode="json", exclude={"sha256_of_this"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_of(settings: Mapping[str, object]) -> str:
    """The name of the store that these settings make: SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def key_of_row(row: TokenRow) -> bytes:
    """SHA-256 of a row's ids and mask, 32 bytes; both have one entry a token, so the join is unambiguous."""
    return hashlib.sha256(row.ids.astype("<u4").tobytes() + row.loss_mask.astype("u1").tobytes()).digest()


def _view(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A column of 32-byte values as uint8 of shape [n, 32]."""
    return np.frombuffer(np.ascontiguousarray(column).tobytes(), dtype=np.uint8).reshape(-1, 32)


@dataclass(frozen=True)
class Store:
    """An open store: every file was verified when it was opened."""

    path: Path
    manifest: Manifest

    def __len__(self) -> int:
        return self.manifest.n_rows

    @cached_property
    def _rows(self) -> npt.NDArray[Any]:
        return np.load(self.path / ROWS, allow_pickle=False)  # type: ignore[no-any-return]  # numpy says Any

    @cached_property
    def _shards(self) -> tuple[npt.NDArray[np.uint8], ...]:
        numbers = range(len(self.manifest.shard_tokens))
        return tuple(np.memmap(self.path / shard_name(n), dtype=np.uint8, mode="r") for n in numbers)

    @cached_property
    def _index(self) -> tuple[list[int], list[int], list[int]]:
        """Shard, offset and length as plain numbers: a row is then read in a microsecond or two."""
        return self._rows["shard"].tolist(), self._rows["offset"].tolist(), self._rows["length"].tolist()

    def row(self, number: int) -> TokenRow:
        """One row; its arrays are views of the file."""
        shards, offsets, lengths = self._index
        shard, offset, length = shards[number], offsets[number], lengths[number]
        data = self._shards[shard]
        mask_begin = 4 * self.manifest.shard_tokens[shard] + offset
        ids = data[4 * offset : 4 * (offset + length)].view("<u4")
        return TokenRow(ids, data[mask_begin : mask_begin + length].view(np.bool_))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return self._rows["length"].astype(np.int64)

    @cached_property
    def n_trained(self) -> npt.NDArray[np.int64]:
        """Tokens of each row that are trained as a next token (never the first)."""
        return self._rows["n_trained"].astype(np.int64)

    @cached_property
    def keys(self) -> npt.NDArray[np.uint8]:
        """SHA-256 of each row's ids and mask, shape [n, 32]."""
        return _view(self._rows["key"])

    @cached_property
    def documents(self) -> npt.NDArray[np.uint8]:
        """For each row a hash of its document, shape [n, 32], equal for copies but for white space and case."""
        return _view(self._rows["document"])

    @cached_property
    def sources(self) -> npt.NDArray[np.int64]:
        """The source of each row, as its place in `source_names`."""
        return self._rows["source"].astype(np.int64)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources' labels, in the order of the recipe."""
        return self.manifest.sources

    @cached_property
    def _names(self) -> list[str]:
        lines = (self.path / NAMES).read_text(encoding="utf-8").split("\n")
        return [str(json.loads(line)) for line in lines if line]

    def name(self, number: int) -> str:
        """Where the document of a row stood, for people."""
        return self._names[int(self._rows["name"][number])]


def shard_name(number: int) -> str:
    """The file of the n-th shard."""
    return f"tokens-{number:05d}.bin"


def open_store(path: Path) -> Store:
    """The store in a folder, every byte verified; IntegrityError[CHECKSUM] or [FORMAT_VERSION] otherwise."""
    manifest = _manifest(path)
    for name, expected in manifest.sha256.items():
        found = reading.sha256_file(path / name) if (path / name).is_file() else "missing"
        if found != expected:
            raise _damaged(path, f"{name} sha256 {found[:12]}, expected {expected[:12]}")
    return Store(path, manifest)


def _manifest(path: Path) -> Manifest:
    content = reading.read_json(path / MANIFEST)
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        found = f"{path} has store format {version}, this tutelage reads up to {FORMAT_VERSION}"
        raise IntegrityError("FORMAT_VERSION", f"{found}; run: pip install -U tutelage")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise _damaged(path, f"{MANIFEST} is damaged ({error.error_count()} fields)") from error
    if manifest.checksum() != manifest.sha256_of_this:
        raise _damaged(path, f"{MANIFEST} does not have its own checksum")
    return manifest


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError("CHECKSUM", f"{path}: {what}; the store can be made again: rm -r '{path}'")


def array_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def names_bytes(names: Sequence[str]) -> bytes:
    """names.txt."""
    return "".join(json.dumps(name) + "\n" for name in names).encode()
