"""What a model folder would make a library do, found by reading it: nothing is imported, unpickled or executed.

`audit` lists every finding (for `tutelage doctor`); `refuse_unsafe` raises the first error, before any library loader
has touched the folder.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import IntegrityError

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
CODE_KEYS = ("auto_map", "model_file", "custom_pipelines", "custom_generate", "configuration_file", "modeling_file")
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
EXACT_REVISION = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MOST_JSON_BYTES = 256 << 20  # the largest tokenizer.json seen is 35 MB
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F16": 16,
    "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of an audit; errors refuse the model, warnings and notes do not."""

    level: Literal["error", "warning", "note"]
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a safetensors file: its type and where its bytes are in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def refuse_unsafe(folder: Path, *, code_revision: str | None = None, weights: bool = True) -> None:
    """IntegrityError for the first thing in `folder` that makes it unsafe or unreadable.

    `code_revision` is the exact commit whose code the user has allowed to run: the only way past REMOTE_CODE.
    Without `weights` the folder is one of a tokenizer and a config alone.
    """
    for finding in audit(folder, code_revision=code_revision, weights=weights):
        if finding.level == "error":
            raise IntegrityError(finding.code, finding.message)


def audit(folder: Path, *, code_revision: str | None = None, weights: bool = True) -> list[Finding]:
    """Every finding about the files of `folder`, the worst kind first."""
    if not folder.is_dir():
        return [_error("MODEL_LOAD", f"{folder} is not a folder; name a model folder, a hub id or a .gguf file")]
    findings = [
        *_links(folder),
        *_json_files(folder, code_revision=code_revision),
        *_indexes(folder),
        *(_weights(folder) if weights else ()),
        *_code(folder, code_revision=code_revision),
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _error(code: str, message: str) -> Finding:
    return Finding(level="error", code=code, message=message)


# --- paths -----------------------------------------------------------------------------------------------------------


def _links(folder: Path) -> Iterator[Finding]:
    """Links that leave the folder; the hub's own cache links into `blobs` beside `snapshots` and may."""
    real = folder.resolve()
    allowed = [real]
    if real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir():
        allowed.append(real.parent.parent / "blobs")
    for path in _files(folder):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            yield _error(
                "PATH_ESCAPE",
                f"{path} is a link to {path.resolve()}, outside the model folder; put the file itself there",
            )


def _files(folder: Path) -> list[Path]:
    """Every file and link under `folder`, sorted; links to folders are listed, not followed."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [Path(place, name) for name in names]
        found += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
    return sorted(found)


def escapes(name: object) -> bool:
    """Whether a file name from a model's index could mean anything but a file of its own folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name or re.match(r"[A-Za-z]:", name):
        return True
    return name.startswith("/") or ".." in name.split("/") or name.startswith("~")


def _indexes(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.index.json")):
        index = _read(path)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict):
            yield _error("MODEL_LOAD", f"{path} has no weight_map; get the model again")
            continue
        for name in sorted({str(name) if isinstance(name, str) else repr(name) for name in shards.values()}):
            if escapes(name):
                yield _error(
                    "PATH_ESCAPE", f"{path} names {name!r}, which is not a file of the folder; refuse this model"
                )
            elif path.name.startswith("model.safetensors") and not (folder / name).is_file():
                yield _error("MODEL_LOAD", f"{path} names {name}, which is not there; get the model again")


# --- configs ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    """The JSON value of a file, or None when it is none or far too long."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _json_files(folder: Path, *, code_revision: str | None) -> Iterator[Finding]:
    config = folder / "config.json"
    if not config.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        yield _error(
            "MODEL_LOAD", f"{folder} has no config.json (found: {found}); expected a Hugging Face model folder"
        )
    for path in sorted(folder.glob("*.json")):
        value = _read(path)
        if value is None:
            yield _error("MODEL_LOAD", f"{path} is not readable JSON; get the model again")
        elif path == config and not (isinstance(value, dict) and isinstance(value.get("model_type"), str)):
            yield _error("MODEL_LOAD", f"{path} has no model_type; expected the config of a Hugging Face model")
        elif (code := _asks_for_code(value)) and not allows_code(code_revision):
            yield _error("REMOTE_CODE", f"{path} asks to import {code}; {_NO_CODE}")


_NO_CODE = "no verb runs the code of a model; use one whose architecture transformers has"


def allows_code(code_revision: str | None) -> bool:
    """Whether the user has named the exact commit whose code may run."""
    return code_revision is not None and EXACT_REVISION.fullmatch(code_revision) is not None


def _asks_for_code(value: object) -> str | None:
    """What a config asks to import, or None; looks into nested sections too."""
    if isinstance(value, Mapping):
        for key in CODE_KEYS:
            if value.get(key):
                return _first_module(value[key])
        for key in KERNEL_KEYS:  # "owner/name" there is downloaded and run
            if "/" in str(value.get(key, "")):
                return str(value[key])[:100]
        return next((code for part in value.values() if (code := _asks_for_code(part))), None)
    if isinstance(value, list) and len(value) < 1000:
        return next((code for part in value if (code := _asks_for_code(part))), None)
    return None


def _first_module(wanted: object) -> str:
    """`modeling_x.py` of {"AutoModel": "modeling_x.Class"}."""
    while isinstance(wanted, (Mapping, list)):
        wanted = next(iter(wanted.values() if isinstance(wanted, Mapping) else wanted), "code")
    name = str(wanted)[:100]
    return name.split("--")[-1].split(".")[0] + ".py" if "." in name and not name.endswith(".py") else name


def _code(folder: Path, *, code_revision: str | None) -> Iterator[Finding]:
    if modules := [path for path in _files(folder) if path.suffix in (".py", ".so", ".pyc", ".dll", ".dylib")]:
        what = "will run as allowed" if allows_code(code_revision) else "is never imported"
        yield Finding(level="note", code="REMOTE_CODE", message=f"{modules[0]} is code; it {what}")


# --- weights ---------------------------------------------------------------------------------------------------------


def is_pickle(path: Path) -> bool:
    """Whether a file is one of the kinds that run code when a library reads them."""
    return path.suffix in PICKLES or path.name == ".metadata"  # the latter: torch's distributed checkpoints


def _weights(folder: Path) -> Iterator[Finding]:
    tensors = sorted(folder.glob("*.safetensors"))
    pickles = [path for path in _files(folder) if is_pickle(path)]
    if not tensors and pickles:
        yield _error("UNSAFE_FILE", f"{pickles[0]} is a pickle, which can run code; convert it to safetensors")
    elif not tensors:
        yield _error("MODEL_LOAD", f"{folder} has no *.safetensors file; expected weights in that format")
    elif pickles:
        yield Finding(level="note", code="UNSAFE_FILE", message=f"{pickles[0]} is a pickle; it is never opened")
    for path in tensors:
        try:
            read_safetensors_header(path)
        except IntegrityError as error:
            yield _error(error.code, error.message)


def read_safetensors_header(path: Path) -> list[TensorEntry]:
    """The tensors of a safetensors file in the order of their bytes; IntegrityError[MODEL_LOAD] when it lies.

    Every length is compared with the size of the file before it is used; the tensors must fill the file without gaps.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise _bad(path, f"claims a header of {length} bytes, the file has {size}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _bad(path, f"has a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _bad(path, "has a header that is no object")
    header.pop("__metadata__", None)
    entries = sorted(
        (_entry(path, n, value, 8 + length) for n, value in header.items()), key=lambda e: (e.start, e.end)
    )
    position = 8 + length
    for entry in entries:
        if entry.start != position:
            raise _bad(path, f"has a gap or an overlap at byte {position}, before tensor '{entry.name[:60]}'")
        position = entry.end
    if position != size:
        raise _bad(path, f"has {size} bytes, its tensors end at {position}")
    return entries


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    contradiction = _bad(path, f"has a tensor '{name[:60]}' whose type, shape and place contradict each other")
    if not isinstance(value, dict):
        raise contradiction
    try:
        dtype, shape, (start, end) = str(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
        n_bits = math.prod(shape) * _DTYPE_BITS[dtype]
        honest = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and n_bits == (end - start) * 8
    except (KeyError, TypeError, ValueError) as error:
        raise contradiction from error
    if not honest:
        raise contradiction
    return TensorEntry(name=name, dtype=dtype, shape=shape, start=data_start + start, end=data_start + end)


def _bad(path: Path, what: str) -> IntegrityError:
    return IntegrityError("MODEL_LOAD", f"{path} {what}; the file is damaged, get it again")
