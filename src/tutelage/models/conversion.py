"""A GGUF file as a Hugging Face folder in float32, made once and kept under `home()/models`.

The folder is committed whole, with the SHA-256 of each file in its manifest; a damaged one is made again.  Llama and
Qwen2 files are read directly (seconds: the header is parsed once), every other architecture by transformers' own
loader (minutes for large vocabularies: it parses the header several times).  Tests hold the two equal, bit for bit.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tutelage import console, io, reading
from tutelage.errors import IntegrityError
from tutelage.home import home
from tutelage.locks import exclusive
from tutelage.models.gguf import GgufHeader, GgufTensor, Value, read_header
from tutelage.models.quiet import quiet_transformers
from tutelage.models.whole import require_whole

Config: TypeAlias = Any  # transformers' configs declare their fields at run time

CONVERTER = 1  # rises when the same file would become another folder
_MANIFEST = "manifest.json"
_BYTES_PER_WEIGHT = 4

_CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_DIRECT = {"llama": {**_CONFIG_KEYS, "rope.dimension_count": "head_dim"}, "qwen2": _CONFIG_KEYS}
_IGNORED_KEYS = {"qwen2": {"rope.dimension_count"}}
_TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
}


def folder_of_gguf(path: Path) -> Path:
    """A Hugging Face folder with the weights (float32), tokenizer and chat template of a GGUF file."""
    header = read_header(path)
    source = _sha256_once(path, _stat_of(path))
    final = home() / "models" / source[:16]
    with exclusive(final.with_name(f"{final.name}.lock"), what=f"the conversion of {path.name}"):
        if not _is_good(final, source=source):
            _convert(header, source=source, final=final)
    return final


def _stat_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _sha256_once(path: Path, stat: tuple[int, int]) -> str:
    """Each file is hashed once a process, again when its size or time has changed."""
    return reading.sha256_file(path)


def _is_good(folder: Path, *, source: str) -> bool:
    """Whether the folder is there and whole; warns when it is there and damaged."""
    if not (folder / _MANIFEST).is_file():
        return False
    try:
        manifest = reading.read_json(folder / _MANIFEST)
        if manifest["converter"] != CONVERTER:
            return False
        files, named = manifest["files"], manifest["source_sha256"]
        bad = [n for n in files if _sha256_once(folder / n, _stat_of(folder / n)) != files[n]]
    except (IntegrityError, KeyError, TypeError, OSError) as error:
        console.warning("CHECKSUM", f"{folder} is damaged ({error}); it is made again from the GGUF file")
        return False
    if bad or named != source:
        console.warning("CHECKSUM", f"{folder / (bad or [_MANIFEST])[0]} is damaged; made again from the GGUF file")
        return False
    return True


def _convert(header: GgufHeader, *, source: str, final: Path) -> None:
    _refuse_unfaithful(header)
    n_weights = sum(torch.Size(tensor.shape).numel() for tensor in header.tensors)
    io.require_free_space(final, n_weights * _BYTES_PER_WEIGHT)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    try:
        with quiet_transformers():
            _write_model(header, partial)
            _write_tokenizer(header, partial)
        files = {entry.name: reading.sha256_file(entry) for entry in sorted(partial.iterdir())}
        manifest: io.Json = {
            "converter": CONVERTER,
            "source_sha256": source,
            "source_name": header.path.name,
            "files": files,
        }
        io.write_json(partial / _MANIFEST, manifest)
        io.commit_directory(partial, final, replace=True)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise IntegrityError(
            "MODEL_LOAD",
            f"{header.path} ({header.architecture}) cannot be converted: {_first_line(error)}; "
            "use the model's Hugging Face folder instead",
        ) from error
    finally:
        io.remove_tree(partial)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _refuse_unfaithful(header: GgufHeader) -> None:
    """What transformers' loader would leave out without a word (seen in 5.23) is refused."""
    scaling = f"{header.architecture}.rope.scaling.type"
    scaled = str(header.metadata.get(scaling, "none")) != "none"
    if scaled or any(tensor.name.startswith("rope_freqs") for tensor in header.tensors):
        raise IntegrityError(
            "MODEL_LOAD",
            f"{header.path} scales its rotary positions, which a GGUF conversion would lose; "
            "use the model's Hugging Face folder or hub id instead",
        )


def _write_model(header: GgufHeader, folder: Path) -> None:
    if _reads_directly(header):
        _write_direct(header, folder)
    else:
        console.note("SLOW", f"{header.path.name}: {header.architecture} is read by transformers' own GGUF loader")
        _write_by_transformers(header.path, folder)


def _reads_directly(header: GgufHeader) -> bool:
    """Only when every key of the architecture is one that we know how to carry."""
    known = _DIRECT.get(header.architecture, {}).keys() | _IGNORED_KEYS.get(header.architecture, set())
    prefix = header.architecture + "."
    keys = {key.removeprefix(prefix) for key in header.metadata if key.startswith(prefix)}
    return bool(known) and keys <= known and "mistral" not in str(header.metadata.get("general.name", "")).lower()


# --- read directly ---------------------------------------------------------------------------------------------------


def _write_direct(header: GgufHeader, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = direct_config(header)
    if config.num_hidden_layers > len(header.tensors):
        raise ValueError(f"claims {config.num_hidden_layers} layers and has {len(header.tensors)} tensors")
    with torch.device("meta"):  # names and shapes only: nothing is allocated on the file's word
        skeleton = AutoModelForCausalLM.from_config(config)
    weights = direct_weights(header, config)
    expected = {name: tuple(t.shape) for name, t in skeleton.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        first = wrong[0]
        raise ValueError(f"{len(wrong)} tensors do not fit, first: {first} {found.get(first)} vs {expected.get(first)}")
    config.architectures = [type(skeleton).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def direct_config(header: GgufHeader) -> Config:
    """The Hugging Face config that a Llama or Qwen2 GGUF header describes."""
    from transformers import AutoConfig

    names, metadata = _DIRECT[header.architecture], header.metadata
    fields: dict[str, Value] = {}
    for key, name in names.items():
        if (value := metadata.get(f"{header.architecture}.{key}")) is not None:
            fields[name] = value
    for key, name in _TOKEN_IDS.items():
        if (value := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            fields[name] = value
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    fields.setdefault("vocab_size", len(tokens) if isinstance(tokens, list) else 0)
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    return AutoConfig.for_model(header.architecture, tie_word_embeddings=tied, **fields)


def direct_weights(header: GgufHeader, config: Config) -> dict[str, Tensor]:
    """Every tensor of the file in float32 under its Hugging Face name."""
    import numpy as np

    names = _hugging_face_names(header.architecture, config)
    with header.path.open("rb") as file:
        data = np.memmap(file, dtype=np.uint8, mode="r")
        return {
            names[tensor.name]: _dequantized(data, tensor, header=header, config=config) for tensor in header.tensors
        }


def _hugging_face_names(architecture: str, config: Config) -> Mapping[str, str]:
    """GGUF name -> Hugging Face name; a name that is in neither list is a KeyError, hence an error with its name."""
    layer = {
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    }
    for part in "qkv":
        for kind in ("weight", "bias"):
            layer[f"attn_{part}.{kind}"] = f"self_attn.{part}_proj.{kind}"
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    for index in range(config.num_hidden_layers):
        names |= {f"blk.{index}.{short}": f"model.layers.{index}.{long}" for short, long in layer.items()}
    return names


def _dequantized(data: Any, tensor: GgufTensor, *, header: GgufHeader, config: Config) -> Tensor:
    """One tensor in float32; llama.cpp stores Llama's query and key rows in rotary pairs, transformers in halves."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    raw = data[tensor.start : tensor.start + tensor.n_bytes]
    kind = GGMLQuantizationType(tensor.kind)
    stored = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
    blocks = raw.view(stored) if stored is not None else raw
    flat = dequantize(blocks.reshape(tensor.shape[0] if len(tensor.shape) > 1 else 1, -1), kind)
    weight = np.array(flat, dtype=np.float32).reshape(tensor.shape)  # a copy: the memory map is closed later
    if header.architecture == "llama" and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
        n_heads = config.num_attention_heads if ".attn_q." in tensor.name else config.num_key_value_heads
        pairs = weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, *weight.shape[1:])
        weight = np.ascontiguousarray(pairs.swapaxes(2, 1)).reshape(tensor.shape)
    return torch.from_numpy(weight)


# --- read by transformers --------------------------------------------------------------------------------------------


def _write_by_transformers(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    read = load_by_transformers(path)
    config = read.config
    for leftover in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(leftover, None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


def load_by_transformers(path: Path) -> Any:
    """The model as transformers' own GGUF loader makes it: slow, the reference of our direct reading."""
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # from 5.20 on the weights may stay packed, by a kernel from the hub
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    require_whole(str(path), info)
    return model


def _write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Saved by the class that AutoTokenizer would choose, without the second and third reading that it makes."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        header.path.parent, gguf_file=header.path.name, local_files_only=True
    )
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        tokenizer.chat_template = template
    for machine_dependent in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(machine_dependent, None)
    tokenizer.save_pretrained(folder)
