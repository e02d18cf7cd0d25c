"""A GGUF file's header, believed only as far as the file is long.

Every count and length is compared with the bytes that are left *before* anything of that size is made, so a hostile or
cut file costs neither memory nor time: it is IntegrityError[GGUF_BAD] with what was claimed and what is there.

Layout (little-endian): "GGUF", version u32, tensor count u64, key count u64; keys: string, type u32, value; tensors:
string, dimension count u32, dimensions u64 (fastest first), type u32, offset u64; padding to the alignment; data.
"""

import functools
import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

from tutelage.errors import IntegrityError

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | list[Scalar]

_MAGIC, _VERSIONS, _HEADER_BYTES = b"GGUF", (2, 3), 24
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_LEAST_KEY_BYTES = 8 + 4 + 1  # an empty name, a type, one byte
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_MOST_NAME_BYTES = 1 << 16
_MOST_ALIGNMENT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where one tensor lies in the file; `shape` in torch's order (slowest first)."""

    name: str
    shape: tuple[int, ...]
    kind: int  # a GGMLQuantizationType
    start: int  # from the start of the file
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Everything but the weights."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as llama."""
        return str(self.metadata["general.architecture"])


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; IntegrityError[GGUF_BAD] when any part of it cannot be true."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_header(data, path)
    except (OSError, ValueError) as error:  # mmap refuses an empty file with a ValueError
        raise IntegrityError("GGUF_BAD", f"{path} cannot be read ({error}); expected a GGUF file") from error


def parse_header(data: bytes | mmap.mmap, path: Path) -> GgufHeader:
    """The header in `data`, the whole file; `path` is only for messages."""
    reader = _Reader(data, path)
    if data[:4] != _MAGIC:
        reader.refuse(f"starts with {bytes(data[:4])!r}, expected {_MAGIC!r}: not a GGUF file")
    version, n_tensors, n_keys = reader.numbers("IQQ", "the file header", at=4)
    if version not in _VERSIONS:
        reader.refuse(f"claims version {version}; this tutelage reads {' and '.join(map(str, _VERSIONS))}")
    reader.require(n_keys, _LEAST_KEY_BYTES, "keys")
    metadata = _metadata(reader, n_keys)
    reader.require(n_tensors, _LEAST_TENSOR_BYTES, "tensors")
    rows = [_tensor_row(reader, i) for i in range(n_tensors)]
    tensors = tuple(_placed(reader, rows, _alignment(reader, metadata)))
    return GgufHeader(path=path, metadata=metadata, tensors=tensors)


class _Reader:
    """A position in the file that never passes its end."""

    def __init__(self, data: bytes | mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position, self.size = data, path, 0, len(data)

    def refuse(self, what: str) -> NoReturn:
        raise IntegrityError("GGUF_BAD", f"{self.path.name}: {what}; the file is damaged or hostile, get it again")

    def require(self, count: int, least_bytes: int, what: str) -> None:
        """Refuse a count of things that cannot all be in the rest of the file."""
        left = self.size - self.position
        if count * least_bytes > left:
            self.refuse(f"claims {count} {what} at byte {self.position}, {left} bytes are left of {self.size}")

    def numbers(self, layout: str, what: str, *, at: int | None = None) -> tuple[int, ...]:
        start = self.position if at is None else at
        form = "<" + layout
        if start + struct.calcsize(form) > self.size:
            self.refuse(f"ends inside {what} (byte {start} of {self.size})")
        self.position = start + struct.calcsize(form)
        return struct.unpack_from(form, self.data, start)

    def string(self, what: str) -> str:
        (length,) = self.numbers("Q", what)
        self.require(length, 1, f"bytes of {what}")
        raw = self.data[self.position : self.position + length]
        self.position += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what} at byte {self.position - length} is not UTF-8 ({error.reason})")

    def value(self, kind: int, what: str) -> Value:
        if kind == _ARRAY:
            kind, count = self.numbers("IQ", what)
            return self._array(kind, count, what)
        return self._array(kind, 1, what)[0]

    def _array(self, kind: int, count: int, what: str) -> list[Scalar]:
        if kind == _STRING:
            self.require(count, 8, f"strings of {what}")
            return [self.string(what) for _ in range(count)]
        if kind not in _FORMATS:
            self.refuse(f"{what} has type {kind}, expected one of {', '.join(map(str, [*_FORMATS, _STRING]))}")
        self.require(count, struct.calcsize(_FORMATS[kind]), f"numbers of {what}")
        values = self.numbers(f"{count}{_FORMATS[kind]}", what)
        return [bool(v) for v in values] if kind == 7 else list(values)


def _metadata(reader: _Reader, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(n_keys):
        key = reader.string(f"the name of key {index}")
        if len(key) > _MOST_NAME_BYTES or key in metadata:
            reader.refuse(f"key {index} '{key[:60]}' is there twice or longer than {_MOST_NAME_BYTES} bytes")
        (kind,) = reader.numbers("I", f"key '{key[:60]}'")
        metadata[key] = reader.value(kind, f"key '{key[:60]}'")
    if not isinstance(metadata.get("general.architecture"), str):
        reader.refuse("has no general.architecture")
    return metadata


def _alignment(reader: _Reader, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= _MOST_ALIGNMENT or alignment % 8:
        reader.refuse(f"general.alignment is {alignment!r}, expected a multiple of 8")
    return alignment


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _tensor_row(reader: _Reader, index: int) -> _Row:
    name = reader.string(f"the name of tensor {index}")
    (n_dimensions,) = reader.numbers("I", f"tensor {index}")
    if len(name) > _MOST_NAME_BYTES or not 0 < n_dimensions <= _MOST_DIMENSIONS:
        reader.refuse(f"tensor {index} claims {n_dimensions} dimensions, expected 1 to {_MOST_DIMENSIONS}")
    dimensions = reader.numbers(f"{n_dimensions}Q", f"tensor {index}")
    kind, offset = reader.numbers("IQ", f"tensor {index}")
    return _Row(name, tuple(reversed(dimensions)), kind, offset)


def _placed(reader: _Reader, rows: list[_Row], alignment: int) -> list[GgufTensor]:
    """The tensors with their place in the file, every one inside it and none on top of another."""
    data_start = -(-reader.position // alignment) * alignment
    tensors = []
    for index, row in enumerate(rows):
        n_bytes, start = _n_bytes(reader, row, index), data_start + row.offset
        if start + n_bytes > reader.size or row.offset % alignment:
            reader.refuse(
                f"tensor {index} '{row.name[:60]}' claims {n_bytes} bytes at byte {start}, the file has {reader.size}"
            )
        tensors.append(GgufTensor(name=row.name, shape=row.shape, kind=row.kind, start=start, n_bytes=n_bytes))
    in_order = sorted(tensors, key=lambda tensor: tensor.start)
    for before, after in itertools.pairwise(in_order):
        if before.start + before.n_bytes > after.start:
            reader.refuse(f"tensors '{before.name[:60]}' and '{after.name[:60]}' overlap")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        reader.refuse("two tensors have the same name")
    return tensors


def _n_bytes(reader: _Reader, row: _Row, index: int) -> int:
    if row.kind not in _block_sizes():
        reader.refuse(f"tensor {index} '{row.name[:60]}' has the unknown type {row.kind}")
    block, block_bytes = _block_sizes()[row.kind]
    if 0 in row.shape or row.shape[-1] % block:
        reader.refuse(f"tensor {index} '{row.name[:60]}' of shape {row.shape} does not fill blocks of {block}")
    return math.prod(row.shape) // block * block_bytes


@functools.cache
def _block_sizes() -> dict[int, tuple[int, int]]:
    """Weights and bytes of one block, by type."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): (int(n), int(n_bytes)) for kind, (n, n_bytes) in GGML_QUANT_SIZES.items()}
