"""TensorBoard: event files in RUN/tensorboard, shown by `tensorboard --logdir RUN`."""

from collections.abc import Mapping
from typing import Any

from tutelage.training.trackers import TrackedRun, Tracker

MODULE, EXTRA = "tensorboard", "tensorboard"


class _TensorBoard:
    def __init__(self, writer: Any) -> None:  # torch's, which has no types
        self._writer = writer

    def write(self, figures: Mapping[str, float], *, step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def begin(run: TrackedRun) -> Tracker:
    """A further event file of the run; the files of one folder are one series."""
    from torch.utils.tensorboard import SummaryWriter

    return _TensorBoard(SummaryWriter(str(run.folder)))
