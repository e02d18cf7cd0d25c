"""Trackio: on this machine, where trackio keeps its projects; shown by `trackio show --project tutelage`."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from tutelage.training.trackers import PROJECT, TrackedRun, Tracker

MODULE, EXTRA = "trackio", "trackio"


class _Trackio:
    def __init__(self, run: Any) -> None:  # trackio's
        self._run = run

    def write(self, figures: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def begin(run: TrackedRun) -> Tracker:
    """The run of the same name and id goes on."""
    import trackio

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result of a verb
        opened = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.run_id[:8]}",
            config=dict(run.recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return _Trackio(opened)
