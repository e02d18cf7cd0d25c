"""Terms that compare layers, in whole runs: trained, killed, continued, planned."""

import json
import os
import signal
from pathlib import Path

import pytest

import tutelage
from tests.verbs import tiny_runs
from tests.verbs.tiny_runs import assert_same_outcome, command_in_fork, recipe, wait
from tutelage import io
from tutelage.errors import ConfigError, IntegrityError
from tutelage.models.load import load_config
from tutelage.models.origin import FILE, Origin, origin_in
from tutelage.planning import contest
from tutelage.recipe import load_recipe
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.contest_runs import _start

LOSS = [{"forward_kl": 0.8}, {"hidden_states": 0.1}, {"features": "attention_relations", "weight": 0.1}]


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("features") / "recipe.yaml"
    whole = recipe(base, loss=LOSS, student={"layers": {"listed": [0, 2]}, "width": {"hidden": 8}})
    whole["training"] |= {"steps": 3, "evaluate_every": 0.5}
    file.write_text(json.dumps(whole))
    return file


@pytest.fixture(scope="module")
def whole(path: Path) -> tutelage.Run:
    """The run that nobody interrupted."""
    return tutelage.train(path, run_dir=path.parent / "whole")


def test_every_run_of_a_comparison_compares_the_layers_and_channels_that_train_does(path, base, tmp_path):
    checked = load_recipe(path)
    start = _start(checked, tmp_path)
    again = load_recipe(contest.base_of(checked, start=start))
    own, its = (prepare(each, memory=InMemory()).terms["student"] for each in (checked, again))
    assert own == its
    assert [term.feature.layers for term in own[1:]] == [((0, 0), (1, 2)), ((1, 2),)]
    other = load_config(str(tiny_runs.model_folder(tmp_path / "other", layers=5)))
    assert origin_in(Path(start["model"]), teacher=other) == Origin()
    (Path(start["model"]) / FILE).write_text("{}")
    with pytest.raises(IntegrityError, match="made_of.json does not say what a model was made of"):
        prepare(again, memory=InMemory())


def test_each_term_is_logged_under_its_name_and_held_out_text_is_measured_with_it(whole):
    steps = [row for row in whole.metrics if "student/total" in row]
    assert len(steps) == 3
    for row in steps:
        parts = [row[f"student/{name}"] for name in ("forward_kl", "hidden_states", "attention_relations")]
        assert all(part > 0 for part in parts)
        assert row["student/total"] == pytest.approx(0.8 * parts[0] + 0.1 * parts[1] + 0.1 * parts[2], rel=1e-5)
    assert steps[0]["student/hidden_states"] < 0.75  # its channels begin where they were taken; a random map gives 0.9
    held_out = [row for row in whole.metrics if "student/held_out/hidden_states" in row]
    assert held_out
    assert all(row["student/held_out/attention_relations"] > 0 for row in held_out)


def test_what_is_learned_beside_the_student_is_in_its_checkpoints_and_not_in_the_model(whole):
    saved = whole.path / "checkpoints/student/step-000003/student.beside.safetensors"
    assert b"hidden_states_projection_1" in saved.read_bytes()
    assert not any("projection" in name for name, _ in whole.student().named_parameters())


def killed_after_the_first_step() -> None:
    """In a process that is a fork of the tests'."""

    def die_there(operation) -> None:
        if "step-000002" in str(operation.path):
            os.kill(os.getpid(), signal.SIGKILL)

    io.FAULTS = die_there


def test_a_run_that_was_killed_ends_in_the_same_bits(path, whole, tmp_path):
    run = tmp_path / "run"
    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=killed_after_the_first_step)
    assert wait(pid) == -signal.SIGKILL
    tutelage.train(path, run_dir=run)
    assert_same_outcome(run, whole.path)


def test_plan_and_doctor_know_such_a_loss(path):
    plan = tutelage.plan(path, calibration=False).plan
    assert {e.name for e in plan.estimates if "features" in e.impossible} == {"cached", "co"}
    assert next(e for e in plan.estimates if e.name == "soft").flops is not None
    assert tutelage.doctor(load_recipe(path), measured=False).ok


@pytest.mark.parametrize(
    ("layers", "message"),
    [({0: 1, 7: 3}, "hidden_states: layer 7 of the student, which has 0 to 1; change layers, or auto"),
     ({1: 9}, "hidden_states: layer 9 of the teacher, which has 0 to 3; change layers, or auto")],
)  # fmt: skip
def test_a_layer_that_a_model_has_not_is_found_before_anything_is_loaded(path, layers, message):
    changed = json.loads(path.read_text())
    changed["loss"][1] = {"features": "hidden_states", "weight": 0.1, "layers": layers}
    report = tutelage.doctor(load_recipe(changed), measured=False)
    assert [(f.code, f.message) for f in report.findings if f.level == "error"] == [("FEATURES", message)]
    with pytest.raises(ConfigError) as caught:
        tutelage.plan(load_recipe(changed))
    assert caught.value.message == message
