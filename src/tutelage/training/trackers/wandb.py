"""Weights & Biases: offline files in RUN/tracking/wandb for `wandb sync`, or sent where WANDB_MODE is online."""

import os
from collections.abc import Mapping
from typing import Any

from tutelage.training.trackers import PROJECT, TrackedRun, Tracker

MODULE, EXTRA = "wandb", "wandb"


class _Wandb:
    def __init__(self, run: Any) -> None:  # wandb's
        self._run = run

    def write(self, figures: Mapping[str, float], *, step: int) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()


def begin(run: TrackedRun) -> Tracker:
    """The run of the same id goes on; its figures stand over `step`, since each model counts its own steps."""
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode != "online":  # else the library reports its own use over the network, offline or not
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=run.run_id,
        resume="allow",
        dir=str(run.folder),
        config=dict(run.recipe),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
    opened.define_metric("*", step_metric="step")
    return _Wandb(opened)
