"""The figures of a run as they come, given to the trackers that the recipe names: never at the cost of the training.

Each tracker has a thread of its own, so one that is slow or hangs keeps nobody waiting; one that fails is left out from
then on, with one warning.  RUN/tracking/NAME.sent says which rows a tracker has: what a resumed run repeats is not sent
again.
"""

import importlib.util
import json
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tutelage import console, io, plugins
from tutelage.errors import ConfigError
from tutelage.rundir import RunDirectory
from tutelage.training.trackers import TrackedRun

FOLDER = "training/trackers"
PATIENCE_S = 20.0  # for rows that a tracker has not taken yet, at a checkpoint and at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """Figures of one step; `series` is what steps count up in: a model's training, or its held-out losses."""

    series: str
    step: int
    figures: Mapping[str, float]


def require(names: Sequence[str]) -> None:
    """ConfigError[MISSING_EXTRA] for a tracker whose library is not installed."""
    for name in names:
        module = plugins.load(FOLDER, name)
        if importlib.util.find_spec(module.MODULE) is None:
            fix = f'pip install "tutelage[{module.EXTRA}]"'
            raise ConfigError("MISSING_EXTRA", f"training.track: {name} needs {module.MODULE}; run: {fix}")


class Tracking:
    """The trackers of one run; used in `with`, which waits for what is under way."""

    def __init__(self, names: Sequence[str], *, run: RunDirectory, run_id: str) -> None:
        self._channels = [_Channel(name, run=run, run_id=run_id) for name in names]

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *exception: object) -> None:
        for channel in self._channels:
            channel.end()
        self.flush()

    def write(self, row: Mapping[str, io.Json]) -> None:
        """Hands over a line of metrics.jsonl; the figures that are no finite numbers are left out."""
        step, model = row["step"], row["model"]
        assert isinstance(step, int)
        figures = {name: value for name, value in row.items() if isinstance(value, float) and math.isfinite(value)}
        kind = "held_out" if any("/held_out/" in name for name in figures) else "training"
        for channel in self._channels:
            channel.put(_Row(series=f"{model}/{kind}", step=step, figures=figures))

    def flush(self) -> None:
        """Waits until all is taken, but never for long: what was promised by a checkpoint is then not missing."""
        for channel in self._channels:
            channel.wait()


class _Channel:
    """One tracker in its thread, and what it has taken."""

    def __init__(self, name: str, *, run: RunDirectory, run_id: str) -> None:
        self._name, self._module = name, plugins.load(FOLDER, name)
        self._sent_path = run.tracking / f"{name}.sent"
        folder = run.tensorboard if name == "tensorboard" else run.tracking / name
        io.make_directory(folder)
        io.make_directory(run.tracking)
        self._sent = _read_sent(self._sent_path)
        recipe = yaml.safe_load(run.recipe_path.read_text(encoding="utf-8")) if run.recipe_path.exists() else {}
        self._run = TrackedRun(folder=folder.absolute(), name=run.path.absolute().name, run_id=run_id, recipe=recipe)
        self._rows: queue.Queue[_Row | None] = queue.Queue()
        self._failure = ""
        self._is_warned = False
        threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True).start()

    def put(self, row: _Row) -> None:
        self._warn(self._failure)
        if not self._failure and row.step > self._sent.get(row.series, 0):
            self._rows.put(row)

    def end(self) -> None:
        self._rows.put(None)

    def wait(self) -> None:
        with self._rows.all_tasks_done:
            taken = self._rows.all_tasks_done.wait_for(
                lambda: self._failure or not self._rows.unfinished_tasks, timeout=PATIENCE_S
            )
        if not taken:
            self._failure = f"has not taken its figures for {PATIENCE_S:g} s"
        self._warn(self._failure)

    def _warn(self, why: str) -> None:
        if why and not self._is_warned:
            self._is_warned = True
            console.warning("TRACKER", f"{self._name} {why}; it is left out, and the training goes on")

    def _serve(self) -> None:
        try:
            self._serve_until_told()
        except Exception as error:  # whatever a tracker's library raises is its own trouble
            self._failure = self._failure or f"failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            with self._rows.all_tasks_done:
                self._rows.all_tasks_done.notify_all()

    def _serve_until_told(self) -> None:
        tracker = self._module.begin(self._run)
        while (row := self._rows.get()) is not None:
            if self._failure:
                return
            tracker.write(row.figures, step=row.step)
            io.append_line(self._sent_path, json.dumps([row.series, row.step]))
            self._sent[row.series] = row.step
            self._rows.task_done()
        tracker.close()
        self._rows.task_done()


def _read_sent(path: Path) -> dict[str, int]:
    """The last step of each series that a tracker has."""
    io.drop_torn_tail(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {str(series): int(step) for series, step in map(json.loads, lines)}
