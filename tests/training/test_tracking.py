"""Trackers: they get what the metrics say, once, also over resumes, and none of their troubles stops a training."""

import time
from types import SimpleNamespace

import pytest

from tutelage import plugins
from tutelage.errors import ConfigError
from tutelage.rundir import RunDirectory
from tutelage.training import tracking
from tutelage.training.tracking import FOLDER, Tracking


def row(step: int, model: str = "student", **more: float) -> dict[str, object]:
    return {"step": step, "model": model, "tokens": 8 * step, f"{model}/total": 1.0 / step, **more}


def told(run: RunDirectory, rows: list[dict[str, object]], *, name: str = "tensorboard") -> None:
    with Tracking([name], run=run, run_id="the-run") as trackers:
        for each in rows:
            trackers.write(each)


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_series_goes_on_without_a_step_twice_and_without_losing_another_models(tmp_path):
    run = RunDirectory(tmp_path / "run")
    held_out = {"step": 4, "model": "student", "tokens": 32, "student/held_out/forward_kl": 0.5}
    told(run, [*(row(n) for n in range(1, 5)), held_out, *(row(n) for n in range(5, 7))])
    told(run, [*(row(n) for n in range(4, 5)), held_out, *(row(n) for n in range(5, 10))])  # from a checkpoint at 3
    told(run, [row(n, "control", nothing=float("nan")) for n in range(1, 4)])
    found = scalars(run)
    assert found["student/total"] == [(n, pytest.approx(1.0 / n)) for n in range(1, 10)]
    assert found["control/total"] == [(n, pytest.approx(1.0 / n)) for n in range(1, 4)]
    assert found["student/held_out/forward_kl"] == [(4, 0.5)]
    assert "nothing" not in found


def test_a_tracker_that_cannot_begin_is_left_out_with_one_warning(tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    run.tensorboard.mkdir(parents=True)
    run.tensorboard.chmod(0o500)
    (run.tensorboard / "x").symlink_to("/dev/full")
    module = SimpleNamespace(begin=lambda run: (run.folder / "x").write_text("y" * 9000))
    told_with(module, run, [row(1), row(2)])
    said = capsys.readouterr().err
    assert said.count("warning[TRACKER]: tensorboard failed (OSError: [Errno 28] No space left on device") == 1


def told_with(module: SimpleNamespace, run: RunDirectory, rows: list[dict[str, object]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "load", lambda folder, name: module)
        told(run, rows)


def test_a_tracker_that_fails_later_or_hangs_costs_one_warning_and_little_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.2)
    taken: list[int] = []

    def write(figures, *, step):
        taken.append(step)
        if step == 2:
            raise ConnectionError("the server is gone")

    tracker = SimpleNamespace(write=write, close=lambda: taken.append(-1))
    run = RunDirectory(tmp_path / "failing")
    told_with(SimpleNamespace(begin=lambda run: tracker), run, [row(n) for n in range(1, 50)])
    assert taken == [1, 2]
    assert capsys.readouterr().err.count("failed (ConnectionError: the server is gone); it is left out") == 1
    hanging = SimpleNamespace(begin=lambda run: time.sleep(5))
    began = time.monotonic()
    told_with(hanging, RunDirectory(tmp_path / "hanging"), [row(n) for n in range(1, 50)])
    assert time.monotonic() - began < 2
    assert capsys.readouterr().err.count("has not taken its figures for 0.2 s; it is left out") == 1


def test_what_a_checkpoint_promises_is_with_the_tracker(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with Tracking(["tensorboard"], run=run, run_id="r") as trackers:
        trackers.write(row(1))
        trackers.flush()
        assert (run.tracking / "tensorboard.sent").read_text() == '["student/training", 1]\n'


@pytest.mark.parametrize("name", plugins.names(FOLDER))
def test_a_tracker_without_its_library_names_what_to_install(name, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf'{name} needs {name}; run: pip install "tutelage\[{name}\]"') as caught:
        tracking.require([name])
    assert caught.value.code == "MISSING_EXTRA"


@pytest.mark.skipif(tracking.importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_keeps_one_run_over_a_resume(tmp_path):
    import mlflow

    run = RunDirectory(tmp_path / "run")
    told(run, [row(1), row(2)], name="mlflow")
    told(run, [row(2), row(3)], name="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.tracking}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'tutelage'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(found.info.run_id, "student/total")] == [1, 2, 3]


@pytest.mark.skipif(tracking.importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_writes_offline_files_of_one_run_over_a_resume(tmp_path):
    from wandb.proto import wandb_internal_pb2

    run = RunDirectory(tmp_path / "run")
    told(run, [row(1), row(2)], name="wandb")
    time.sleep(1.1)  # its files are named by the second
    told(run, [row(2), row(3)], name="wandb")
    steps = []
    for path in sorted((run.tracking / "wandb").rglob("*.wandb")):
        assert "the-run" in path.name
        data, place = path.read_bytes(), 7
        while place < min(len(data), 32768 - 7):  # LevelDB's log: checksum, length, kind, record; one block is enough
            length = int.from_bytes(data[place + 4 : place + 6], "little")
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data[place + 7 : place + 7 + length])
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            steps += [int(items["step"])] if "student/total" in items else []
            place += 7 + length
    assert steps == [1, 2, 3]
