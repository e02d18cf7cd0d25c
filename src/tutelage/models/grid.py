"""Weights on a grid of small integers: what a student with `quantize` computes with while it learns, and is saved as.

kind   a weight is              with one scale for          a scale keeps   a weight is exact in
int8   scale * -127 … 127       each output row             8 bits          float32
int4   scale * -7 … 7           32 weights of a row         5 bits          float32, bfloat16 (float16 from 1e-6 on)

The largest magnitude of a group lies on the last integer, so nothing is clipped, zero stays zero, and a weight moves by
at most half a scale.  Rows and groups of 32 are what runtimes have a scale for: torchao's and LLM-QAT's int8, Q4_0 of
llama.cpp and torchao's int4.  Q4_0's own rounding uses -8 too, at the price of a whole step of error at the other end.
Scales are themselves rounded, to so few bits that integer * scale is no rounding at all; the last integer stays the
last one, and so rounding what lies on a grid changes no bit.

A student learns by the straight-through estimator (arXiv:1308.3432): the gradient at the rounded weights moves the
weights themselves, as in LLM-QAT (arXiv:2305.17888).  Activations, norms, embeddings and the head stay as they are.

Shape legend: O outputs, I inputs, G groups of a row, S weights of a group (I = G * S).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tutelage import io
from tutelage.errors import ConfigError, NumericError
from tutelage.models.layers import decoder_layers
from tutelage.tensor_file import pieces
from tutelage.types import CausalLM

FORMAT, VERSION = "tutelage codes", 1
CODES, RECORD = "codes.safetensors", "codes.json"
_SMALLEST = 2.0**-100  # of a scale: nothing is divided by zero, and no product is too small for its dtype
_SIGNIFICAND = 24  # bits of a float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The numbers of a kind; `group` None: a whole row has one scale."""

    bits: int
    largest: int
    group: int | None
    scale_bits: int


GRIDS = {
    "int8": Grid(bits=8, largest=127, group=None, scale_bits=8),
    "int4": Grid(bits=4, largest=7, group=32, scale_bits=5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A matrix as integers and scales: weight = code * scale of its group."""

    codes_OI: Tensor  # int8
    scales_OG: Tensor  # float32

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [O, I]."""
        codes_OGS = self.codes_OI.to(dtype).reshape(*self.scales_OG.shape, -1)
        return (codes_OGS * self.scales_OG.to(dtype)[..., None]).reshape(self.codes_OI.shape)


def coded(weight_OI: Tensor, kind: str) -> Coded:
    """The integers and scales that are nearest to a matrix of finite numbers in float32 or wider."""
    codes_OGS, scales_OG = _nearest(weight_OI, GRIDS[kind])
    return Coded(codes_OI=codes_OGS.reshape(weight_OI.shape).to(torch.int8), scales_OG=scales_OG)


def on_grid(weight_OI: Tensor, kind: str) -> Tensor:
    """The nearest matrix on the grid, in the dtype given (float32 or wider); NaN or infinity give NaN."""
    codes_OGS, scales_OG = _nearest(weight_OI, GRIDS[kind])
    return (codes_OGS * scales_OG.to(weight_OI.dtype)[..., None]).reshape(weight_OI.shape)


def _nearest(weight_OI: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Whole numbers [O, G, S] in the weights' dtype, and scales [O, G]; ties to even.

    No whole number is a negative zero, which no integer is.
    """
    weight_OGS = weight_OI.reshape(weight_OI.shape[0], -1, grid.group or weight_OI.shape[1])
    scales_OG = _scales(weight_OGS.abs().amax(2), grid)
    return (weight_OGS / scales_OG.to(weight_OI.dtype)[..., None]).round() + 0.0, scales_OG


def _scales(largest_OG: Tensor, grid: Grid) -> Tensor:
    """float32 [O, G] of `scale_bits` significant bits, to the nearest."""
    scales_OG = (largest_OG.to(torch.float32) / grid.largest).clamp_min(_SMALLEST)
    dropped = _SIGNIFICAND - grid.scale_bits
    bits_OG = scales_OG.view(torch.int32) + (1 << (dropped - 1))
    return (bits_OG & -(1 << dropped)).view(torch.float32)


# --- of a model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Which parameters of a model lie on a grid: by name, whether their inputs come first (Conv1D of GPT-2)."""

    kind: str
    inputs_first: Mapping[str, bool]

    def of(self, name: str, weight: Tensor) -> Tensor:
        """What a parameter is rounded to; one that stays as it is itself."""
        if name not in self.inputs_first:
            return weight
        return on_grid(weight.T, self.kind).T if self.inputs_first[name] else on_grid(weight, self.kind)

    def coded(self, name: str, weight: Tensor) -> Coded:
        """The integers and scales of one of them, outputs first."""
        return coded(weight.T if self.inputs_first[name] else weight, self.kind)


def rounding_of(model: CausalLM, kind: str, *, name: str = "student") -> Rounding:
    """The linear weights of a model's decoder layers, of attention and MLPs; on any device (meta too).

    ConfigError[CONFIG] where one cannot be cut into groups, and for stacked experts, which are no linear layers.
    """
    grid, where = GRIDS[kind], f"{name}.quantize: {kind}"
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found: dict[str, bool] = {}
    for module in (module for layer in decoder_layers(model)[1] for module in layer.modules()):
        stacked = [p for p in module.parameters(recurse=False) if p.ndim == 3 and not isinstance(module, nn.Conv1d)]
        if stacked:
            raise ConfigError(
                "CONFIG",
                f"{where} rounds linear layers, and {type(module).__name__} of {type(model).__name__} is a stack of "
                "experts; leave quantize out",
            )
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            continue
        inputs_first = not isinstance(module, nn.Linear)
        weight = module.get_parameter("weight")
        key, n_inputs = names[id(weight)], weight.shape[0 if inputs_first else 1]
        if n_inputs % (grid.group or 1):
            raise ConfigError(
                "CONFIG",
                f"{where} rounds groups of {grid.group} inputs, and {key} has {n_inputs}; choose widths that are "
                f"multiples of {grid.group}, or quantize=int8",
            )
        found[key] = inputs_first
    return Rounding(kind=kind, inputs_first=found)


@torch.no_grad()
def rounded(model: CausalLM, kind: str | None) -> CausalLM:
    """`model` itself with its linear weights on the grid; without a kind as it is.

    NumericError[NONFINITE], and nothing changed, where a weight is not finite.
    """
    if kind is None:
        return model
    rounding = rounding_of(model, kind)
    for name in rounding.inputs_first:
        if not model.get_parameter(name).isfinite().all():
            raise NumericError(
                "NONFINITE",
                f"{name} holds a number that is not finite, which no {kind} grid has; lower training.learning_rate "
                "and start anew with --force",
            )
    for name in rounding.inputs_first:
        parameter = model.get_parameter(name)
        parameter.copy_(rounding.of(name, parameter))
    return model


def packed_bytes(model: CausalLM, kind: str) -> float:
    """Bytes of a rounded model once its integers are packed: 2 for each scale and each number that is not rounded."""
    grid, rounding = GRIDS[kind], rounding_of(model, kind)
    n_bytes = 0.0
    for name, parameter in model.named_parameters():
        n = parameter.numel()
        if name in rounding.inputs_first:
            outputs = parameter.shape[1 if rounding.inputs_first[name] else 0]
            n_bytes += n * grid.bits / 8 + 2 * (n // grid.group if grid.group else outputs)
        else:
            n_bytes += 2 * n
    return n_bytes


# --- on disk ---------------------------------------------------------------------------------------------------------


def save_codes(model: CausalLM, folder: Path, *, kind: str) -> None:
    """Write the integers and scales of a model on the grid, whole or not at all; see `docs/guide/students.md`."""
    rounding = rounding_of(model, kind)
    partial = folder.with_name(folder.name + ".partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    digest = io.write_new(partial / CODES, pieces(dict(_tensors(model, rounding))))
    record: io.Json = {
        "format": FORMAT,
        "version": VERSION,
        "quantize": kind,
        "group": GRIDS[kind].group,
        "inputs_first": [name for name, first in rounding.inputs_first.items() if first],
        "sha256": digest.sha256,
    }
    io.write_new(partial / RECORD, [json.dumps(record, indent=2).encode()])
    io.commit_directory(partial, folder, replace=True)


def _tensors(model: CausalLM, rounding: Rounding) -> Iterator[tuple[str, Tensor]]:
    for name in rounding.inputs_first:
        found = rounding.coded(name, model.get_parameter(name).detach())
        yield f"{name}.codes", found.codes_OI
        yield f"{name}.scales", found.scales_OG
