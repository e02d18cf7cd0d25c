"""O4 on the whole loop: a run killed at a file operation, or stopped by a signal, ends in the bits of one that ran."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.instruments import faults
from tutelage.errors import Stopped
from tutelage.losses.schedules import Schedule
from tutelage.losses.terms import Term
from tutelage.rundir import RunDirectory, opened
from tutelage.teachers.live import LiveTeacher
from tutelage.training.fit import FitPlan, Fitted, fit
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer, one_model

V, STEPS = 48, 5
PLAN = FitPlan(n_steps=STEPS, save_every=2, evaluate_every=3, keep=1)


def trainer(during=None) -> Trainer:
    """Dropout, a schedule, an average and two micro-batches a step; `during(step)` runs between the micro-batches."""

    def microbatches(step: int):
        yield tiny.batch(seed=step)
        if during is not None:
            during(step)
        yield tiny.batch(seed=100 + step, rows=1)

    return one_model(
        tiny.gpt2(seed=1, dropout=0.3, layers=1), terms=(Term(kind="divergence", divergence="forward_kl"),),
        teacher=LiveTeacher(tiny.llama(seed=2, layers=1), n_vocabulary=V), microbatches=lambda n: list(microbatches(n)),
        compute=ComputePath(device="cpu", weight_dtype=torch.float64, threads=1), n_vocabulary=V, seed=0,
        optimizer=OptimizerSettings(schedule=Schedule(kind="cosine", start=1e-2, warmup=0.3), n_steps=STEPS, ema=0.8),
    )  # fmt: skip


def run_to_the_end(path: Path, during=None) -> Fitted:
    with opened(path, {"recipe": "tiny"}, {"data": "tiny"}) as started:
        return fit(
            trainer(during), run=started.run, run_id=started.run_id, plan=PLAN, held_out=lambda: [tiny.batch(seed=999)]
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Fitted, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    return run_to_the_end(path), RunDirectory(path).metrics_path.read_bytes()


def assert_the_same(path: Path, expected: tuple[Fitted, bytes]) -> None:
    fitted = run_to_the_end(path)
    assert fitted.step == STEPS
    assert RunDirectory(path).metrics_path.read_bytes() == expected[1]
    ours, theirs = fitted.weights["student"], expected[0].weights["student"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert fitted.progress.best_loss == expected[0].progress.best_loss


def killed_at(n: int, path: Path, expected: tuple[Fitted, bytes]) -> bool:
    """Whether there was an operation n; the run is killed there and finished by the same call."""
    code = faults.in_child(lambda: run_to_the_end(path), faults.die_inside(n))
    if code == 0:
        return False
    assert code == faults.DIED
    assert_the_same(path, expected)
    return True


def test_the_running_loss_of_a_teacher_survives_a_stop(tmp_path):
    """A student whose trust follows it: stopped after its second step and continued, the metrics are the same bytes."""

    def co(during=None) -> Trainer:
        def microbatches(step: int):
            if during is not None:
                during(step)
            return [tiny.batch(seed=0)]  # one text again and again: the teacher soon knows something

        def member(name: str, *terms: Term, seed: int) -> Member:
            settings = OptimizerSettings(schedule=Schedule(start=5e-2), n_steps=STEPS)
            return Member(name=name, model=tiny.llama(seed=seed, layers=1), terms=terms, optimizer=settings)

        soft = Term(kind="divergence", divergence="forward_kl", trust="progress")
        truth = Term(kind="ground_truth")
        return Trainer(
            [member("teacher", truth, seed=1), member("small", soft, truth, seed=2)], teacher=None,
            microbatches=microbatches, n_vocabulary=V, seed=0,
            compute=ComputePath(device="cpu", weight_dtype=torch.float64, threads=1),
        )  # fmt: skip

    def run(name: str, during=None) -> bytes:
        with opened(tmp_path / name, {"recipe": "tiny"}, {"data": "tiny"}) as started:
            fit(co(during), run=started.run, run_id=started.run_id, plan=PLAN, held_out=lambda: [tiny.batch(seed=99)])
        return RunDirectory(tmp_path / name).metrics_path.read_bytes()

    whole = run("whole")
    with pytest.raises(Stopped):
        run("stopped", lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)
    assert run("stopped") == whole


@pytest.mark.parametrize("n", [3, 60, 132, 237, 300, 400])
def test_a_run_killed_here_and_there_ends_in_the_same_bits(n, uninterrupted, tmp_path):
    assert killed_at(n, tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_run_killed_at_every_seventh_file_operation_ends_in_the_same_bits(uninterrupted, tmp_path):
    """Every single one of a save is tried in tests/training/test_checkpoint.py; here the loop around it counts."""
    n = 0
    while killed_at(n, tmp_path / f"run-{n}", uninterrupted):
        n += 7
    assert n > 300


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 2, STEPS - 1])
def test_a_signal_between_two_micro_batches_saves_whole_steps_only(number, step, uninterrupted, tmp_path, capsys):
    def during(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=f"saved step {step + 1}") as stopped:
        run_to_the_end(tmp_path / "run", during)
    assert stopped.value.exit_code == 128 + number
    assert_the_same(tmp_path / "run", uninterrupted)
