"""The command killed, stopped and repeated: the same bits at the end, and nothing that was finished is touched."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import tutelage
from tests.instruments import faults
from tests.verbs.tiny_runs import (
    COMMAND,
    assert_same_outcome,
    call,
    command_in_fork,
    outcome,
    recipe,
    wait,
    written,
)

FIELDS = {
    "control": True,
    "training": {"steps": 6, "evaluate_every": 0.34, "ema": 0.9, "keep": 2},
    "evaluation": {"out_of_domain": [{"jsonl": "other.jsonl"}]},
}


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    """A recipe with everything that a resume has to bring back: control, average, best step, two evaluation sets."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "other.jsonl").write_text(
        "".join(json.dumps({"text": f"number {i} of {i + 7}"}) + "\n" for i in range(5))
    )
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe(base, **FIELDS)))
    return file


@pytest.fixture(scope="module")
def whole(path: Path) -> Path:
    """The run that nobody interrupted."""
    return tutelage.train(path, run_dir=path.parent / "whole").path


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_files(path, whole, tmp_path):
    draw, run = random.Random(7), tmp_path / "run"
    killed = 0
    for attempt in range(12):
        pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / f"log-{attempt}")
        time.sleep(draw.uniform(0.05, 1.2))
        os.kill(pid, signal.SIGKILL)
        killed += wait(pid) == -signal.SIGKILL
        if (run / "finished.json").exists():
            break
    assert killed >= 2
    if not (run / "finished.json").exists():
        assert call("train", path, "--run-dir", run)[0] == 0
    assert_same_outcome(run, whole)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_a_run_is_continued_by_the_same_command(path, whole, tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen(
        [*COMMAND, "train", str(path), "--run-dir", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _until(lambda: any(run.glob("checkpoints/student/step-000002")))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    code, out, err = call("train", path, "--run-dir", run, "--resume")
    assert (code, out) == (0, f"{run}\n"), err
    assert "note[LOCKED]" in err  # the lock of the dead process was taken over
    assert "note[RESUMED]: the student goes on from step" in err
    assert_same_outcome(run, whole)


PLACES = {
    "the control's training": lambda operation: "checkpoints/control/step-000004.partial" in str(operation.path),
    "the final evaluation": lambda operation: "records.jsonl" in str(operation.path),
    "the report": lambda operation: "report.html" in str(operation.path),
    "the evaluation's records": lambda operation: operation.kind == "fsync" and "records.jsonl" in str(operation.path),
    "the last file": lambda operation: "finished.json" in str(operation.path),
    "the student's folder": lambda operation: "models/student" in str(operation.path),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_in_each_of_its_phases_ends_in_the_same_files(place, path, whole, tmp_path):
    run = tmp_path / "run"

    def die_there(operation):
        if PLACES[place](operation):
            os.kill(os.getpid(), signal.SIGKILL)

    def train_under_it():
        from tutelage import io

        io.FAULTS = die_there

    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=train_under_it)
    assert wait(pid) == -signal.SIGKILL
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 0, err
    assert_same_outcome(run, whole)


@pytest.mark.slow
def test_a_run_killed_while_it_replaces_a_saved_model_ends_in_the_same_files(path, whole, tmp_path):
    run = tmp_path / "run"

    def die_at(wanted):
        def before():
            from tutelage import io

            def die_there(operation):
                if wanted(operation):
                    os.kill(os.getpid(), signal.SIGKILL)

            io.FAULTS = die_there

        pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=before)
        assert wait(pid) == -signal.SIGKILL

    die_at(lambda o: "checkpoints/control/step-000002.partial" in str(o.path))  # the student's folder is there
    die_at(lambda o: o.kind == "unlink" and "models/.student." in str(o.path))  # and half of it is removed
    assert list((run / "models").glob(".student.*.tmp"))
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 0, err
    assert_same_outcome(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["step", "evaluation"])
def test_a_signal_gives_one_line_its_exit_code_and_a_run_that_goes_on(number, place, path, whole, tmp_path):
    run = tmp_path / "run"
    named = "metrics.jsonl" if place == "step" else "records.jsonl"
    sent = []

    def send(operation):
        if named in str(operation.path) and not sent:
            sent.append(os.kill(os.getpid(), number))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with faults.hooked(send):
            code, out, err = call("train", path, "--run-dir", run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (128 + number, "")
    assert "note[STOPPED]: " in err.splitlines()[-1]
    assert "rerun the same command to continue" in err.splitlines()[-1]
    assert call("train", path, "--run-dir", run)[0] == 0
    assert_same_outcome(run, whole)


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_the_run_goes_on(path, whole, tmp_path):
    run = tmp_path / "run"

    def twice():
        from tutelage import io

        def send(operation):
            if "metrics.jsonl" in str(operation.path):
                os.kill(os.getpid(), signal.SIGTERM)

        io.FAULTS = send

    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=twice)
    assert wait(pid) == -signal.SIGTERM
    assert call("train", path, "--run-dir", run)[0] == 0
    assert_same_outcome(run, whole)


def test_a_finished_run_is_left_alone(finished, base):
    before = outcome(finished.path)
    path = written(base, control=True, evaluation={"prompts": ["the cat"]})
    code, out, err = call("train", path, "--run-dir", finished.path)
    assert (code, out) == (2, "")
    assert err == (
        f"error[EXISTS]: {finished.path} holds a finished run (step 4); --force starts over, --fork starts a new run "
        "from its weights, or choose another --run-dir\n"
    )
    code, out, err = call("train", path, "--run-dir", finished.path, "training.seed=1", "training.learning_rate=0.5")
    assert code == 2
    assert "of another recipe (training.learning_rate 0.01 -> 0.5; training.seed 0 -> 1)" in err
    code, out, err = call("train", path, "--run-dir", finished.path, "--resume")
    assert (code, out) == (0, f"{finished.path}\n")
    assert "note[NOTHING_TO_DO]" in err
    assert outcome(finished.path) == before


@pytest.mark.slow
def test_resume_needs_a_run_force_starts_over_and_fork_starts_beside_from_its_weights(base, tmp_path):
    path, run = written(base), tmp_path / "run"
    code, _, err = call("train", path, "--run-dir", run, "--resume")
    assert code == 2
    assert "--resume" in err
    assert not run.exists()
    assert call("train", path, "--run-dir", run)[0] == 0
    first = outcome(run)
    (run / "bad").mkdir()
    (run / "bad" / "step-1.json").write_text("{}")
    assert call("train", path, "--run-dir", run, "--force")[0] == 0
    assert outcome(run) == first
    code, out, err = call("train", path, "--run-dir", run, "--fork")
    fork = Path(str(run) + "-fork-1")
    assert (code, out) == (0, f"{fork}\n"), err
    assert outcome(run) == first
    numbers = [tutelage.evaluate(r).transfer.json()["sets"]["held_out"]["estimates"] for r in (run, fork)]
    assert numbers[1]["student_before"] == numbers[0]["student"]
    assert tutelage.evaluate(fork, force=True).transfer.json()["sets"]["held_out"]["estimates"] == numbers[1]


@pytest.mark.slow
def test_a_fork_that_was_killed_goes_on_though_its_source_has_gone(base, tmp_path):
    path, run = written(base, training={"ema": 0.5}), tmp_path / "run"
    tutelage.train(path, run_dir=run)
    whole = tutelage.train(path, run_dir=run, fork=True).path

    def die_there(operation):
        if "student/step-000002.partial" in str(operation.path):
            os.kill(os.getpid(), signal.SIGKILL)

    def before():
        from tutelage import io

        io.FAULTS = die_there

    pid = command_in_fork("train", path, "--run-dir", run, "--fork", log=tmp_path / "log", before=before)
    assert wait(pid) == -signal.SIGKILL
    run.rename(tmp_path / "elsewhere")
    code, _, err = call("train", path, "--run-dir", f"{run}-fork-2")
    assert code == 0, err
    assert_same_outcome(tmp_path / "run-fork-2", whole)


@pytest.mark.slow
def test_another_text_in_the_data_is_named_and_refused(base, tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(8):
        (tmp_path / "corpus" / f"{i}.txt").write_text((base / "corpus" / f"{i}.txt").read_text())
    data = {"sources": [{"text": str(tmp_path / "corpus/*.txt")}]}
    path, run = written(base, data=data), tmp_path / "run"

    def die_there(operation):
        if "finished.json" in str(operation.path):
            raise KeyboardInterrupt

    with faults.hooked(die_there):
        assert call("train", path, "--run-dir", run)[0] == 130
    before = {file: file.read_bytes() for file in run.rglob("*.safetensors")}
    (tmp_path / "corpus" / "3.txt").write_text("the cat changed its mind.")
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 2
    assert "error[RESUME_MISMATCH]" in err
    assert "data.store" in err
    assert "--fork" in err
    assert {file: file.read_bytes() for file in run.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_two_processes_on_one_folder_one_is_told_who_has_it(path, whole, tmp_path):
    run = tmp_path / "run"

    def before():
        from tutelage import io

        def wait_there(operation):
            while "finished.json" in str(operation.path) and not (tmp_path / "go").exists():
                time.sleep(0.02)

        io.FAULTS = wait_there

    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=before)
    _until(lambda: (run / "report.html").exists())
    code, out, err = call("train", path, "--run-dir", run)
    (tmp_path / "go").touch()
    assert (code, out) == (2, "")
    assert f"error[LOCKED]: {run} in use by pid {pid} on host" in err
    assert wait(pid) == 0
    assert_same_outcome(run, whole)


def _until(condition, *, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
