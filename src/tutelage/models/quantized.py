"""Weights rounded to 8 or 4 bits: while they load, for teachers that do not fit otherwise, or as they are stored.

kind   weights                                          by              runs on
int8   8-bit integers, a scale an output row            torchao         CPU, CUDA
fp8    8-bit floats (e4m3), a scale for each matrix     torchao         CPU, CUDA
int4   4-bit NormalFloat, a scale for 64 weights        bitsandbytes    CUDA (on a CPU it repacks its weights in use)

Embeddings, norms and the head stay as they are, and products are formed in the compute dtype, so a row's answer does
not depend on the other rows of its batch.  NormalFloat: QLoRA, arXiv:2305.14314.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tutelage.errors import ConfigError
from tutelage.types import CausalLM

_LIBRARIES = {"int8": "torchao", "fp8": "torchao", "int4": "bitsandbytes"}
_DEVICES = {"int8": ("cpu", "cuda"), "fp8": ("cpu", "cuda"), "int4": ("cuda",)}


def require(kind: str, *, device: str, dtype: torch.dtype) -> None:
    """ConfigError where weights of this kind cannot be had: another device or dtype, or a library that is missing."""
    runs_on = _DEVICES[kind]
    if device.split(":")[0] not in runs_on:
        others = ", ".join(name for name, devices in _DEVICES.items() if device.split(":")[0] in devices)
        instead = f"set teacher.quantize to {others.replace(', ', ' or ')}" if others else "leave it out"
        raise ConfigError(
            "CONFIG", f"teacher.quantize: {kind} needs {' or '.join(runs_on)}, this run is on {device}; {instead}"
        )
    if dtype == torch.float64:
        raise ConfigError(
            "CONFIG",
            f"teacher.quantize: {kind} computes in float32 or bfloat16, not float64; set teacher.dtype=float32",
        )
    try:
        importlib.import_module(_LIBRARIES[kind])
    except ImportError as error:
        raise ConfigError(
            "MISSING_EXTRA",
            f'teacher.quantize: {kind} needs {_LIBRARIES[kind]}; run: pip install "tutelage[quantized]"',
        ) from error


def settings(kind: str, *, dtype: torch.dtype) -> Any:
    """What transformers is told to load weights of this kind."""
    import transformers

    if kind == "int4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    quantization = importlib.import_module("torchao.quantization")

    own = quantization.Int8WeightOnlyConfig() if kind == "int8" else quantization.Float8WeightOnlyConfig()
    return transformers.TorchAoConfig(own)


def stored_as(config: Any) -> str | None:
    """How a config says that its weights are rounded, as its library calls it; None: they are not."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


def is_quantized(model: CausalLM) -> bool:
    """Whether weights of a model are rounded: it cannot be cast, cut or trained."""
    return stored_as(getattr(model, "config", None)) is not None


def refuse_student(config: Any, *, name: str) -> None:
    """ConfigError[MODEL_LOAD] for a student with rounded weights."""
    if (method := stored_as(config)) is not None:
        raise ConfigError(
            "MODEL_LOAD",
            f"{name} is stored with rounded weights ({method}), which cannot be trained; name the model that it was "
            "made from, in float32, bfloat16 or float16, and let student.quantize round it while it trains",
        )


def refuse_copy(config: Any, *, what: str) -> None:
    """ConfigError[CONFIG] where `what` would be made of a teacher with rounded weights."""
    if (method := stored_as(config)) is not None:
        raise ConfigError("CONFIG", f"{what} of the teacher, whose weights are rounded ({method}); give student.model")


def parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight is made of, by name: integers and scales of a rounded one, else itself."""
    weight: Any = tensor  # what holds several tensors has a protocol that torch's stubs do not know
    if not is_traceable_wrapper_subclass(weight):
        yield name, tensor
        return
    for inner in weight.__tensor_flatten__()[0]:
        yield from parts(f"{name}.{inner}", getattr(weight, inner))


def n_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they lie in memory, tied ones once."""
    plain = (part for name, weight in model.named_parameters() for _, part in parts(name, weight))
    return sum(part.numel() * part.element_size() for part in plain)


def n_parameters(model: CausalLM) -> int:
    """Weights of a model, however many bits each has, tied ones once."""
    if is_quantized(model):
        return int(model.num_parameters())  # two weights of four bits are one byte
    return sum(weight.numel() for weight in model.parameters())
