"""Students made of the teacher in other ways than by its layers alone: trained, stopped, resumed, saved, planned."""

import json
import os
import signal
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import tutelage
from tests.verbs.tiny_runs import assert_same_outcome, command_in_fork, recipe, wait
from tutelage import io
from tutelage.errors import ConfigError
from tutelage.planning import contest
from tutelage.recipe import load_recipe
from tutelage.verbs.compare import _start

STUDENTS = {
    "narrow": {"width": {"hidden": 8, "mlp": 24}},
    "both": {"layers": {"evenly": 2}, "width": {"hidden": 8, "heads": 1, "key_value_heads": 1}},
}


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("students") / "students.yaml"
    file.write_text(json.dumps(recipe(base, student=None, students=STUDENTS)))
    return file


@pytest.fixture(scope="module")
def whole(path: Path) -> tutelage.Run:
    """The run that nobody interrupted."""
    return tutelage.train(path, run_dir=path.parent / "whole")


def sizes(config) -> tuple[int, ...]:
    return config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads


def test_narrow_students_are_saved_as_plain_models_of_transformers(whole):
    models = {name: AutoModelForCausalLM.from_pretrained(whole.path / "models" / name) for name in ("narrow", "both")}
    assert sizes(models["narrow"].config) == (4, 8, 24, 2)
    assert sizes(models["both"].config) == (2, 8, 32, 1)
    assert models["both"].config.head_dim == 8


def test_a_plan_knows_how_large_they_will_be(whole, path):
    planned = tutelage.plan(path).plan.facts.students
    for name, size in planned.items():
        saved = AutoModelForCausalLM.from_pretrained(whole.path / "models" / name)
        assert size.parameters == saved.num_parameters(), name


def killed_after_the_second_step() -> None:
    """In a process that is a fork of the tests'."""

    def die_there(operation) -> None:
        if "step-000003" in str(operation.path):
            os.kill(os.getpid(), signal.SIGKILL)

    io.FAULTS = die_there


def test_one_that_was_stopped_ends_in_the_same_bits_without_measuring_again(path, whole, tmp_path):
    run = tmp_path / "run"
    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=killed_after_the_second_step)
    assert wait(pid) == -signal.SIGKILL
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["widths"].keys() == STUDENTS.keys()
    tutelage.train(path, run_dir=run)
    assert_same_outcome(run, whole.path)
    assert os.readlink(run / "student") == os.readlink(whole.path / "student")


def test_every_run_of_a_comparison_starts_from_one_narrow_model(base, tmp_path):
    checked = load_recipe(recipe(base, student=STUDENTS["narrow"]))
    start = _start(checked, tmp_path)
    assert sizes(AutoModelForCausalLM.from_pretrained(start["model"]).config) == (4, 8, 24, 2)
    assert contest.base_of(checked, start=start)["student"] == start
    (tmp_path / "start" / "config.json").write_text("{}")
    assert _start(checked, tmp_path) == start  # found again, not made again
    assert (tmp_path / "start" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"width": {}}, "student.width names nothing to narrow"),
        ({"width": 0.5, "model": "a/b"}, "student needs exactly one of"),
        ({"width": {"hidden": 1.5}}, "must be a whole number >= 1, or a share of the teacher's in (0, 1), got 1.5"),
        ({"width": {"hiden": 8}}, "hidden"),
    ],
)
def test_what_makes_no_narrow_student_is_refused(base, student, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")):
        load_recipe(recipe(base, student=student))
