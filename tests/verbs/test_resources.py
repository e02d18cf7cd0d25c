"""Disk, memory and numbers that give out: one line, the right exit code, and nothing that was saved is lost."""

import errno
import json
import resource
import signal
from pathlib import Path

import pytest

from tests.instruments import faults
from tests.verbs.tiny_runs import assert_same_outcome, call, command_in_fork, recipe, wait
from tutelage.training import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("resources") / "recipe.yaml"
    file.write_text(json.dumps(recipe(base, evaluation={"prompts": []}, training={"save_every": 0.5})))
    return file


@pytest.fixture(scope="module")
def whole(path: Path) -> Path:
    run = path.parent / "whole"
    assert call("train", path, "--run-dir", run)[0] == 0
    return run


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(share, path, whole, tmp_path):
    kinds = ("create", "write", "mkdir")
    with faults.hooked(None):
        seen = faults.operations(lambda: call("train", path, "--run-dir", tmp_path / "count"))
    n = int(share * sum(operation.kind in kinds for operation in seen))
    run = tmp_path / "run"
    with faults.hooked(faults.raise_from(n, errno.ENOSPC, only=kinds)):
        code, out, err = call("train", path, "--run-dir", run)
    assert (code, out) == (6, ""), err
    assert "error[DISK_FULL]" in err.splitlines()[-1]
    assert "rerun the same command" in err
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 0, err
    assert_same_outcome(run, whole)


def test_a_limit_that_other_libraries_meet_is_a_full_disk_too(path, whole, tmp_path):
    """transformers writes the student's folder: no operation of ours is there to fail."""
    run, log = tmp_path / "run", tmp_path / "log"
    size = (whole / "checkpoints/student/step-000004/student.weights.safetensors").stat().st_size

    def before():
        from tutelage import io

        def limit(operation):
            if "step-000004" in str(operation.path) and operation.kind == "rename":
                resource.setrlimit(resource.RLIMIT_FSIZE, (size - 2000, size - 2000))

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else it ends the process
        io.FAULTS = limit

    code = wait(command_in_fork("train", path, "--run-dir", run, log=log, before=before))
    last = [line for line in log.read_text().splitlines() if line.startswith("error")]
    assert (code, len(last)) == (6, 1), log.read_text()
    assert last[0].startswith(f"error[DISK_FULL]: no space left to write {run}/models/student (EFBIG)")
    assert call("train", path, "--run-dir", run)[0] == 0
    assert_same_outcome(run, whole)


def test_a_number_that_is_not_finite_stops_the_run_before_the_update(path, tmp_path):
    run = tmp_path / "run"
    fields = ["training.learning_rate=1e30", "training.warmup=0", "training.save_every=64", "training.steps=9"]
    code, out, err = call("train", path, "--run-dir", run, *fields)
    assert (code, out) == (7, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("error[NONFINITE]: ")
    (dump,) = (run / "bad").iterdir()
    assert str(dump) in last
    step = int(dump.stem.split("-")[1])
    assert step >= 1
    batch = json.loads(dump.read_text())
    assert len(batch["rows"]) == 2
    assert len(batch["token_ids"]) == 2
    run_id = json.loads((run / "provenance.json").read_text())["run"]["id"]
    found = checkpoint.newest(run / "checkpoints/student", run_id=run_id, required=("student.weights",))
    assert found.step == step
    assert all(value.isfinite().all() for value in found.tensors["student.weights"].values())
    assert not (run / "student").exists()
    before = {file: file.read_bytes() for file in run.rglob("*.safetensors")}
    assert call("train", path, "--run-dir", run, *fields)[0] == 7
    assert {file: file.read_bytes() for file in run.rglob("*.safetensors")} == before


def test_too_little_memory_ends_in_one_line_that_names_the_micro_batch(base, tmp_path):
    whole = recipe(base, evaluation={"prompts": []}, data={"max_length": 128})
    whole["training"] |= {"batch_tokens": 128 * 4096, "micro_batch": 4096, "steps": 1, "chunk": 524288}
    path, run, log = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "log"
    path.write_text(json.dumps(whole))

    def before():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))

    code = wait(command_in_fork("train", path, "--run-dir", run, log=log, before=before))
    last = log.read_text().splitlines()[-1]
    assert code == 6, log.read_text()
    assert last.startswith("error[MEMORY]: ")
    assert "training.micro_batch=2048 (now 4096)" in last
