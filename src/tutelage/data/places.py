"""Where the bytes of a source lie: a file of this machine, or one behind a URL (`s3://`, `gs://`, `hf://`, …).

What stands behind a URL is read by fsspec as it comes, and never written to this disk.  It is known by what its store
says of the content (a checksum or an entity tag, else size and time): the bytes themselves are not read to be compared.

What is compressed is known by its ending, and unpacked as it is read.
"""

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from tutelage.data import arrow, members
from tutelage.data import patterns as local
from tutelage.errors import ConfigError, IntegrityError, TutelageError
from tutelage.recipe.fields import is_url

BUFFER_BYTES = 1 << 18
_TAGS = ("sha256", "ETag", "etag", "md5Hash", "content_md5", "blob_id")  # of the content, by the store's own word
_TIMES = ("LastModified", "last_modified", "mtime", "modify", "modificationTime", "updated", "created")
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of ours that has its library
_DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
)  # what the libraries call a damaged file, and OSError
_UNPACK: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".bz2": members.unpacked_bz2,
    ".xz": members.unpacked_xz,
    ".zst": arrow.unpacked_zstd,
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL; `version` changes when its content does."""

    url: str
    size: int
    version: str
    system: Any = field(repr=False, compare=False)  # the file system of fsspec that opens it; it has no types

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        path = self.url.partition("?")[0] if self.url.startswith("http") else self.url
        return path.rsplit("/", 1)[-1]

    def open(self, mode: str = "rb") -> BinaryIO:
        """A new reader of its bytes, which fetches them as they are asked for.

        It is buffered here, because the lines of fsspec's own readers know no limit of their length.
        """
        assert mode == "rb", "what lies behind a URL is read only"
        return cast(BinaryIO, BufferedReader(self.system.open(path=self.url, mode="rb"), BUFFER_BYTES))


Place: TypeAlias = Path | RemoteFile


def is_compressed(place: Place) -> bool:
    """Whether a file is unpacked as it is read, by its ending."""
    return Path(place.name).suffix.lower() in _UNPACK


def find(patterns: Sequence[str]) -> tuple[Place, ...]:
    """The files that the patterns name, each once, in the order of the patterns and then of their names."""
    found: dict[str, Place] = {}
    for pattern in patterns:
        matches = _behind(pattern) if is_url(pattern) else local.find([pattern])
        found.update({str(place): place for place in matches if str(place) not in found})
    return tuple(found.values())


def version_of(place: Place) -> str:
    """What changes when the content does, 64 hexadecimal digits: SHA-256 of a local file's bytes."""
    if isinstance(place, RemoteFile):
        return hashlib.sha256(f"{place.url} {place.version}".encode()).hexdigest()
    try:
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(place, error) from error


def stamp_of(place: Place) -> tuple[object, ...]:
    """What is seen at once to have changed: size, and time or version."""
    if isinstance(place, RemoteFile):
        return (place.size, place.version)
    stat = place.stat()
    return (stat.st_size, stat.st_mtime_ns)


# --- reading ---
class Stream:
    """The bytes of one file, unpacked, and how far they were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0  # bytes so far, unpacked
        self.n_lines = 0  # ends of lines so far

    def readline(self, most: int) -> bytes:
        """The next line with its end, or its first `most` bytes; empty at the end."""
        return self._taken(self._file.readline(most))

    def read(self, most: int) -> bytes:
        """The next bytes, at most so many; empty at the end."""
        return self._taken(self._file.read(most))

    def _taken(self, data: bytes) -> bytes:
        self.offset += len(data)
        self.n_lines += data.count(b"\n")
        return data


@contextmanager
def reading(place: Place) -> Iterator[Stream]:
    """The bytes of a file, unpacked as its ending says.

    Raises IntegrityError[TRUNCATED] for a compressed file that was cut short, [DATA_READ] for one that is damaged or
    cannot be read: both say up to which line it went.
    """
    stream: Stream | None = None
    unpack = _UNPACK.get(Path(place.name).suffix.lower())
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(place.open("rb"))
            stream = Stream(stack.enter_context(unpack(raw)) if unpack is not None else raw)
            yield stream
    except TutelageError:
        raise
    except (OSError, *_DAMAGE) as error:
        is_system = isinstance(error, OSError) and error.errno is not None
        if unpack is None or is_system:
            raise _unreadable(place, error) from error
        raise _damaged(place, error, stream) from error
    except Exception as error:  # of the library behind a URL: whatever it calls a refusal or a lost connection
        if not isinstance(place, RemoteFile):
            raise
        raise _unreadable(place, error) from error


def _damaged(place: Place, error: Exception, stream: Stream | None) -> IntegrityError:
    where = f"after line {stream.n_lines}, {stream.offset:,} unpacked bytes" if stream is not None else "at its start"
    is_cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    if is_cut:
        return IntegrityError("TRUNCATED", f"{place} is cut short {where}; copy or download it again")
    return IntegrityError("DATA_READ", f"{place} is damaged {where} ({error}); copy or download it again")


def _unreadable(place: Place, error: Exception) -> IntegrityError:
    why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
    return IntegrityError("DATA_READ", f"{place} cannot be read ({why}); check that it is there and readable")


# --- behind URLs ---
def _behind(pattern: str) -> Iterator[RemoteFile]:
    """The files that a URL names; it may have the patterns of paths."""
    system, protocol = _system(pattern)
    try:
        system.invalidate_cache()
        is_pattern = any(character in pattern for character in "*?[")
        paths = sorted(system.glob(pattern)) if is_pattern else [pattern]
        details = {path: system.info(path) for path in paths}
    except FileNotFoundError:
        details = {}
    except Exception as error:  # the libraries of the stores have errors of their own: no credentials, no connection
        why = f"{type(error).__name__}: {error}"
        fix = "check the address, the credentials in the environment and the connection"
        raise IntegrityError("DATA_READ", f"{pattern} cannot be read ({why}); {fix}") from error
    files = {path: info for path, info in details.items() if info.get("type") != "directory"}
    if not files:
        what = f"is a folder; name its files: {pattern.rstrip('/')}/*" if details else "names no file; check it"
        raise IntegrityError("DATA_READ", f"{pattern} {what}")
    for path, info in files.items():
        url = path if is_url(path) else f"{protocol}://{path}"
        yield RemoteFile(url, int(info.get("size") or 0), _version(info) or _digest(system, url), system)


def _system(pattern: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and its protocol."""
    from fsspec.core import url_to_fs

    protocol = pattern.split("://", 1)[0]
    if "@" in pattern.split("://", 1)[1].split("/", 1)[0] and protocol != "hf":
        shown = f"{protocol}://…@…"
        raise ConfigError(
            "KEY_IN_CONFIG", f"{shown} holds credentials; leave them out, and set them in the environment"
        )
    try:
        return url_to_fs(pattern)[0], protocol
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f'pip install "tutelage[{extra}]"' if extra else f"its library ({error})"
        raise ConfigError("MISSING_EXTRA", f"{pattern} needs {fix}") from error
    except ValueError as error:
        raise ConfigError(
            "CONFIG", f"{pattern}: {error}; expected a path, or a URL that fsspec knows, s3://…"
        ) from error


def _digest(system: Any, url: str) -> str:
    """The SHA-256 of a file of which its store tells neither time nor checksum: it is read for it."""
    with system.open(path=url, mode="rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(BUFFER_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _version(info: dict[str, Any]) -> str | None:
    """What a store says of a file's content, else its size and time; None where it tells neither."""
    lfs = info.get("lfs") or {}
    tags = [lfs.get("sha256"), *(info.get(name) for name in _TAGS)]
    tag = next((str(value) for value in tags if value), None)
    times = [str(info[name]) for name in _TIMES if info.get(name) is not None]
    return f"{info.get('size')} {tag or times[0]}" if tag or times else None
