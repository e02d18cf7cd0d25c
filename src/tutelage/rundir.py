"""The run directory: the only module that knows which file of a run lies where, and when a run may begin or go on.

    RUN/  recipe.yaml       the resolved recipe               provenance.json   run id, data, libraries, command
          metrics.jsonl     what repeats, a line a step       timings.jsonl     what does not: speeds
          checkpoints/      step-000100/ …                    models/NAME/      saved models; student -> models/NAME
          evaluation/       transfer.json, records.*          report.html       finished.json     written last
          bad/              batches that gave no finite number
          tracking/         of trackers: files of their own, and NAME.sent, what they were told

`provenance.json` is written first and marks the folder as ours; with `recipe.yaml` the run exists; `finished.json`
closes it.  A folder that holds anything else is never written to, and `--force` removes only what is in this list.
"""

import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from tutelage import console, io, reading
from tutelage.errors import ConfigError, IntegrityError
from tutelage.recipe import load_recipe
from tutelage.recipe.text import dump

State: TypeAlias = Literal["absent", "unfinished", "finished"]
Kind: TypeAlias = Literal["new", "resumed", "nothing_to_do"]

# The sections of `provenance` that a resumed run must find unchanged; the others only tell the story of the run.
MUST_MATCH = ("data", "tokenizer", "template", "teacher", "students", "libraries", "compute", "world_size")
FORMAT_VERSION = 1
START_OVER = "start over with --force, or choose another --run-dir"  # where weights cannot serve
_RUN = "run"  # our own section of provenance.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How a run begins: `kind` says whether to train from the start, to go on, or that all is done."""

    run: "RunDirectory"
    run_id: str
    kind: Kind
    source: "RunDirectory | None" = None  # of a fork: the run whose weights this one starts from


def what_is_in(folder: Path) -> str:
    """What of ours a folder holds that is no run, with the way on; "" for anything else."""
    pages = [folder / f"{name}.html" for name in ("comparison", "sweep")]
    if page := next((page for page in pages if page.is_file()), None):
        return f"is a comparison: its page is {page}, its runs are the folders in it"
    if (folder / "journal.jnl").is_file():
        return f"holds answers: tutelage status {folder}"
    if (folder / "shards").is_dir():
        return f"is a teacher cache: tutelage cache inspect {folder}"
    return ""


class RunDirectory:
    """One run on the disk.  Paths may be asked at any time; what writes needs `lock` to be held."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.provenance_path = self.path / "provenance.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.timings_path = self.path / "timings.jsonl"
        self.finished_path = self.path / "finished.json"
        self.checkpoints = self.path / "checkpoints"
        self.models = self.path / "models"
        self.student = self.path / "student"
        self.evaluation = self.path / "evaluation"
        self.tensorboard = self.path / "tensorboard"
        self.tracking = self.path / "tracking"
        self.bad = self.path / "bad"
        self.report_path = self.path / "report.html"
        self._lock_path = self.path / ".lock"
        self._owner_path = self.path / ".owner.json"

    def __str__(self) -> str:
        return str(self.path)

    def model(self, name: str) -> Path:
        """The folder of one saved model."""
        return self.models / name

    def choose_student(self, name: str) -> None:
        """Lets `student` point to the saved model `name`."""
        io.symlink(self.student, f"{self.models.name}/{name}")

    # --- beginning and end ----------------------------------------------------------------------------------------

    def state(self) -> State:
        """Whether a run is here, and whether it was finished."""
        if not (self.provenance_path.exists() and self.recipe_path.exists()):
            return "absent"
        return "finished" if self.finished_path.exists() else "unfinished"

    @property
    def run_id(self) -> str:
        """The id of the run that is here; it ties checkpoints to their run."""
        return str(self._provenance()[_RUN]["id"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run directory for this process, made if absent; ConfigError[LOCKED] when another one has it.

        The kernel frees the lock of a process that dies in any way; its successor says so with a note.
        """
        io.make_directory(self.path)
        handle = io.take_lock(self._lock_path)
        if handle is None:
            raise ConfigError("LOCKED", f"{self} in use by {self._owner()}; wait, or use another --run-dir")
        try:
            if self._owner_path.exists():
                console.note("LOCKED", f"{self}: taken over from {self._owner()}, which ended without a word")
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            io.write_json(self._owner_path, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            try:
                self._sweep()
                yield
            finally:
                io.remove_file(self._owner_path)
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Removes what killed processes left aside, in each folder of the run; links are not followed."""
        for folder, _, _ in os.walk(self.path):  # from above: what is removed here is not entered
            io.remove_leftovers(Path(folder))

    def _owner(self) -> str:
        try:
            owner = reading.read_json(self._owner_path)
            return f"pid {owner['pid']} on host {owner['host']} since {owner['since']}"
        except (IntegrityError, KeyError, TypeError):
            return "another process"

    def start(
        self,
        recipe: Mapping[str, io.Json],
        provenance: Mapping[str, io.Json],
        *,
        force: bool = False,
        resume: bool = False,
        source: "RunDirectory | None" = None,
        can_fork: bool = True,
    ) -> Started:
        """Begins a run, or lets an unfinished one of an equal recipe go on; the lock must be held.

        ConfigError: EXISTS for a finished run or another recipe, RESUME_MISMATCH when data, tokenizer, libraries …
        (`MUST_MATCH`) have changed since.  `force` removes what is here.  `resume` demands something to go on from.
        `can_fork`: whether a fork of such a recipe is a way on that may be named.
        """
        state = self.state()
        if resume:
            self.require_run("--resume")
        if state == "absent" or force:
            return self._begin(recipe, provenance, source=source)
        self.require_same_recipe(recipe, resume=resume, can_fork=can_fork)
        if state == "finished":
            console.note("NOTHING_TO_DO", f"{self}: run is complete{self._step_text()}")
            return Started(run=self, run_id=self.run_id, kind="nothing_to_do")
        self._require_same_inputs(provenance, can_fork=can_fork)
        console.note("RESUMED", f"{self}: an unfinished run of this recipe goes on")
        return Started(run=self, run_id=self.run_id, kind="resumed", source=self._source())

    def _begin(
        self, recipe: Mapping[str, io.Json], provenance: Mapping[str, io.Json], *, source: "RunDirectory | None"
    ) -> Started:
        assert _RUN not in provenance, f"the section {_RUN!r} of provenance.json is written here"
        self._clear()
        run_id = uuid.uuid4().hex
        forked = {"path": str(source.path.absolute()), "run_id": source.run_id} if source is not None else None
        began = datetime.now(UTC).isoformat(timespec="seconds")
        own: dict[str, io.Json] = {"format": FORMAT_VERSION, "id": run_id, "began_at": began, "forked_from": forked}
        io.write_json(self.provenance_path, {_RUN: own, **provenance})
        io.write_text(self.recipe_path, dump(_plain(recipe)))
        return Started(run=self, run_id=run_id, kind="new", source=source)

    def refuse_strangers(self) -> None:
        """ConfigError[EXISTS] for a folder with other people's files and no run."""
        strangers = self._contents()
        if strangers and not self.provenance_path.exists():
            found = f"holds {sorted(strangers)[0].name}, and no run"
            raise ConfigError("EXISTS", f"{self} {found}; choose another --run-dir (an empty or a new folder)")

    def _contents(self) -> list[Path]:
        found = self.path.iterdir() if self.path.is_dir() else ()
        return [p for p in found if p not in (self._lock_path, self._owner_path)]

    def _clear(self) -> None:
        """Removes an older run, or what is left of one that was being removed; other people's files are refused."""
        self.refuse_strangers()
        if not self._contents():
            return
        self._provenance()
        # In this order: half a removed run must look neither finished nor like one that can go on.
        for path in (self.finished_path, self.recipe_path, self.metrics_path, self.timings_path, self.report_path):
            io.remove_file(path)
        trackers = (self.tensorboard, self.tracking)
        for path in (self.checkpoints, self.student, self.models, self.evaluation, *trackers, self.bad):
            io.remove_tree(path)

    def require_same_recipe(self, recipe: Mapping[str, io.Json], *, resume: bool, can_fork: bool = True) -> None:
        """ConfigError[EXISTS] for a finished run (but with `resume`) or another recipe than the one that is here."""
        state = self.state()
        try:
            stored = yaml.safe_load(self.recipe_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise IntegrityError("DATA_READ", f"{self.recipe_path} cannot be read ({error}); use --force") from error
        differences = _differences(_with_new_fields(stored), _plain(recipe))
        if differences and resume and state == "unfinished":
            way = "use --fork to start a new run" if can_fork else START_OVER
            message = f"{'; '.join(differences)}; {way}"
            raise ConfigError("RESUME_MISMATCH", f"{self}: {message}")
        if differences or not (resume or state == "unfinished"):
            what = f"{'a finished' if state == 'finished' else 'an unfinished'} run{self._step_text()}"
            other = f" of another recipe ({'; '.join(differences)})" if differences else ""
            ways = "--force starts over, --fork starts a new run from its weights, or choose another --run-dir"
            ways = ways if can_fork else START_OVER
            raise ConfigError("EXISTS", f"{self} holds {what}{other}; {ways}")

    def _require_same_inputs(self, provenance: Mapping[str, io.Json], *, can_fork: bool) -> None:
        stored, now = self._provenance(), _plain(provenance)
        differences = [d for name in MUST_MATCH for d in _differences(stored.get(name), now.get(name), path=name)]
        if differences:
            way = "use --fork to start a new run from the weights" if can_fork else START_OVER
            message = f"{'; '.join(differences)}; {way}"
            raise ConfigError("RESUME_MISMATCH", f"{self}: {message}")

    def _provenance(self) -> dict[str, Any]:  # JSON from outside, but for our section
        stored = reading.read_json(self.provenance_path)
        try:
            version = stored[_RUN]["format"]
            str(stored[_RUN]["id"])
        except (KeyError, TypeError) as error:
            raise IntegrityError(
                "DATA_READ", f"{self.provenance_path} is not of a run of ours; restore it, or remove the folder"
            ) from error
        if version > FORMAT_VERSION:
            found = f"run format {version}, this tutelage reads up to {FORMAT_VERSION}"
            raise IntegrityError("FORMAT_VERSION", f"{self.provenance_path}: {found}; run: pip install -U tutelage")
        return dict(stored)

    def _source(self) -> "RunDirectory | None":
        forked = self._provenance()[_RUN]["forked_from"]
        return RunDirectory(forked["path"]) if forked else None

    def _step_text(self) -> str:
        if not self.finished_path.exists():
            return ""
        step = reading.read_json(self.finished_path).get("step")
        return f" (step {step})" if step is not None else ""

    def require_run(self, flag: str) -> None:
        """ConfigError[CONFIG] when there is no run here for `flag` to go on from."""
        if self.state() == "absent":
            raise ConfigError("CONFIG", f"{flag}: {self} holds no run to go on from; leave {flag} out to begin one")

    def fork_target(self) -> "RunDirectory":
        """Where a fork of this run goes: the first free name of NAME-fork-1, NAME-fork-2, … beside it."""
        self.require_run("--fork")
        number = 1
        while (target := self.path.with_name(f"{self.path.name}-fork-{number}")).exists():
            number += 1
        return RunDirectory(target)

    def finish(self, summary: Mapping[str, io.Json]) -> None:
        """Closes the run: `summary` (with its last `step`) becomes finished.json; call it when all else is written."""
        self.sync_metrics()
        io.write_json(self.finished_path, dict(summary))

    # --- metrics ----------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, io.Json]) -> None:
        """Adds a line to metrics.jsonl: flat keys with units, and `step`; only what a repeated run repeats."""
        assert "step" in row, "a line without a step cannot be rewound"
        io.append_line(self.metrics_path, _json_line(row))

    def append_timings(self, row: Mapping[str, io.Json]) -> None:
        """Adds a line to timings.jsonl: what a repeated run does not repeat."""
        assert "step" in row, "a line without a step cannot be rewound"
        io.append_line(self.timings_path, _json_line(row))

    def sync_metrics(self) -> None:
        """Makes both files durable: call it before a checkpoint is saved, which promises the lines up to its step."""
        for path in (self.metrics_path, self.timings_path):
            if path.exists():
                io.fsync_file(path)

    def rewind_metrics(self, step: int, *, model: str | None = None) -> None:
        """Drops the lines of later steps and a torn last line: what the lost steps wrote is written again.

        With `model` only lines whose `model` is that name are dropped: each model of a run counts its own steps.
        """
        for path in (self.metrics_path, self.timings_path):
            size = path.stat().st_size if path.exists() else 0
            if n_torn := io.drop_torn_tail(path):
                where = f"{path.name}:{size - n_torn}"
                console.warning("JOURNAL_TAIL", f"dropped {n_torn} torn bytes at {where} (of a step that was lost)")
            lines = _lines(path)
            kept = [line for line in lines if not _is_later(line, path, step=step, model=model)]
            if len(kept) < len(lines):
                io.write_bytes(path, b"".join(kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line is not there yet."""
        return [json.loads(line) for line in _lines(self.metrics_path) if line.endswith(b"\n")]


@contextmanager
def opened(
    path: str | Path,
    recipe: Mapping[str, io.Json],
    provenance: Mapping[str, io.Json],
    *,
    force: bool = False,
    fork: bool = False,
    resume: bool = False,
    can_fork: bool = True,
) -> Iterator[Started]:
    """The run in `path`, locked and started while the body runs; with `fork` a new run beside it."""
    if force + fork + resume > 1:
        raise ConfigError("CONFIG", "--force, --fork and --resume exclude each other; give one of them")
    run = RunDirectory(path)
    if resume:
        run.require_run("--resume")  # before the lock makes the folder
    target = run.fork_target() if fork else run
    with target.lock():
        source = run if fork else None
        yield target.start(recipe, provenance, force=force, resume=resume, source=source, can_fork=can_fork)


def _json_line(row: Mapping[str, io.Json]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _is_later(line: bytes, path: Path, *, step: int, model: str | None) -> bool:
    try:
        row = json.loads(line)
        return int(row["step"]) > step and (model is None or row.get("model") == model)
    except (ValueError, KeyError, TypeError) as error:
        found = f"{path} has a damaged line ({line[:40]!r})"
        raise IntegrityError("CHECKSUM", f"{found}; restore it, or start over with --force") from error


def _plain(value: Any) -> Any:  # any JSON value
    """The value as it is after writing and reading: tuples become lists, keys strings."""
    return json.loads(json.dumps(value, allow_nan=False))


def _with_new_fields(stored: Any) -> Any:
    """A recipe that an earlier version wrote, with the fields that did not exist then.

    Their defaults are what was done before there was a choice: whoever adds a field keeps to that.
    """
    try:
        return _plain(load_recipe(stored).resolved())
    except ConfigError:
        return stored  # no recipe of this version: every field that differs is named


def _differences(old: Any, new: Any, *, path: str = "") -> list[str]:  # any JSON values
    """One entry `path old -> new` for each field that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        prefix = f"{path}." if path else ""
        return [d for name in names for d in _differences(old.get(name), new.get(name), path=f"{prefix}{name}")]
    return [] if old == new else [f"{path} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:  # any JSON value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
