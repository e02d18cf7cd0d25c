"""A2, G5: every state that a power loss can leave holds a correct checkpoint.  Negative controls: M33, M34."""

import tempfile
from pathlib import Path

import pytest

from tests.instruments import faults
from tests.instruments.power_loss import Disk, State, materialise
from tests.instruments.quick_disk import QUICK_DISK
from tests.training.saved import REQUIRED, RUN, newest_step, save
from tutelage import io
from tutelage.errors import IntegrityError
from tutelage.training import checkpoint


def _first_violation(ignore: frozenset[str] = frozenset(), *, only_after: bool = False) -> str | None:
    """Saves and rotates under the power-loss model; the first reachable state that breaks the promise, or None.

    `only_after`: looks only when a save has returned, which is enough to see a missing fsync, and quick.
    """
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        return _Promise(Path(name), ignore, only_after=only_after).first_violation()


class _Promise:
    """After `save` returned: that checkpoint.  While it works: the new or the one before.  Always: only whole ones."""

    def __init__(self, root: Path, ignore: frozenset[str], *, only_after: bool) -> None:
        self.root, self.disk, self.only_after = root, Disk(root, ignore=ignore), only_after
        self.allowed: set[int | None] = {None}
        self.n_states = 0
        self.violation: str | None = None

    def first_violation(self) -> str | None:
        folder = self.root / "checkpoints"
        with faults.hooked(self._hook):
            for step in (9, 10, 11):
                self._allow(self.allowed | {step})
                path = save(folder, step)
                self._allow({step})
                checkpoint.rotate(folder, run_id=RUN, keep=1, fresh=path)
        self._check_all()
        assert self.violation or self.n_states > 100
        return self.violation

    def _allow(self, steps: set[int | None]) -> None:
        self.allowed = steps
        self.disk.forget()
        self._check_all()

    def _hook(self, operation: io.Operation) -> None:
        self.disk(operation)
        if not self.only_after:
            self._check_all()

    def _check_all(self) -> None:
        if self.violation:
            return
        for state in self.disk.new_states():
            self.n_states += 1
            if problem := self._problem(state):
                self.violation = problem
                return

    def _problem(self, state: State) -> str | None:
        with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
            folder = Path(name) / "checkpoints"
            materialise(state, Path(name))
            try:
                for path in folder.glob("step-*"):
                    if path.suffix != ".partial":
                        checkpoint.load(path, required=REQUIRED)
                step = newest_step(folder)
            except IntegrityError as error:
                return str(error)
            return None if step in self.allowed else f"step {step} where {self.allowed} is allowed"


def test_every_state_after_a_power_loss_holds_a_correct_checkpoint() -> None:
    assert _first_violation() is None


@pytest.mark.parametrize("lost", ["fsync", "fsync_directory"])
def test_the_power_loss_oracle_sees_a_missing_fsync(lost: str) -> None:
    """The negative controls M33 and M34: the same log without the fsync of files, or of folders."""
    assert _first_violation(frozenset([lost]), only_after=True) is not None
