"""The run directory: who may begin, go on or start over; one process at a time; metrics that rewind.  A3 A11 A14 E6."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.instruments import faults
from tests.instruments.quick_disk import QUICK_DISK
from tutelage import io
from tutelage.errors import ConfigError, IntegrityError
from tutelage.recipe import load_recipe
from tutelage.rundir import MUST_MATCH, RunDirectory, opened

RECIPE: dict[str, io.Json] = {
    "teacher": {"model": "a/b", "dtype": "auto"},
    "training": {"learning_rate": 1e-05, "betas": (0.9, 0.95), "early_stop": None},
    "data": {"sources": [{"text": "ä: *.txt"}]},
}
OTHER = RECIPE | {"training": {"learning_rate": 2e-05, "betas": (0.9, 0.95), "early_stop": None}}
PROVENANCE: dict[str, io.Json] = {name: {"sha256": f"8f-{name}"} for name in MUST_MATCH} | {"host": "h1"}


def _run(path: Path, *, finished: bool = False, recipe: dict[str, io.Json] = RECIPE) -> RunDirectory:
    with opened(path, recipe, PROVENANCE) as started:
        started.run.append_metrics({"step": 1, "loss_nats": 0.5})
        io.write_text(started.run.checkpoints / "step-000001" / "manifest.json", "{}")
        if finished:
            started.run.finish({"step": 400})
    return RunDirectory(path)


def _files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# --- beginning, going on, starting over ---------------------------------------------------------------------------


def test_a_run_is_absent_then_unfinished_then_finished(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "demo")
    assert run.state() == "absent"
    with run.lock():
        assert run.state() == "absent"
        started = run.start(RECIPE, PROVENANCE)
        assert (run.state(), started.kind, started.run_id) == ("unfinished", "new", run.run_id)
        run.finish({"step": 3})
        assert run.state() == "finished"


def test_an_unfinished_run_of_an_equal_recipe_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _run(tmp_path / "demo").run_id
    with opened(tmp_path / "demo", RECIPE, PROVENANCE | {"host": "h2"}) as started:
        assert (started.kind, started.run_id) == ("resumed", first)
        assert started.run.metrics() == [{"step": 1, "loss_nats": 0.5}]
    assert capsys.readouterr().err == f"note[RESUMED]: {tmp_path}/demo: an unfinished run of this recipe goes on\n"


@pytest.mark.parametrize(
    ("finished", "recipe", "resume", "code", "words"),
    [
        (
            True,
            RECIPE,
            False,
            "EXISTS",
            "holds a finished run (step 400); --force starts over, --fork starts a new run",
        ),
        (True, OTHER, False, "EXISTS", "a finished run (step 400) of another recipe (training.learning_rate 1e-05 ->"),
        (True, OTHER, True, "EXISTS", "of another recipe"),
        (False, OTHER, False, "EXISTS", "an unfinished run of another recipe (training.learning_rate 1e-05 -> 2e-05)"),
        (False, OTHER, True, "RESUME_MISMATCH", "training.learning_rate 1e-05 -> 2e-05; use --fork"),
    ],
)
def test_another_run_is_never_overwritten(
    finished: bool, recipe: dict[str, io.Json], resume: bool, code: str, words: str, tmp_path: Path
) -> None:
    path = _run(tmp_path / "demo", finished=finished).path
    before = _files(path)
    with pytest.raises(ConfigError) as caught, opened(path, recipe, PROVENANCE, resume=resume):
        pass
    assert caught.value.code == code and words in caught.value.message
    assert _files(path) == before


@pytest.mark.parametrize("name", MUST_MATCH)
@pytest.mark.parametrize("resume", [False, True])
def test_a_changed_input_is_named_when_a_run_would_go_on(name: str, resume: bool, tmp_path: Path) -> None:
    path = _run(tmp_path / "demo").path
    before = _files(path)
    changed = PROVENANCE | {name: {"sha256": "2c"}}
    with pytest.raises(ConfigError) as caught, opened(path, RECIPE, changed, resume=resume):
        pass
    assert caught.value.code == "RESUME_MISMATCH"
    assert f'{name}.sha256 "8f-{name}" -> "2c"; use --fork' in caught.value.message
    assert _files(path) == before


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_a_version_that_lacked_a_field_goes_on_by_the_fields_default(finished: bool, tmp_path: Path) -> None:
    written = {
        "teacher": str(tmp_path / "teacher"), "student": {"layers": 2}, "loss": "forward_kl",
        "data": {"sources": [{"text": "corpus/*.txt"}]}, "training": {"tokens": 10_000},
    }  # fmt: skip
    resolved = load_recipe(written).resolved()
    run = _run(tmp_path / "run", finished=finished, recipe=resolved)
    stored = yaml.safe_load(run.recipe_path.read_text())
    del stored["training"]["compile"]
    run.recipe_path.write_text(yaml.safe_dump(stored))
    with opened(run.path, resolved, PROVENANCE, resume=finished) as started:
        assert started.kind == ("nothing_to_do" if finished else "resumed")
    other = load_recipe({**written, "training": {"tokens": 10_000, "compile": True}}).resolved()
    with (
        pytest.raises(ConfigError, match=r"training\.compile false -> true"),
        opened(run.path, other, PROVENANCE),
    ):
        pass


def test_every_difference_has_its_own_entry(tmp_path: Path) -> None:
    path = _run(tmp_path / "demo").path
    changed = PROVENANCE | {"data": {"rows": 3}, "world_size": 2}
    with pytest.raises(ConfigError) as caught, opened(path, RECIPE, changed):
        pass
    for entry in ('data.sha256 "8f-data" -> null', "data.rows null -> 3", 'world_size {"sha256"'):
        assert entry in caught.value.message


def test_resuming_what_is_complete_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _run(tmp_path / "demo", finished=True).path
    with opened(path, RECIPE, PROVENANCE, resume=True) as started:
        assert started.kind == "nothing_to_do"
    assert capsys.readouterr().err == f"note[NOTHING_TO_DO]: {path}: run is complete (step 400)\n"


@pytest.mark.parametrize("flag", ["resume", "fork"])
def test_going_on_from_nothing_is_refused_and_makes_nothing(flag: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=f"--{flag}: .*holds no run"),
        opened(tmp_path / "demo", RECIPE, PROVENANCE, resume=flag == "resume", fork=flag == "fork"),
    ):
        pass
    assert not os.listdir(tmp_path)


def test_force_starts_over_and_spares_what_is_not_ours(tmp_path: Path) -> None:
    run = _run(tmp_path / "demo", finished=True)
    first = run.run_id
    (run.path / "notes.txt").write_text("mine")
    with opened(run.path, OTHER, PROVENANCE, force=True) as started:
        assert started.kind == "new" and started.run_id != first
        assert run.state() == "unfinished" and run.metrics() == [] and not run.checkpoints.exists()
    assert (run.path / "notes.txt").read_text() == "mine"


def test_a_fork_is_a_new_run_that_knows_its_source(tmp_path: Path) -> None:
    source = _run(tmp_path / "demo", finished=True)
    before = _files(source.path)
    for number in (1, 2):
        with opened(source.path, OTHER, PROVENANCE, fork=True) as started:
            assert started.run.path == tmp_path / f"demo-fork-{number}" and started.kind == "new"
            assert started.source is not None and started.source.path == source.path
    assert _files(source.path) == before
    with opened(tmp_path / "demo-fork-1", OTHER, PROVENANCE) as again:
        assert again.kind == "resumed" and again.source is not None
        assert again.source.path == source.path.absolute()


def test_force_fork_and_resume_exclude_each_other(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="exclude each other"),
        opened(tmp_path, RECIPE, PROVENANCE, force=True, fork=True),
    ):
        pass


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_never_used(force: bool, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"holds recipe\.yaml, and no run") as caught,
        opened(tmp_path, RECIPE, PROVENANCE, force=force),
    ):
        pass
    assert caught.value.code == "EXISTS" and _files(tmp_path).get("recipe.yaml") == b"mine"


@pytest.fixture
def disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        yield Path(name)


def test_a_start_killed_at_any_operation_can_be_repeated(disk: Path) -> None:
    """New, and with --force over a finished run: what is left is the old run, nothing, or the new run."""
    for force in (False, True):
        for n in range(60):
            path = disk / f"{force}-{n}"
            if force:
                _run(path, finished=True)

            def start(path: Path = path, force: bool = force) -> None:
                with opened(path, OTHER, PROVENANCE, force=force):
                    pass

            done = faults.in_child(start, faults.die_at(n)) == 0
            run = RunDirectory(path)
            if run.state() != "absent" and not run.finished_path.exists() and not done:
                assert run.run_id
            with opened(path, OTHER, PROVENANCE, force=force) as started:
                assert started.kind in ("new", "resumed")
                assert force or started.run.metrics() == []
            assert not list(path.glob(".*.tmp"))
            if done:
                break
        else:
            raise AssertionError("it never came to an end")


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "demo")
    stored = json.loads(run.provenance_path.read_text())
    stored["run"]["format"] = 2
    run.provenance_path.write_text(json.dumps(stored))
    with (
        pytest.raises(IntegrityError, match="run format 2, this tutelage reads up to 1") as caught,
        opened(run.path, RECIPE, PROVENANCE),
    ):
        pass
    assert caught.value.code == "FORMAT_VERSION"


def test_everything_in_a_run_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = _run(tmp_path / "runs" / "demo", finished=True).path
    finally:
        os.umask(before)
    for entry in [path, *path.rglob("*")]:
        assert stat.S_IMODE(entry.stat().st_mode) == (0o700 if entry.is_dir() else 0o600), entry


# --- the lock -----------------------------------------------------------------------------------------------------

HOLDER = """
    import sys
    from tutelage.errors import ConfigError
    from tutelage.rundir import RunDirectory
    try:
        with RunDirectory(sys.argv[1]).lock():
            print("held", flush=True)
            sys.stdin.read()
    except ConfigError as error:
        print(error, flush=True)
    print("torch" in sys.modules, flush=True)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    """A process that locks `path` until its stdin is closed, or says why it cannot."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_of_two_processes_exactly_one_gets_the_run(tmp_path: Path) -> None:
    processes = [_holder(tmp_path / "demo") for _ in range(2)]
    deadline_s = time.monotonic() + 60
    while all(p.poll() is None for p in processes) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    loser, holder = sorted(processes, key=lambda p: p.poll() is None)
    assert holder.poll() is None, "both were refused"
    refusal, *rest = loser.communicate()[0].splitlines()
    assert refusal.startswith(f"error[LOCKED]: {tmp_path}/demo in use by ")
    assert f"pid {holder.pid} on host " in refusal or "another process" in refusal  # it may not have signed yet
    held = holder.communicate(timeout=60)[0].splitlines()
    assert held == ["held", *rest] == ["held", "False"], "the run directory imports torch"


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "demo")
    holder = _holder(run.path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    words = rf"in use by pid {holder.pid} on host .* since 20.*; wait, or use another"
    with pytest.raises(ConfigError, match=words), run.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with run.lock():
        assert f"note[LOCKED]: {run}: taken over from pid {holder.pid}" in capsys.readouterr().err
    with run.lock():
        assert capsys.readouterr().err == "", "a clean release leaves nothing to take over"


def test_the_next_process_clears_what_a_killed_one_left_in_any_of_the_runs_folders(tmp_path: Path) -> None:
    run, users = RunDirectory(tmp_path / "demo"), tmp_path / "elsewhere" / ".users.tmp"
    for folder in (run.path, run.models, run.evaluation, run.checkpoints / "student"):
        io.write_text(folder / ".left.1-0.tmp" / "half", "x")  # a folder whose removal was not finished
        io.write_text(folder / ".file.1-1.tmp", "x")
        io.write_text(folder / "whole", "x")
    io.write_text(users, "x")
    (run.path / "link").symlink_to(users.parent)
    with run.lock():
        assert [path for path in run.path.rglob("*.tmp")] == []
    assert users.exists()
    assert len([path for path in run.path.rglob("whole")]) == 4


def test_an_error_inside_releases_the_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "demo")
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    with run.lock():
        pass
    assert capsys.readouterr().err == ""


def test_one_process_cannot_lock_twice(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock():
        words = f"in use by pid {os.getpid()}"
        with pytest.raises(ConfigError, match=words), RunDirectory(tmp_path).lock():
            pass


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_rewind_to_a_step_and_grow_as_if_nothing_had_happened(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    rows: list[dict[str, io.Json]] = [{"step": s, "loss_nats": 0.1 * s} for s in range(1, 8)]
    for row in rows:
        run.append_metrics(row)
        run.append_timings({"step": row["step"], "rate_tok_per_s": 1.0})
    whole = run.metrics_path.read_bytes()
    for step in range(8):
        run.rewind_metrics(step)
        assert run.metrics() == rows[:step]
        assert len(run.timings_path.read_text().splitlines()) == step
        for row in rows[step:]:
            run.append_metrics(row)
            run.append_timings({"step": row["step"], "rate_tok_per_s": 2.0})
        assert run.metrics_path.read_bytes() == whole


def test_metrics_cut_at_any_byte_lose_only_the_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    whole = run.metrics_path.read_bytes()
    for size in range(len(whole)):
        run.metrics_path.write_bytes(whole[:size])
        n_whole, n_torn = whole[:size].count(b"\n"), size - whole[:size].rfind(b"\n") - 1
        assert len(run.metrics()) == n_whole
        run.rewind_metrics(3)
        assert len(run.metrics()) == n_whole
        expected = f"dropped {n_torn} torn bytes at metrics.jsonl:{size - n_torn}" if n_torn else ""
        assert expected in capsys.readouterr().err
        run.append_metrics({"step": 9})
        assert run.metrics()[-1] == {"step": 9}


def test_one_models_lines_are_rewound_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for model in ("student", "control"):
        for step in (1, 2):
            run.append_metrics({"step": step, "model": model})
    run.rewind_metrics(1, model="control")
    assert [(r["model"], r["step"]) for r in run.metrics()] == [("student", 1), ("student", 2), ("control", 1)]


def test_a_damaged_line_in_the_middle_is_an_error_and_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_bytes(b'{"step": 1}\n{"st\x00p": 2}\n{"step": 3}\n')
    before = run.metrics_path.read_bytes()
    with pytest.raises(IntegrityError, match="damaged line") as caught:
        run.rewind_metrics(1)
    assert caught.value.code == "CHECKSUM" and run.metrics_path.read_bytes() == before


def test_the_student_is_a_link_that_can_be_chosen_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for name in ("a", "b"):
        io.write_text(run.model(name) / "config.json", name)
        run.choose_student(name)
        assert (run.student / "config.json").read_text() == name
