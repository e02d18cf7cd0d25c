"""D1-D3, G11: what a model folder would make a library do is found before any library has touched it."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch

from tests.models.tiny_models import edit_json, folder
from tutelage.errors import IntegrityError
from tutelage.models.load import load_model, load_tokenizer
from tutelage.models.safety import audit, escapes, read_safetensors_header, refuse_unsafe

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model")


def canary_pickle(path: Path, canary: Path) -> None:
    """A pickle that makes the file `canary` when anything unpickles it; written by hand, protocol 0."""
    path.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())


def code_of(folder: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        refuse_unsafe(folder)
    with pytest.raises(IntegrityError):  # before any loader is called, not only in the audit
        load_tokenizer(str(folder))
    with pytest.raises(IntegrityError):
        load_model(str(folder))
    return caught.value.code


def test_a_good_folder_has_no_finding(model: Path) -> None:
    assert audit(model) == []


def test_the_canary_is_one(tmp_path: Path) -> None:
    """The negative control: unpickling it does make the file."""
    import pickle

    canary_pickle(tmp_path / "x.bin", tmp_path / "canary")
    pickle.loads((tmp_path / "x.bin").read_bytes())
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "last.ckpt", ".metadata", "sub/rng.pth"]
)
def test_a_folder_of_pickles_is_refused_and_none_is_read(name: str, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).parent.mkdir(exist_ok=True)
    canary_pickle(model / name, tmp_path / "canary")
    assert code_of(model) == "UNSAFE_FILE"
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_noted_and_never_opened(model: Path, tmp_path: Path) -> None:
    canary_pickle(model / "pytorch_model.bin", tmp_path / "canary")
    canary_pickle(model / "optimizer.pt", tmp_path / "canary")
    assert [(finding.level, finding.code) for finding in audit(model)] == [("note", "UNSAFE_FILE")]
    load_model(str(model))
    load_tokenizer(str(model))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
        ("config.json", {"auto_map": {"AutoConfig": "someone/else--configuration_x.X"}}),
        ("config.json", {"model_file": "modeling_x.py"}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "modeling_x.X"}}}),
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        ("generation_config.json", {"custom_generate": "someone/generate"}),
    ],
)
def test_a_config_that_asks_for_code_is_refused_and_no_code_runs(
    file: str, fields: dict[str, object], model: Path, tmp_path: Path
) -> None:
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (model / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass X: pass\n")
    edit_json(model / file, **fields)
    assert code_of(model) == "REMOTE_CODE"
    assert not (tmp_path / "canary").exists()


def test_the_refusal_of_code_names_no_flag_that_no_verb_has(model: Path) -> None:
    edit_json(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (finding,) = audit(model)
    assert "use one whose architecture transformers has" in finding.message
    assert "--" not in finding.message.replace(str(model), "")


def test_code_is_allowed_only_by_an_exact_commit(model: Path) -> None:
    edit_json(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    for revision in (None, "main", "v1.0", SHA[:39], SHA.upper()):
        assert any(finding.code == "REMOTE_CODE" for finding in audit(model, code_revision=revision)), revision
    refuse_unsafe(model, code_revision=SHA)
    with pytest.raises(Exception, match="REMOTE_CODE"):  # a local folder is no commit
        load_model(str(model), code_revision=SHA)


BAD_NAMES = [
    "../../x.safetensors",
    "/etc/x.safetensors",
    "a/../../x.safetensors",
    "C:\\x.safetensors",
    "c:x.safetensors",
    "..\\x",
    "x\0.safetensors",
    "~/x.safetensors",
    "",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_index_that_names_a_path_outside_is_refused(name: str, model: Path) -> None:
    assert escapes(name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert code_of(model) == "PATH_ESCAPE"


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "sub/model.safetensors", "a..b"])
def test_a_plain_name_is_no_escape(name: str) -> None:
    assert not escapes(name)


def test_a_weight_map_that_is_none_is_refused(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": [["../x"]]}))
    assert code_of(model) == "MODEL_LOAD"


def test_a_link_out_of_the_folder_is_refused_and_a_hub_cache_is_not(model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "elsewhere.safetensors"
    os.rename(model / "model.safetensors", weights)
    (model / "model.safetensors").symlink_to(weights)
    assert code_of(model) == "PATH_ESCAPE"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = blobs.parent / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    os.rename(weights, blobs / "w")
    for path in model.iterdir():
        target = blobs / ("w" if path.is_symlink() else path.name)
        if not path.is_symlink():
            os.rename(path, target)
        (snapshot / path.name).symlink_to(os.path.relpath(target, snapshot))
    assert audit(snapshot) == []


def header(**tensors: object) -> bytes:
    raw = json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_WEIGHTS = {
    "empty": b"",
    "header length 2**63": struct.pack("<Q", 2**63) + b"{}",
    "header past the end": struct.pack("<Q", 100) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"\xff\xfe{}",
    "deep JSON": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a list": struct.pack("<Q", 2) + b"[]",
    "cut data": header(a=GOOD) + b"\0" * 7,
    "bytes after the data": header(a=GOOD) + b"\0" * 9,
    "gap": header(a=GOOD, b={**GOOD, "data_offsets": [16, 24]}) + b"\0" * 24,
    "overlap": header(a=GOOD, b={**GOOD, "data_offsets": [4, 12]}) + b"\0" * 12,
    "shape 2**62": header(a={**GOOD, "shape": [2**62]}) + b"\0" * 8,
    "negative": header(a={"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}) + b"\0" * 8,
    "unknown type": header(a={**GOOD, "dtype": "F128"}) + b"\0" * 8,
    "not a tensor": header(a=[]) + b"\0" * 8,
    "boolean offsets": header(a={"dtype": "I8", "shape": [1], "data_offsets": [False, True]}) + b"\0",
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_a_safetensors_header_that_lies_is_refused(kind: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(BAD_WEIGHTS[kind])
    assert code_of(model) == "MODEL_LOAD"


def test_a_true_header_gives_every_tensor_its_place(model: Path) -> None:
    from safetensors.torch import load_file

    path = model / "model.safetensors"
    data, tensors = path.read_bytes(), load_file(path)
    entries = read_safetensors_header(path)
    assert {entry.name for entry in entries} == tensors.keys()
    for entry in entries:
        found = torch.frombuffer(bytearray(data[entry.start : entry.end]), dtype=torch.float32)
        assert torch.equal(found.reshape(entry.shape), tensors[entry.name])


@pytest.mark.parametrize("value", ["{", "[]", '{"model_type": 3}', '{"a":' * 100_000])
def test_a_config_that_is_none_is_refused(value: str, model: Path) -> None:
    (model / "config.json").write_text(value)
    assert code_of(model) == "MODEL_LOAD"


def test_what_is_no_model_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (finding, *_) = audit(tmp_path)
    assert finding.code == "MODEL_LOAD"
    assert "notes.txt" in finding.message
    (tmp_path / "adapter_config.json").write_text("{}")
    assert any("adapter" in finding.message for finding in audit(tmp_path))
