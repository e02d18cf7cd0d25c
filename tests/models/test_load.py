"""A model comes from a folder, a GGUF file, a hub id or a package; never in train mode, never with gradients."""

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.tiny_models import edit_json, folder, gguf, tokenizer
from tests.tiny import llama
from tutelage.errors import ConfigError, IntegrityError, RemoteError, TutelageError
from tutelage.models.doctor import examine
from tutelage.models.load import folder_fingerprint, load_model, load_tokenizer, resolve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model")


def test_a_loaded_model_is_frozen_and_holds_the_saved_weights(model: Path) -> None:
    loaded = load_model(str(model))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config._attn_implementation == "sdpa"
    own = llama(vocabulary=len(tokenizer()), dtype=torch.float32).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_is_the_saved_one_or_the_one_that_is_asked(dtype: str, expected: torch.dtype, model: Path) -> None:
    assert {p.dtype for p in load_model(str(model), dtype=dtype).parameters()} == {expected}


def test_a_gguf_file_loads_like_a_folder(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.gguf")
    found = resolve(str(path))
    assert found.kind == "gguf"
    assert load_model(str(path)).config.hidden_size == 64
    assert load_tokenizer(str(path)).eos_token_id == 1


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("./not/here", ConfigError, "is not there"),
        ("a/b/c", ConfigError, "is not there"),
        ("missing.gguf", ConfigError, "is not there"),
        ("package:nothing", ConfigError, "smollm2-135m-instruct"),
        ("nobody/nothing", RemoteError, "hub cannot be reached"),
        ("bad id!", ConfigError, "no model bad id!"),
    ],
)
def test_what_cannot_be_found_says_what_to_type(source: str, kind: type[TutelageError], said: str) -> None:
    with pytest.raises(kind, match="MODEL_LOAD") as caught:
        resolve(source)
    assert said in caught.value.message


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ConfigError, match="no model folder"):
        resolve(str(tmp_path / "x.txt"))


def test_a_revision_of_a_folder_is_a_mistake(model: Path) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        resolve(str(model), "main")


def test_what_a_library_raises_becomes_one_line(model: Path) -> None:
    edit_json(model / "config.json", model_type="never_heard_of")
    with pytest.raises(IntegrityError, match="never_heard_of") as caught:
        load_model(str(model))
    assert caught.value.code == "MODEL_LOAD"
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith("for a newer model run: pip install -U transformers")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("lost", r"lack 4 weights that config.json asks for \(model.layers.0.mlp.down_proj.weight, .*, …\), and those"),
        ("headless", r"lack 1 weights that config.json asks for \(lm_head.weight\)"),
        ("deeper", r"lack 9 weights that config.json asks for \(model.layers.2.input_layernorm.weight, .*, …\)"),
        ("wider", r"have other shapes in its files than config.json says \(.*: \[.*16.*\] in the file, \[.*32.*\] by"),
    ],
)
def test_weights_that_are_not_there_are_never_made_up(damage: str, said: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", tied=damage != "headless")
    weights = load_file(path / "model.safetensors")
    gone = {"lost": ("layers.0.mlp", "layers.1.self_attn.q"), "headless": ("lm_head",)}.get(damage, ())
    kept = {name: value for name, value in weights.items() if not any(part in name for part in gone)}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    changed = {"deeper": {"num_hidden_layers": 3}, "wider": {"hidden_size": 32}}
    if damage in changed:
        edit_json(path / "config.json", **changed[damage])
    with pytest.raises(IntegrityError, match=said) as caught:
        load_model(str(path))
    assert caught.value.code == "MODEL_LOAD" and "\n" not in caught.value.message
    report = examine(str(path))
    assert not report.ok
    (finding,) = (one for one in report.findings if one.level == "error")
    assert finding.message == caught.value.message


def test_weights_that_a_model_has_no_place_for_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where config.json says fewer layers than the file holds."""
    edit_json(model / "config.json", num_hidden_layers=1)
    load_model(str(model))
    said = "9 weights in its files are no part of the model (model.layers.1.input_layernorm.weight"
    assert f"note[UNUSED_WEIGHTS]: {model}: {said}" in capsys.readouterr().err
    assert any(one.code == "UNUSED_WEIGHTS" and said in one.message for one in examine(str(model)).findings)


def test_a_fingerprint_goes_by_content_not_by_files(model: Path, tmp_path: Path) -> None:
    whole = folder_fingerprint(model)
    same = folder(tmp_path / "same")
    llama(vocabulary=len(tokenizer()), dtype=torch.float32).save_pretrained(tmp_path / "cut", max_shard_size="20kB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert whole == folder_fingerprint(same) == folder_fingerprint(tmp_path / "cut")
    assert whole != folder_fingerprint(folder(tmp_path / "other", seed=1))


def test_a_changed_weight_changes_the_fingerprint_that_was_remembered(model: Path) -> None:
    before = folder_fingerprint(model)
    path = model / "model.safetensors"
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert folder_fingerprint(model) != before


def test_loading_says_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(model))
    load_tokenizer(str(model))
    assert capfd.readouterr() == ("", "")


# --- doctor ---


def test_the_doctor_finds_nothing_wrong_with_a_good_folder(model: Path) -> None:
    report = examine(model)
    assert report.ok
    assert report.findings == ()
    facts = report.facts[str(model)]
    assert facts["tokens"] == facts["rows of the head"] == len(tokenizer())
    assert facts["parameters"] == sum(p.numel() for p in llama(vocabulary=len(tokenizer())).parameters())
    assert "no error found" in str(report)


def test_the_doctor_names_padding_ends_and_a_missing_template(tmp_path: Path) -> None:
    own = tokenizer(template=None)
    path = folder(tmp_path / "padded", own=own, rows=len(own) + 10)
    edit_json(path / "generation_config.json", eos_token_id=77)
    report = examine(path)
    assert report.ok
    assert {finding.code for finding in report.findings} == {"VOCAB_PAD", "EOS_MISMATCH", "TEMPLATE"}
    assert "10 of the head's 272 rows" in str(report).replace(str(len(own) + 10), "272")


@pytest.mark.parametrize(
    ("damage", "code"),
    [("pickle", "UNSAFE_FILE"), ("code", "REMOTE_CODE"), ("template", "TEMPLATE_LIMIT"), ("weights", "MODEL_LOAD")],
)
def test_the_doctor_refuses_without_loading(damage: str, code: str, model: Path, tmp_path: Path) -> None:
    match damage:
        case "pickle":
            (model / "model.safetensors").rename(model / "pytorch_model.bin")
        case "code":
            (model / "modeling_x.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
            edit_json(model / "config.json", auto_map={"AutoConfig": "modeling_x.X"})
        case "template":
            (model / "chat_template.jinja").write_text("{{ 'A' * 10**10 }}")
        case "weights":
            (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**60))
    report = examine(str(model))
    assert not report.ok
    assert code in {finding.code for finding in report.findings if finding.level == "error"}
    assert report.as_json()["ok"] is False
    assert not (tmp_path / "canary").exists()


def test_the_doctor_of_a_recipe_compares_teacher_and_student(model: Path, tmp_path: Path) -> None:
    from tutelage.recipe import load_recipe

    other = folder(tmp_path / "other", own=tokenizer(words=("ab", "ce")))
    recipe = {
        "teacher": str(model),
        "student": {"model": str(other)},
        "data": {"sources": [{"python_docs": True}]},
        "loss": [{"divergence": "forward_kl"}],
        "training": {"steps": 1},
    }
    report = examine(load_recipe(recipe))
    assert [finding.code for finding in report.findings] == ["TOKENIZER_MISMATCH"]
    recipe["student"] = {"model": str(model)}
    assert examine(load_recipe(recipe)).ok
