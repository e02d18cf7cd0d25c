"""manifest.json of a teacher cache: what it holds, who made it, and the checksum of every byte beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from tutelage import io, reading
from tutelage.errors import ConfigError, IntegrityError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"
TABLES = "tables.safetensors"
PROBE = "probe.safetensors"
HEAD = "head.safetensors"
SHARDS = "shards"
HELD_OUT = "held_out"  # a cache of its own, beside the shards
START = "start"  # tokenizer and config of the teacher: what a student's start needs


Part = TypeVar("Part", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherRecord(_Part):
    """The model that was asked, with everything about it that can change a logit."""

    name: str  # as the recipe calls it
    saved_weights: str  # SHA-256 in the dtype it was saved in, see models/fingerprint.py
    weights: str  # SHA-256 as it ran
    dtype: str  # as it ran
    attention: str
    parameters: int
    parameter_bytes: int
    quantize: str | None = None  # how the weights were rounded as they were loaded, see models/quantized.py

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Left out where nothing was rounded: the checksums of older manifests stay."""
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name != "quantize" or value is not None}


class Asked(_Part):
    """What the recipe asked for: two caches with the same answers here, and the same rows, are the same bytes."""

    codec: str
    temperature: float
    draws: int
    bytes_per_token: float | None = None
    error: float | None = None
    fixed: dict[str, JsonValue] = {}
    max_length: int  # rows are documents, or windows of so many tokens of them
    n_vocabulary: int
    tokenizer: str  # fingerprint
    template: str  # fingerprint
    teacher: TeacherRecord


class Shard(_Part):
    """One file of rows, and what is in it."""

    name: str
    sha256: str
    keys_sha256: str  # of the keys alone: they are verified when a cache is opened, the rest when it is first read
    n_rows: int
    n_positions: int  # trained positions; stored once for each draw
    row_bytes: int
    witness_bytes: float  # as far as an entropy code can say
    file_bytes: int
    nll_nats: float  # the teacher's own, summed over the positions


class Member(_Part):
    """One of the caches that a merged cache was made of."""

    weight: float  # all of them sum to 1
    identity: str  # of its manifest
    teacher: TeacherRecord
    held_out: str = ""  # the folder of its held-out rows here; "": it had none


class Manifest(_Part):
    """The whole of manifest.json."""

    format_version: int
    asked: Asked
    settings: dict[str, Any]  # JSON: the codec's own, chosen on a sample
    why: str  # how they were chosen, for people
    files: dict[str, str]  # sha256 of what stands beside the shards
    start: dict[str, str] = {}  # sha256 of the files of START
    members: tuple[Member, ...] = ()  # of a merged cache
    made_with: dict[str, str]  # versions, for the record; they decide nothing
    stores: tuple[str, ...] = ()  # where the tokens of the rows lay on the machine that labelled them
    shards: tuple[Shard, ...] = ()
    sha256_of_this: str = ""

    def checksum(self) -> str:
        """SHA-256 of everything else in the manifest."""
        content = self.model_dump(mode="json", exclude={"sha256_of_this"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def signed(self) -> "Manifest":
        """The same with its own checksum."""
        return self.model_copy(update={"sha256_of_this": self.checksum()})

    def identity(self) -> str:
        """SHA-256 of everything but the rows: it stays when the cache grows."""
        content = self.model_dump(mode="json", include={"format_version", "asked", "settings", "files"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_positions(self) -> int:
        """Trained positions of all shards, each counted once however many draws there are."""
        return sum(shard.n_positions for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the shards for each trained position, all draws, keys and index included."""
        return sum(shard.file_bytes for shard in self.shards) / max(1, self.n_positions)


class Plan(_Part):
    """plan.json while the work goes on: shard `first_shard + n` holds missing rows edges[n]:edges[n + 1] by key."""

    manifest: Manifest  # with the shards that were there before
    rows_sha256: str  # of the keys of all missing rows, sorted
    edges: tuple[int, ...]
    first_shard: int

    @property
    def n_shards(self) -> int:
        """Shards that this plan adds."""
        return len(self.edges) - 1


def read_manifest(path: Path) -> Manifest:
    """The verified manifest of a finished cache.

    Raises ConfigError[CACHE_ABSENT] when there is none, ConfigError[CACHE_UNFINISHED] while it is being written, and
    IntegrityError for a damaged one or one of another format.
    """
    if not (path / MANIFEST).is_file():
        if (path / PLAN).is_file():
            raise ConfigError(
                "CACHE_UNFINISHED", f"{path} is not finished; finish it: tutelage label RECIPE (the recipe it is of)"
            )
        raise ConfigError("CACHE_ABSENT", f"{path} holds no teacher cache; write it first: tutelage label RECIPE")
    content = reading.read_json(path / MANIFEST)
    _require_format(path, content)
    manifest = _validated(Manifest, content, where=path / MANIFEST)
    if manifest.checksum() != manifest.sha256_of_this:
        raise damaged(path, f"{MANIFEST} does not have its own checksum")
    return manifest


def _require_format(path: Path, content: Any) -> None:
    """IntegrityError[FORMAT_VERSION] for a manifest of another format than this one."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        newer = version > FORMAT_VERSION
        what_to_do = "pip install -U tutelage" if newer else "tutelage label RECIPE, with teacher.cache another folder"
        raise IntegrityError(
            "FORMAT_VERSION", f"{path}: cache format {version}, this tutelage reads {FORMAT_VERSION}; run: {what_to_do}"
        )


_OURS = (MANIFEST, PLAN, START, HELD_OUT, SHARDS, TABLES, PROBE, HEAD)


def require_ours(path: Path) -> None:
    """ConfigError[EXISTS] for a file, or a folder with other things in it: a cache is never written among them."""
    if path.is_file():
        raise ConfigError("EXISTS", f"{path} is a file, expected a folder for a teacher cache; name another one")
    others = sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    if others and not any((path / name).exists() for name in _OURS):
        raise ConfigError(
            "EXISTS", f"{path} holds {', '.join(others[:3])} and no teacher cache; name a folder that is empty or new"
        )


def of_part(name: str, n: int) -> str:
    """Of a merged cache, the file that part n kept as `name`: probe-0.safetensors."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{n}.{suffix}"


def remove_cache(path: Path) -> None:
    """Remove a cache, its manifest first; whatever else lies in the folder stays."""
    of_parts = [f"{HELD_OUT}-*", *(of_part(name, 0).replace("0", "*") for name in (PROBE, HEAD))]
    for place in [*(path / name for name in _OURS), *(p for pattern in of_parts for p in sorted(path.glob(pattern)))]:
        io.remove_tree(place)
    if path.is_dir():
        io.remove_leftovers(path)


def read_plan(path: Path) -> Plan | None:
    """The plan of a cache that is being written, None when there is none."""
    if not (path / PLAN).is_file():
        return None
    content = reading.read_json(path / PLAN)
    _require_format(path, content.get("manifest") if isinstance(content, dict) else None)
    return _validated(Plan, content, where=path / PLAN)


def _validated(kind: type[Part], content: Any, *, where: Path) -> Part:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise damaged(where.parent, f"{where.name} is damaged ({error.error_count()} fields)") from error


def damaged(path: Path, what: str) -> IntegrityError:
    """The error for bytes of a cache that are not what its manifest says."""
    return IntegrityError("CHECKSUM", f"{path}: {what}; write it again: rm -r '{path}', then tutelage label RECIPE")


def differences(old: Asked, new: Asked) -> list[str]:
    """`field old -> new` for everything in which two caches would differ."""
    return list(_differing(old.model_dump(mode="json"), new.model_dump(mode="json"), prefix=""))


def _differing(old: Any, new: Any, *, prefix: str) -> list[str]:
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, prefix=f"{prefix}{name}.")
        elif a != b and f"{prefix}{name}" not in _RECORDED:
            found.append(f"{prefix}{name} {_short(a)} -> {_short(b)}")
    return found


_RECORDED = ("teacher.name", "teacher.parameters", "teacher.parameter_bytes")  # the weights' fingerprint says it all


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] + ".." if isinstance(value, str) and len(text) >= 64 else text
