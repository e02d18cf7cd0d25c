"""D12: a GGUF header is believed only as far as the file is long; and converting one loses nothing."""

import json
import os
import random
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_models import CHATML, SPECIAL, gguf
from tutelage.errors import IntegrityError
from tutelage.models.conversion import folder_of_gguf, load_by_transformers
from tutelage.models.gguf import parse_header, read_header


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def header_of(*, n_tensors: int = 0, n_keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def tensor(name: str = "a", *, dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


LIES = {
    "no GGUF": (b"PK\3\4" + b"\0" * 60, "not a GGUF file"),
    "cut header": (b"GGUF\3\0\0\0", "ends inside"),
    "version": (header_of(version=9), "version 9"),
    "2**63 keys": (header_of(n_keys=2**63), f"claims {2**63} keys"),
    "2**63 tensors": (header_of(n_tensors=2**63, n_keys=1, rest=ARCHITECTURE), f"claims {2**63} tensors"),
    "string past the end": (header_of(n_keys=1, rest=struct.pack("<Q", 2**62) + b"\0" * 20), f"claims {2**62} bytes"),
    "array of 2**60 numbers": (
        header_of(n_keys=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**60)),
        f"claims {2**60} numbers",
    ),
    "array of 2**60 strings": (
        header_of(n_keys=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 2**60)),
        f"claims {2**60} strings",
    ),
    "array in an array": (header_of(n_keys=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 20), "type 9"),
    "key twice": (header_of(n_keys=2, rest=ARCHITECTURE * 2), "twice"),
    "no architecture": (
        header_of(n_keys=1, rest=text("k") + struct.pack("<IB", 0, 1)),
        "no general.architecture",
    ),
    "alignment 0": (
        header_of(n_keys=2, rest=ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment",
    ),
    "tensor past the end": (
        header_of(n_tensors=1, n_keys=1, rest=ARCHITECTURE + tensor(dims=(2**61,)) + b"\0" * 64),
        f"claims {2**63} bytes",
    ),
    "99 dimensions": (
        header_of(n_tensors=1, n_keys=1, rest=ARCHITECTURE + text("a") + struct.pack("<I", 99) + b"\0" * 64),
        "99 dimensions",
    ),
    "unknown type": (
        header_of(n_tensors=1, n_keys=1, rest=ARCHITECTURE + tensor(kind=999) + b"\0" * 64),
        "unknown type 999",
    ),
    "half a block": (header_of(n_tensors=1, n_keys=1, rest=ARCHITECTURE + tensor(kind=8) + b"\0" * 64), "blocks of 32"),
    "overlap": (
        header_of(n_tensors=2, n_keys=1, rest=ARCHITECTURE + tensor("a", dims=(16,)) + tensor("b") + b"\0" * 128),
        "overlap",
    ),
    "one name twice": (
        header_of(n_tensors=2, n_keys=1, rest=ARCHITECTURE + tensor("a") + tensor("a", offset=32) + b"\0" * 128),
        "same name",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_of_a_header_is_named(lie: str) -> None:
    data, said = LIES[lie]
    with pytest.raises(IntegrityError) as caught:
        parse_header(data, Path("bad.gguf"))
    assert caught.value.code == "GGUF_BAD"
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["empty.gguf", "absent.gguf", "."])
def test_a_file_that_is_none_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(IntegrityError, match="GGUF_BAD"):
        read_header(tmp_path / name)


def test_two_thousand_mutations_raise_only_gguf_bad_and_stay_small(tiny: Path) -> None:
    """Kills: a count used before it is compared, a decode outside the guard, a struct.error that escapes."""
    whole = tiny.read_bytes()
    draw = random.Random(0)
    extreme = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        match draw.randrange(4):
            case 0:
                del data[draw.randrange(len(data)) :]
            case 1:
                data[draw.randrange(6000)] = draw.randrange(256)
            case 2:
                at = draw.randrange(6000)
                data[at : at + 8] = draw.choice(extreme)
            case 3:
                at = draw.randrange(6000)
                data[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(40))
        try:
            parse_header(bytes(data), tiny)
        except IntegrityError as error:
            assert error.code == "GGUF_BAD"
            n_refused += 1
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000  # kB on Linux; the file has 300 kB
    assert n_refused > 500


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "F32"), ("llama", "F16"), ("llama", "Q8_0"), ("qwen2", "Q4_0")]
)
def test_direct_reading_equals_transformers_own_loader_bit_for_bit(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    path = gguf(tmp_path / "tiny.gguf", architecture=architecture, tied=kind != "F16", kind=kind)
    reference = load_by_transformers(path)
    folder = folder_of_gguf(path)
    weights = load_file(folder / "model.safetensors")
    expected = {name: value for name, value in reference.state_dict().items() if name in weights}
    assert set(reference.state_dict()) - set(weights) <= {"lm_head.weight"}
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    ours, theirs = json.loads((folder / "config.json").read_text()), reference.config.to_dict()
    about_the_file = {"_name_or_path", "_model_name_or_path", "quantization_config", "architectures", "dtype"}
    assert {k: v for k, v in ours.items() if k not in about_the_file} == {
        k: v for k, v in theirs.items() if k in ours and k not in about_the_file
    }


def test_the_folder_holds_tokenizer_template_and_stop_ids(tiny: Path) -> None:
    from tutelage.models.load import load_tokenizer

    folder = folder_of_gguf(tiny)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == SPECIAL[1]
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("ab")]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1


def test_a_conversion_is_made_once_and_a_damaged_one_again(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_gguf(tiny)
    weights = folder / "model.safetensors"
    made = weights.stat().st_ino
    assert folder_of_gguf(tiny) == folder
    assert weights.stat().st_ino == made
    good, status = weights.read_bytes(), weights.stat()
    weights.write_bytes(bytes([*good[:-1], good[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert folder_of_gguf(tiny) == folder
    assert weights.read_bytes() == good
    assert "warning[CHECKSUM]" in capsys.readouterr().err
    assert [entry.name for entry in folder.parent.iterdir() if entry.name.startswith(".")] == []


def test_nothing_is_left_of_a_conversion_that_failed(tmp_path: Path, home: Path) -> None:
    data = bytearray(gguf(tmp_path / "tiny.gguf").read_bytes())
    at = data.index(b"llama.embedding_length") + len(b"llama.embedding_length") + 4
    data[at : at + 4] = struct.pack("<I", 128)
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(IntegrityError, match="MODEL_LOAD"):
        folder_of_gguf(tmp_path / "bad.gguf")
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


def test_scaled_positions_which_a_conversion_would_lose_are_refused(tmp_path: Path) -> None:
    data = gguf(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "scaled.gguf").write_bytes(data.replace(b"blk.1.ffn_norm.weight", b"rope_freqs.0000.weigh"))
    with pytest.raises(IntegrityError, match="rotary"):
        folder_of_gguf(tmp_path / "scaled.gguf")


@pytest.mark.real
def test_the_real_teacher_converts_bit_for_bit_as_transformers_does_it() -> None:
    from tutelage.models.fetch import packaged_model

    path = packaged_model("smollm2-135m-instruct")
    weights = load_file(folder_of_gguf(path) / "model.safetensors")
    reference = load_by_transformers(path).state_dict()
    assert all(torch.equal(weights[name], reference[name]) for name in weights)
    assert set(reference) - set(weights) == {"lm_head.weight"}
