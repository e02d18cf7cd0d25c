"""Programs that show a run's figures: a file for each, whose name is the name in `training.track`.

Such a file has MODULE (what Python imports), EXTRA (what `pip install "tutelage[EXTRA]"` brings) and
`begin(run) -> Tracker`.  It hears of each figure once: rows that a resumed run repeats are not sent again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tutelage.io import Json

PROJECT = "tutelage"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The run that is shown: a folder for the tracker's files, its id (the same after a resume), its recipe."""

    folder: Path
    name: str
    run_id: str
    recipe: Mapping[str, Json]


class Tracker(Protocol):
    """What a file of this folder gives."""

    def write(self, figures: Mapping[str, float], *, step: int) -> None:
        """The figures of one step of one model, by their names, MODEL/FIGURE."""
        ...

    def close(self) -> None:
        """All is said: write out what is kept."""
        ...
