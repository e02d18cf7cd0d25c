"""Students made of the teacher in other ways than by its layers alone: trained, stopped, resumed, saved, planned."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import tutelage
from tests.verbs.tiny_runs import assert_same_outcome, command_in_fork, recipe, wait, weights_of
from tutelage import io
from tutelage.errors import ConfigError
from tutelage.planning import contest
from tutelage.recipe import load_recipe
from tutelage.rundir import RunDirectory
from tutelage.verbs.contest_runs import _start
from tutelage.verbs.fork import require_same_models

STUDENTS = {
    "narrow": {"width": {"hidden": 8, "mlp": 24}},
    "both": {"layers": {"evenly": 2}, "width": {"hidden": 8, "heads": 1, "key_value_heads": 1}, "init": 0.3},
}
DORA = {"init": {"random": 0.1}, "lora": {"rank": 2, "dora": True, "targets": ["q_proj", "up_proj"]}}
NARROW = ["both", "narrow"]


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("students") / "students.yaml"
    teacher = str(base / "teacher")
    named = {"lora": {"model": teacher, "lora": 4}, "dora": {"model": teacher, **DORA}}
    whole = recipe(base, student=None, students={**STUDENTS, **named})
    whole["data"]["held_out"] = None
    whole["training"]["steps"] = 3
    file.write_text(json.dumps(whole))
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
        assert (size.learned is not None) == (name in ("lora", "dora"))
    everything = planned["lora"].multiplying - planned["lora"].learned
    assert planned["lora"].learned == 4 * 4 * (16 + 16 + 2 * (16 + 8) + 16 + 16 + 3 * (16 + 32))
    of_all = 3 * planned["lora"].forward_flops(context=0)
    assert planned["lora"].training_flops(context=0) == of_all - 2 * everything
    assert "learn" in str(tutelage.plan(path))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks transformers 5
def test_adapters_are_saved_merged_and_where_their_base_has_a_name_also_alone(whole, base):
    found = {folder.name for folder in (whole.path / "models").iterdir()}
    assert found == {*STUDENTS, "lora", "lora-adapter", "dora"}  # that of dora belongs to weights that nobody else has
    merged = AutoModelForCausalLM.from_pretrained(whole.path / "models" / "lora").eval()
    assert not any("lora" in name for name in merged.state_dict())
    plain = AutoModelForCausalLM.from_pretrained(base / "teacher").eval()
    adapted = PeftModel.from_pretrained(copy.deepcopy(plain), whole.path / "models" / "lora-adapter").eval()
    assert adapted.peft_config["default"].base_model_name_or_path == str(base / "teacher")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        found, expected, before = (model(ids).logits for model in (adapted, merged, plain))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (before - expected).abs().max() > 1e-2


def test_of_a_student_with_adapters_only_these_are_in_a_checkpoint(whole):
    (last,) = (whole.path / "checkpoints").glob("*/step-000003")
    with (
        safe_open(last / "lora.weights.safetensors", "pt") as weights,
        safe_open(last / "lora.optimizer.safetensors", "pt") as moments,
    ):
        assert all(".lora_" in name for name in (*weights.keys(), *moments.keys()))
        assert len(weights.keys()) == 4 * 7 * 2


def killed_after_the_first_step() -> None:
    """In a process that is a fork of the tests'."""

    def die_there(operation) -> None:
        if "step-000002" in str(operation.path):
            os.kill(os.getpid(), signal.SIGKILL)

    io.FAULTS = die_there


def test_one_that_was_stopped_ends_in_the_same_bits_without_measuring_again(path, whole, tmp_path):
    run = tmp_path / "run"
    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=killed_after_the_first_step)
    assert wait(pid) == -signal.SIGKILL
    provenance = json.loads((run / "provenance.json").read_text())
    assert sorted(provenance["widths"]) == NARROW
    tutelage.train(path, run_dir=run)
    assert_same_outcome(run, whole.path)
    assert os.readlink(run / "student") == os.readlink(whole.path / "student")


def test_doctor_names_a_device_that_this_machine_lacks(base):
    elsewhere = load_recipe(recipe(base, teacher={"model": str(base / "teacher"), "device": "cuda:77"}))
    (finding,) = [f for f in tutelage.doctor(elsewhere, measured=False).findings if f.level == "error"]
    assert finding.message.startswith("teacher.device: 'cuda:77' is not there; this machine has")


def test_doctor_says_how_large_a_student_will_be_or_why_it_cannot_be_made(path, base):
    report = tutelage.doctor(load_recipe(path), measured=False)
    assert report.ok
    assert report.facts["narrow, as it will be made"].keys() == {"parameters"}
    assert report.facts["lora, as it will be made"].keys() == {"parameters", "of adapters, which alone learn"}
    impossible = load_recipe(recipe(base, student={"width": {"hidden": 17}}))
    (finding,) = [f for f in tutelage.doctor(impossible, measured=False).findings if f.level == "error"]
    assert finding.code == "WIDTH" and "the teacher has 16; give 1 to 16" in finding.message


def test_every_run_of_a_comparison_starts_from_one_narrow_model(base, tmp_path):
    checked = load_recipe(recipe(base, student=STUDENTS["narrow"]))
    start = _start(checked, tmp_path)
    assert sizes(AutoModelForCausalLM.from_pretrained(start["model"]).config) == (4, 8, 24, 2)
    assert contest.base_of(checked, start=start)["student"] == start
    (tmp_path / "start" / "config.json").write_text("{}")
    assert _start(checked, tmp_path) == start  # found again, not made again
    assert (tmp_path / "start" / "config.json").read_text() == "{}"


def test_a_fork_of_a_student_with_adapters_is_refused_with_the_way_out(whole, path):
    with pytest.raises(ConfigError, match="start from the model that .* saved: student.model=.*models/lora"):
        require_same_models(RunDirectory(whole.path), load_recipe(path))


def test_an_unfinished_one_with_adapters_and_another_input_is_not_sent_to_a_fork(whole, path, tmp_path):
    run = shutil.copytree(whole.path, tmp_path / "run", symlinks=True)
    (run / "finished.json").unlink()
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**provenance, "tokenizer": "another"}))
    for flags in ({}, {"resume": True}, {"fork": True}):
        with pytest.raises(ConfigError) as caught:
            tutelage.train(path, run_dir=run, **flags)
        assert caught.value.code == ("CONFIG" if "fork" in flags else "RESUME_MISMATCH")
        assert caught.value.message.endswith("; start over with --force, or choose another --run-dir")
    with pytest.raises(ConfigError, match="unfinished run of another recipe") as caught:
        tutelage.train(path, run_dir=run, overrides=["training.steps=4"])
    assert "--fork" not in caught.value.message and "--force" in caught.value.message


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"cache": "there"}, "teacher.model is missing: student.width copies layers of the teacher, and a cache holds"),
        ({"ensemble": ["a/b", "a/c"]}, "student.width copies layers of one teacher, and there are several"),
        (None, "teacher is missing: "),
    ],
)
def test_a_narrow_student_needs_the_weights_of_one_teacher(base, teacher, said):
    tree = {**recipe(base, student={"width": 0.5}), "teacher": teacher}
    if teacher and "ensemble" in teacher:
        tree["teacher"] = {"ensemble": [{"model": one} for one in teacher["ensemble"]]}
    with pytest.raises(ConfigError, match=said):
        load_recipe({name: value for name, value in tree.items() if value is not None})


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"width": {}}, "student.width names nothing to narrow"),
        ({"width": 0.5, "model": "a/b"}, "student needs exactly one of"),
        ({"width": {"hidden": 1.5}}, "must be a whole number >= 1, or a share of the teacher's in (0, 1), got 1.5"),
        ({"width": {"hiden": 8}}, "hidden"),
        ({"config": {"hidden_size": 8}, "lora": 4}, "student.lora has no effect with config"),
        ({"config": {"hidden_size": 8}, "init": 0.5}, "student.init has no effect with config"),
        ({"layers": 2, "init": 1}, "student.init"),
        ({"layers": 2, "lora": {"rank": 0}}, "student.lora.rank must be >= 1, got 0"),
    ],
)
def test_what_makes_no_narrow_student_is_refused(base, student, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")):
        load_recipe(recipe(base, student=student))


@pytest.mark.slow
def test_a_comparison_puts_random_weights_and_adapters_on_the_narrow_start_once(base, tmp_path):
    student = {"width": {"mlp": 16}, "init": 0.3, "lora": 2}
    whole = recipe(base, student=student, training={"steps": 2})
    made = tutelage.compare(
        whole, techniques=["control", "argmax"], seeds=1, equal_compute=False, run_dir=tmp_path / "c"
    )
    assert not made.failed
    start, teacher = weights_of(tmp_path / "c" / "start"), weights_of(base / "teacher")
    assert start.keys() == teacher.keys()
    others = [name for name in start if "mlp" not in name and "norm" not in name]
    assert others and all(torch.equal(start[name], teacher[name]) for name in others)


def test_one_whole_number_for_all_widths_is_no_share():
    whole = {"teacher": "T", "loss": "forward_kl", "training": {"steps": 1}, "data": {"sources": [{"text": "*.txt"}]}}
    with pytest.raises(ConfigError, match="width"):
        load_recipe({**whole, "student": {"width": 1}})
