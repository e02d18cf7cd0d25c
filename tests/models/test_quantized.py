"""Teachers with rounded weights: loaded, known by what they are, never trained or cut; and what cannot be had."""

import importlib.util
import json

import pytest
import torch

import tutelage
from tests import tiny
from tests.models.tiny_models import edit_json, folder, tokenizer
from tests.verbs import tiny_runs
from tutelage.cache import manifest as manifests
from tutelage.errors import ConfigError
from tutelage.models import quantized
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import verify_head
from tutelage.models.load import load_model
from tutelage.models.student import from_layers
from tutelage.recipe import load_recipe
from tutelage.teachers.live import LiveTeacher
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.label import _record

IDS = torch.arange(48)[None]
# Not of the environment of the tests: with it installed, every process that imports transformers takes seconds longer.
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with a Llama of the usual initialisation, wide enough for its roundings to be small."""
    own = tokenizer()
    model = tiny.llama(vocabulary=len(own), hidden=64, tied=False, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(0.2)  # attention that does not decide by a hair
    where = tmp_path_factory.mktemp("models") / "plain"
    model.save_pretrained(where)
    own.save_pretrained(where)
    return where


def rounded(where, kind):
    return load_model(str(where), dtype="float32", quantize=kind)


@needs_torchao
@pytest.mark.parametrize(("kind", "bytes_each", "steps"), [("int8", 1, 127), ("fp8", 1, 8)])
@torch.no_grad()
def test_a_rounded_model_holds_the_nearest_of_its_numbers_in_less_memory(plain, kind, bytes_each, steps):
    whole, model = load_model(str(plain)), rounded(plain, kind)
    before, after = whole.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight.dequantize()
    scale_D = before.abs().amax(1, keepdim=True) if kind == "int8" else before.abs()
    assert ((before - after).abs() <= 0.51 * scale_D / steps + (0.01 * before.std() if kind == "fp8" else 0.0)).all()
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    n_rounded = sum(p.numel() for layer in whole.model.layers for p in layer.parameters() if p.dim() == 2)
    saved = quantized.n_bytes(whole) - quantized.n_bytes(model)
    assert saved > 0.9 * n_rounded * (4 - bytes_each)
    assert quantized.n_parameters(model) == quantized.n_parameters(whole)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    verify_head(model, n_vocabulary=len(tokenizer()))
    ids = [IDS, torch.cat([IDS, IDS.flip(1)])]  # alone, and with a second row
    assert torch.equal(*(model(input_ids=i).logits[0].argmax(-1) for i in ids))


@needs_torchao
def test_a_fingerprint_tells_rounded_from_plain_and_does_not_change_by_use(plain):
    models = [load_model(str(plain)), rounded(plain, "int8"), rounded(plain, "fp8")]
    before = [weights_fingerprint(model) for model in models]
    assert len(set(before)) == 3
    for model in models:
        model(input_ids=IDS)
    assert [weights_fingerprint(model) for model in models] == before
    assert weights_fingerprint(rounded(plain, "int8")) == before[1]


@needs_torchao
def test_a_rounded_teacher_is_labelled_trained_from_and_evaluated_under_its_own_name(tmp_path):
    written = tiny_runs.recipe(tmp_path, student={"config": {"num_hidden_layers": 1}}, cache={"codec": "hidden"})
    teacher = {"model": str(tmp_path / "teacher"), "quantize": "int8", "dtype": "float32"}
    live = {**{k: v for k, v in written.items() if k != "cache"}, "teacher": teacher}
    cached = {**written, "teacher": {**teacher, "cache": str(tmp_path / "cache")}}
    tutelage.label(cached)
    asked = manifests.read_manifest(tmp_path / "cache").asked.teacher
    model = load_model(str(tmp_path / "teacher"), dtype="float32", quantize="int8")
    assert (asked.quantize, asked.weights) == ("int8", weights_fingerprint(model))
    assert asked.parameter_bytes == quantized.n_bytes(model) < 4 * asked.parameters
    run = tutelage.train(live, run_dir=tmp_path / "live")
    assert run.evaluation().transfer.json()["costs"]["teacher"]["parameter_bytes"] == asked.parameter_bytes
    assert json.loads((run.path / "provenance.json").read_text())["teacher"] == asked.weights
    plain = {**cached, "teacher": {k: v for k, v in cached["teacher"].items() if k != "quantize"}}
    with pytest.raises(ConfigError, match="teacher.quantize int8 -> None") as caught:
        tutelage.label(plain)
    assert caught.value.code == "CACHE_MISMATCH"


def test_a_manifest_of_before_is_what_it_was():
    fields = {"name": "a", "saved_weights": "b", "weights": "c", "dtype": "float32", "attention": "sdpa"}
    record = manifests.TeacherRecord(**fields, parameters=1, parameter_bytes=4)
    assert record.model_dump(mode="json") == {**fields, "parameters": 1, "parameter_bytes": 4}
    assert record.model_copy(update={"quantize": "int8"}).model_dump(mode="json")["quantize"] == "int8"


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "said"),
    [
        ("int4", "cpu", torch.float32, "int4 needs cuda, this run is on cpu; set teacher.quantize to int8 or fp8"),
        ("int8", "mps", torch.float32, "int8 needs cpu or cuda, this run is on mps; leave it out"),
        ("fp8", "cpu", torch.float64, "fp8 computes in float32 or bfloat16, not float64; set teacher.dtype=float32"),
    ],
)
def test_what_cannot_be_had_here_is_refused_by_name(kind, device, dtype, said):
    with pytest.raises(ConfigError, match="teacher.quantize") as caught:
        quantized.require(kind, device=device, dtype=dtype)
    assert said in caught.value.message


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(ConfigError, match=r'needs torchao; run: pip install "tutelage\[quantized\]"') as caught:
        quantized.require("int8", device="cpu", dtype=torch.float32)
    assert caught.value.code == "MISSING_EXTRA"


@needs_torchao
def test_rounded_weights_are_not_cut(plain):
    with pytest.raises(ConfigError, match=r"whose weights are rounded \(torchao\); give student.model"):
        from_layers(rounded(plain, "int8"), [0])


@pytest.mark.parametrize("student", [{"layers": [0]}, {"width": {"mlp": 16}}])
def test_no_student_is_made_of_weights_that_are_stored_rounded(student):
    teacher = tiny.llama(vocabulary=len(tokenizer()), dtype=torch.float32)
    teacher.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    recipe = {
        "teacher": {"memory": "rounded"}, "student": student, "loss": ["forward_kl"],
        "data": {"sources": [{"memory": "texts"}], "held_out": 0.2, "max_length": 16},
        "training": {"steps": 1, "batch_tokens": 16, "learning_rate": 1e-3, "precision": "float32"},
    }  # fmt: skip
    texts = {"texts": [f"{i} ab cd abcd efgh" for i in range(20)]}
    with pytest.raises(ConfigError, match=r"of the teacher, whose weights are rounded \(gptq\); give student.model"):
        prepare(load_recipe(recipe), memory=InMemory(teacher=teacher, tokenizer=tokenizer(), examples=texts))


def test_rounded_weights_are_not_trained(tmp_path):
    for name in ("teacher", "student"):
        folder(tmp_path / name)
    edit_json(tmp_path / "student" / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    recipe = tiny_runs.recipe(tmp_path, student={"model": str(tmp_path / "student")})
    with pytest.raises(ConfigError, match=r"is stored with rounded weights \(gptq\), which cannot") as caught:
        tutelage.train(recipe, run_dir=tmp_path / "run")
    assert (caught.value.code, caught.value.message.count("\n")) == ("MODEL_LOAD", 0)


def test_the_record_of_a_cache_says_how_its_teacher_was_rounded(tmp_path):
    written = tiny_runs.recipe(tmp_path, student={"config": {"num_hidden_layers": 1}})
    teacher = {"model": str(tmp_path / "teacher"), "quantize": "fp8"}
    live = LiveTeacher(load_model(str(tmp_path / "teacher")), n_vocabulary=len(tiny_runs.tokenizer()))
    record = _record(load_recipe({**written, "teacher": teacher}), live, saved_weights="")
    assert record.quantize == "fp8"
    assert record.parameter_bytes == 4 * record.parameters == 4 * sum(p.numel() for p in live.model.parameters())
