"""Checkpoints: every part of a run at one step, whole or absent, verified when read.

    step-000100/             made as step-000100.partial, renamed when every byte is durable
        GROUP.safetensors    one file for each group of tensors
        state.json           what is not a tensor
        manifest.json        {"manifest": {...}, "sha256": of the canonical JSON of the former}, written last

The manifest holds the format's version, the run's id, the step, the required parts, size and SHA-256 of each file.
Which checkpoint is the newest is found by reading manifests, never stored.  A name that is taken (a damaged folder,
kept for inspection) is not touched: the new one becomes step-000100-2.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from tutelage import console, io, reading
from tutelage.errors import IntegrityError, ResourceError
from tutelage.tensor_file import pieces, size_in_file

FORMAT, VERSION = "tutelage checkpoint", 1
_MANIFEST, _STATE, _PARTIAL, _TENSORS = "manifest.json", "state.json", ".partial", ".safetensors"
_FOLDER_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")
_SLACK_BYTES = 1 << 20  # headers, manifest, folders

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # never a path


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    sha256: str
    bytes: int


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: str
    version: int
    run_id: str
    step: int
    required: list[str]
    files: dict[FileName, _File]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was saved, every byte verified; tensors are on the CPU."""

    path: Path
    step: int
    run_id: str
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]  # JSON: who saved it knows what is in it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One folder on the disk; without a manifest it is damaged and nobody knows whose it was."""

    path: Path
    step: int
    attempt: int
    manifest: _Manifest | None
    problem: IntegrityError | None


# --- writing ------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    *,
    step: int,
    run_id: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, io.Json],
    required: Sequence[str] = (),
) -> Path:
    """The folder of the new checkpoint, durable when this returns; peak memory is one tensor's copy off its device.

    A failure leaves the older ones as they were, and its error names the newest valid step (DISK_FULL, FSYNC,
    else SAVE_FAILED).  Needs the lock of the run directory.
    """
    missing = set(required) - set(tensors) - set(state)
    assert not missing, f"not given to save: {sorted(missing)}"
    io.make_directory(folder)
    name = f"step-{step:06d}"
    partial = folder / (name + _PARTIAL)
    try:
        _sweep(folder)
        io.require_free_space(folder, sum(size_in_file(group) for group in tensors.values()) + _SLACK_BYTES)
        _write_parts(partial, step=step, run_id=run_id, tensors=tensors, state=state, required=required)
        final = _free_name(folder, name)
        io.commit_directory(partial, final)
    except ResourceError as error:
        _discard(partial)
        raise _save_error(error, folder, name=name, run_id=run_id) from error
    except BaseException:
        _discard(partial)
        raise
    return final


def _write_parts(
    partial: Path,
    *,
    step: int,
    run_id: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, io.Json],
    required: Sequence[str],
) -> None:
    io.make_directory(partial)
    digests = {
        group + _TENSORS: io.write_new(partial / (group + _TENSORS), pieces(tensors[group])) for group in tensors
    }
    state_bytes = json.dumps(state, allow_nan=False).encode()
    digests[_STATE] = io.write_new(partial / _STATE, [state_bytes])
    manifest = _Manifest(
        format=FORMAT,
        version=VERSION,
        run_id=run_id,
        step=step,
        required=list(required),
        files={name: _File(sha256=d.sha256, bytes=d.n_bytes) for name, d in digests.items()},
    )
    body = manifest.model_dump()
    framed = json.dumps({"manifest": body, "sha256": _sha256_of(body)}, indent=1)
    io.write_new(partial / _MANIFEST, [framed.encode()])


def _sha256_of(manifest: object) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sweep(folder: Path) -> None:
    """Removes what a killed save left; only a folder with a manifest under its final name was ever committed."""
    io.remove_leftovers(folder)
    for path in sorted(folder.glob("step-*" + _PARTIAL)):
        io.remove_tree(path)
        console.note("PARTIAL_REMOVED", f"{path.name} removed (never committed)")


def _discard(partial: Path) -> None:
    with suppress(OSError, ResourceError):  # the reason that is already on its way matters more
        io.remove_tree(partial)


def _free_name(folder: Path, name: str) -> Path:
    final, attempt = folder / name, 1
    while final.exists():
        attempt += 1
        final = folder / f"{name}-{attempt}"
    return final


def _save_error(error: ResourceError, folder: Path, *, name: str, run_id: str) -> ResourceError:
    valid = next((e.path.name for e in reversed(_entries(folder, run_id)) if _problem(e) is None), None)
    safe = f"{valid} is the newest valid" if valid else "no checkpoint of this run is valid yet"
    if error.code in ("DISK_FULL", "FSYNC"):
        return ResourceError(error.code, f"{name} not saved: {error.message}; {safe}")
    return ResourceError("SAVE_FAILED", f"{name} not saved: {error.message}; {safe}; rerun the same command to go on")


# --- reading ------------------------------------------------------------------------------------------------------


def load(path: Path, *, required: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint in `path`, or IntegrityError: CKPT_CHECKSUM, FORMAT_VERSION, or CKPT_INCOMPLETE."""
    manifest = _read_manifest(path)
    if problem := _file_problem(path, manifest):
        raise problem
    state: dict[str, Any] = reading.read_json(path / _STATE)
    groups = sorted(name.removesuffix(_TENSORS) for name in manifest.files if name.endswith(_TENSORS))
    missing = sorted({*required, *manifest.required} - set(groups) - set(state))
    if missing:
        raise IntegrityError(
            "CKPT_INCOMPLETE",
            f"{path.name} has no {', '.join(missing)} state; resume from an older step or start anew with --fork",
        )
    tensors = {group: load_file(path / (group + _TENSORS)) for group in groups}
    return Checkpoint(path=path, step=manifest.step, run_id=manifest.run_id, tensors=tensors, state=state)


def newest(folder: Path, *, run_id: str, required: Sequence[str] = (), step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of this run, with `step` the newest of that step; None if it has none.

    A damaged one is passed over for an older good one with a warning; IntegrityError[CHECKSUM] if none is left.
    """
    damaged: list[IntegrityError] = []
    for entry in reversed(_entries(folder, run_id)):
        if step not in (None, entry.step):
            continue
        problem = _problem(entry)
        if problem is None:
            for found in damaged:
                console.warning("CKPT_CHECKSUM", f"{found.message}; using {entry.path.name} instead")
            return load(entry.path, required=required)
        damaged.append(problem)
    if not damaged:
        return None
    if damaged[0].code == "FORMAT_VERSION":
        raise damaged[0]
    listed = ", ".join(found.message for found in damaged)
    raise IntegrityError(
        "CHECKSUM", f"{folder}: no valid checkpoint is left ({listed}); restore one, or start over with --force"
    )


def _entries(folder: Path, run_id: str) -> list[_Entry]:
    """This run's folders and those that nobody can tell whose they are, oldest first; numbers sort as numbers."""
    found = [_entry(path) for path in folder.glob("step-*") if _FOLDER_NAME.fullmatch(path.name) and path.is_dir()]
    own = [e for e in found if e.manifest is None or e.manifest.run_id == run_id]
    return sorted(own, key=lambda e: (e.step, e.attempt))


def _entry(path: Path) -> _Entry:
    match = _FOLDER_NAME.fullmatch(path.name)
    assert match is not None, path
    step, attempt = int(match[1]), int(match[2] or 1)
    try:
        manifest = _read_manifest(path)
    except IntegrityError as problem:
        return _Entry(path=path, step=step, attempt=attempt, manifest=None, problem=problem)
    return _Entry(path=path, step=manifest.step, attempt=attempt, manifest=manifest, problem=None)


def _read_manifest(path: Path) -> _Manifest:
    where = f"{path.name}/{_MANIFEST}"
    try:
        framed = reading.read_json(path / _MANIFEST)
        body, sha256 = framed["manifest"], framed["sha256"]
        version = body["version"]
    except (IntegrityError, KeyError, TypeError) as error:
        raise IntegrityError("CKPT_CHECKSUM", f"{where} is absent or unreadable") from error
    if isinstance(version, int) and version > VERSION:
        message = f"{where}: checkpoint format {version}, this tutelage reads up to {VERSION}"
        raise IntegrityError("FORMAT_VERSION", f"{message}; run: pip install -U tutelage")
    if sha256 != _sha256_of(body):
        raise IntegrityError("CKPT_CHECKSUM", f"{where} sha256 mismatch")
    try:
        return _Manifest.model_validate(body)
    except ValidationError as error:
        raise IntegrityError("CKPT_CHECKSUM", f"{where} is not a manifest of format {VERSION}") from error


def _problem(entry: _Entry) -> IntegrityError | None:
    """What is wrong with a folder after reading every byte; None when it is good."""
    return _file_problem(entry.path, entry.manifest) if entry.manifest is not None else entry.problem


def _file_problem(path: Path, manifest: _Manifest) -> IntegrityError | None:
    for name, file in manifest.files.items():
        where = f"{path.name}/{name}"
        try:
            n_bytes, sha256 = (path / name).stat().st_size, reading.sha256_file(path / name)
        except (OSError, ResourceError) as error:
            return IntegrityError("CKPT_CHECKSUM", f"{where} is absent or unreadable ({error})")
        if n_bytes != file.bytes:
            return IntegrityError("CKPT_CHECKSUM", f"{where} has {n_bytes} of {file.bytes} bytes")
        if sha256 != file.sha256:
            return IntegrityError("CKPT_CHECKSUM", f"{where} sha256 mismatch")
    return None


# --- rotation -----------------------------------------------------------------------------------------------------


def rotate(
    folder: Path, *, run_id: str, keep: int, protect: Collection[int] = (), fresh: Path | None = None
) -> list[int]:
    """Removes this run's checkpoints but the newest `keep` and the steps in `protect`; returns the removed steps.

    Call it after `save` has returned.  At least one checkpoint that stays is read and found good before anything
    goes; `fresh`, which this process has just saved, needs no second reading.  Damaged folders stay for inspection.
    """
    assert keep >= 1, "a run without a checkpoint cannot be resumed"
    own = [e for e in _entries(folder, run_id) if e.manifest is not None and _has_its_sizes(e.path, e.manifest)]
    doomed = [e for e in own[:-keep] if e.step not in protect]
    kept = [e for e in own if e not in doomed]
    if doomed and not any(e.path == fresh or _problem(e) is None for e in reversed(kept)):
        spared = next((e for e in reversed(doomed) if _problem(e) is None), None)
        doomed = [e for e in doomed if e is not spared]
        kept = [e for e in own if e not in doomed]
    for entry in doomed:
        io.remove_tree(entry.path)
    if doomed:
        removed, stay = (", ".join(e.path.name for e in entries) for entries in (doomed, kept))
        console.note("ROTATED", f"removed {removed}; kept {stay}")
    return [e.step for e in doomed]


def _has_its_sizes(path: Path, manifest: _Manifest) -> bool:
    files = manifest.files.items()
    return all((path / name).is_file() and (path / name).stat().st_size == file.bytes for name, file in files)
