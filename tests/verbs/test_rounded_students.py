"""Students whose weights are rounded while they learn: trained, measured, stopped, resumed, saved, planned."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tutelage
from tests import tiny
from tests.verbs.tiny_runs import assert_same_outcome, command_in_fork, recipe, tokenizer, wait, weights_of
from tutelage import io, reading
from tutelage.errors import ConfigError
from tutelage.models.grid import GRIDS, Coded, on_grid, packed_bytes, rounding_of
from tutelage.recipe import load_recipe
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.evaluate import in_order
from tutelage.verbs.train import _wide

STUDENTS = {
    "eight": {"layers": {"evenly": 2}, "quantize": "int8"},
    "four": {"layers": {"evenly": 2}, "width": {"mlp": 32}, "quantize": "int4"},
}
ROUNDED = {name: student["quantize"] for name, student in STUDENTS.items()}
SAVED = {each: kind for name, kind in ROUNDED.items() for each in (name, f"control-{name}")}
IDS = torch.arange(40)[None]
WATCH = """
import torch
from safetensors.torch import save_file

@torch.no_grad()
def on_event(event):
    if event.kind == "end":
        found = {name: model.eval()(torch.arange(40)[None]).logits.clone() for name, model in event.models.items()}
        save_file(found, event.run / f"logits-of-{event.name}.safetensors")
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rounded")
    own = tokenizer()
    teacher = tiny.llama(layers=3, vocabulary=len(own), hidden=32, dtype=torch.float32)
    teacher.save_pretrained(folder / "teacher")
    own.save_pretrained(folder / "teacher")
    (folder / "watch.py").write_text(WATCH)
    training = {"steps": 3, "callbacks": [f"{folder / 'watch.py'}:on_event"]}
    whole = recipe(folder, student=None, students=STUDENTS, control=True, training=training)
    whole["data"]["held_out"] = None
    (folder / "rounded.yaml").write_text(json.dumps(whole))
    return folder / "rounded.yaml"


@pytest.fixture(scope="module")
def whole(path: Path) -> tutelage.Run:
    """The run that nobody interrupted."""
    return tutelage.train(path, run_dir=path.parent / "whole")


def saved(run: tutelage.Run, name: str):
    return AutoModelForCausalLM.from_pretrained(run.path / "models" / name, dtype="auto").eval()


def codes_of(run: tutelage.Run, name: str) -> tuple[dict[str, Coded], dict[str, object]]:
    """As the guide says how to read them."""
    folder = run.path / "models" / f"{name}-codes"
    record, tensors = reading.read_json(folder / "codes.json"), load_file(folder / "codes.safetensors")
    assert record["sha256"] == reading.sha256_file(folder / "codes.safetensors")
    names = [key.removesuffix(".codes") for key in tensors if key.endswith(".codes")]
    coded = {n: Coded(codes_OI=tensors[f"{n}.codes"], scales_OG=tensors[f"{n}.scales"]) for n in names}
    return coded, record


def test_a_saved_student_holds_exactly_its_integers_times_its_scales(whole):
    folders = {folder.name for folder in (whole.path / "models").iterdir()}
    assert folders == {*SAVED, *(f"{name}-codes" for name in SAVED)}
    for name, kind in SAVED.items():
        model = saved(whole, name)
        coded, record = codes_of(whole, name)
        assert coded.keys() == rounding_of(model, kind).inputs_first.keys() and len(coded) == 2 * 7
        assert (record["quantize"], record["group"], record["inputs_first"]) == (kind, GRIDS[kind].group, [])
        for key, one in coded.items():
            weight = model.get_parameter(key).detach()
            assert weight.dtype == torch.float32 and one.codes_OI.dtype == torch.int8
            assert torch.equal(one.weight(), weight) and torch.equal(on_grid(weight, kind), weight)
            if kind == "int4":
                assert torch.equal(one.weight(torch.bfloat16), weight.bfloat16())
        others = [p for key, p in model.named_parameters() if p.ndim == 2 and key not in coded]
        assert others and all(not torch.equal(on_grid(p, kind), p) for p in others)


def test_what_is_saved_answers_bit_for_bit_as_what_was_trained(whole):
    for family, names in (("family", STUDENTS), ("controls", [f"control-{name}" for name in STUDENTS])):
        in_memory = load_file(whole.path / f"logits-of-{family}.safetensors")
        assert in_memory.keys() == set(names)
        for name in names:
            with torch.no_grad():
                assert torch.equal(saved(whole, name)(IDS).logits, in_memory[name]), name


def test_a_checkpoint_holds_the_weights_that_learn_and_the_folder_what_they_are_rounded_to(whole):
    (last,) = (whole.path / "checkpoints").glob("family/step-000003")
    for name, kind in ROUNDED.items():
        masters, found = load_file(last / f"{name}.weights.safetensors"), weights_of(whole.path / "models" / name)
        inside = rounding_of(saved(whole, name), kind).inputs_first
        for key, master in masters.items():
            assert torch.equal(on_grid(master, kind) if key in inside else master, found[key]), key
            assert torch.equal(master, found[key]) == (key not in inside), key


def test_what_a_student_was_before_is_measured_rounded_too(path):
    checked = load_recipe(recipe(path.parent, student=STUDENTS["four"], control=True))
    prepared = prepare(checked, memory=InMemory())
    models = in_order(prepared, {})
    weights = {name: p.detach() for name, p in prepared.start().named_parameters()}
    models |= {name: _wide(prepared, name, weights) for name in ("student", "control")}
    for name in ("student_before", "student", "control"):
        for key in rounding_of(models[name], "int4").inputs_first:
            weight = models[name].get_parameter(key)
            assert torch.equal(weight, on_grid(weights[key], "int4")) and not torch.equal(weight, weights[key])


def test_a_plan_and_doctor_say_what_a_student_takes_once_its_integers_are_packed(whole, path):
    planned = tutelage.plan(path, calibration=False)
    for name, kind in ROUNDED.items():
        size, model = planned.plan.facts.students[name], saved(whole, name)
        assert size.packed_bytes == packed_bytes(model, kind) < 0.7 * 2 * size.parameters
        assert size.rounded == sum(one.codes_OI.numel() for one in codes_of(whole, name)[0].values())
    assert str(planned).count("B once packed") == 2
    report = tutelage.doctor(load_recipe(path), measured=False)
    of_four = report.facts["four, as it will be made"]
    assert of_four["bytes once packed"] == round(planned.plan.facts.students["four"].packed_bytes)


def killed_after_the_first_step() -> None:
    """In a process that is a fork of the tests'."""

    def die_there(operation) -> None:
        if "step-000002" in str(operation.path):
            os.kill(os.getpid(), signal.SIGKILL)

    io.FAULTS = die_there


def test_one_that_was_stopped_ends_in_the_same_bits(path, whole, tmp_path):
    run = tmp_path / "run"
    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=killed_after_the_first_step)
    assert wait(pid) == -signal.SIGKILL
    tutelage.train(path, run_dir=run)
    assert_same_outcome(run, whole.path)


@pytest.mark.parametrize(
    ("student", "training", "said"),
    [
        ({"layers": 2, "quantize": "int4", "lora": 4}, {}, "student.quantize and student.lora exclude each other"),
        ({"layers": 2, "quantize": "int8"}, {"save_dtype": "bfloat16"}, "15 significant bits, and bfloat16 keeps 8"),
        ({"layers": 2, "quantize": "int5"}, {}, "student.quantize"),
    ],
)
def test_what_cannot_be_rounded_so_is_refused(path, student, training, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe(recipe(path.parent, student=student, training=training))
