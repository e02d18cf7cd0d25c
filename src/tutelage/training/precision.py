"""One compute path for every model of a run, and float32 masters of the student's weights.

A student that computes in bfloat16 has bfloat16 working weights, like its teacher, and float32 masters that the
optimizer updates: with autocast instead, teacher and student would differ by a KL of 5e-4 before any training.

A student with `quantize` computes with masters rounded to a grid, in every dtype.  What back-propagation gives are then
the gradients at the rounded weights, and they move the masters: the straight-through estimator.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigError
from tutelage.models.adapters import learned_parameters
from tutelage.models.cast import cast
from tutelage.models.grid import Rounding

_MEASURE_S = 1.0  # for each of two dtypes
_MEASURE_SIZE = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePath:
    """What decides the bits of a forward pass: shared by teacher and students, recorded for resume."""

    device: str
    weight_dtype: torch.dtype
    threads: int

    def as_json(self) -> dict[str, str | int]:
        """For provenance and resume."""
        return {"device": self.device, "weight_dtype": str(self.weight_dtype).split(".")[-1], "threads": self.threads}


def choose_device(wanted: str, *, field: str = "training.device") -> str:
    """`wanted`, or for `auto` the first of cuda, mps, cpu; ConfigError[CONFIG] when what `field` names is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(wanted.split(":")[0], False):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise ConfigError("CONFIG", f"{field}: '{wanted}' is not there; this machine has: {there}")
    number = int(wanted.partition(":")[2] or 0)
    if wanted.startswith("cuda") and number >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ConfigError("CONFIG", f"{field}: '{wanted}' is not there; this machine has: cuda:0 to cuda:{last}")
    return wanted


def choose_compute_path(precision: str, *, device: str, threads: int | None = None) -> ComputePath:
    """The compute path for `auto`, `float32`, `bfloat16` or `float64` (the last for tests).

    `auto` takes bfloat16 on a GPU that has it, and on a CPU only where a two-second measurement says it is faster.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(device)
    if precision == "auto":
        if device.startswith("cuda"):
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        else:
            dtype = torch.bfloat16 if device == "cpu" and _bfloat16_speedup() > 1.2 else torch.float32
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[precision]
    return ComputePath(device=device, weight_dtype=dtype, threads=torch.get_num_threads())


def _bfloat16_speedup() -> float:
    """Products a second in bfloat16 over float32 on this CPU, measured for about two seconds."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(_MEASURE_SIZE, _MEASURE_SIZE, dtype=dtype)
        a @ a
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < _MEASURE_S:
            a @ a
            count += 1
        rates[dtype] = count / (time.perf_counter() - started)
    return rates[torch.bfloat16] / rates[torch.float32]


class MasterWeights:
    """The weights that an optimizer updates: the model's own, or copies of those that it computes with rounded.

    These are all of them where it computes in less than float32, else those that lie on a grid of integers.  Of an
    adapted model they are its adapters alone.
    """

    def __init__(self, model: nn.Module, *, weight_dtype: torch.dtype, rounding: Rounding | None = None) -> None:
        """`model` holds the start weights in float32 or wider; afterwards it computes in `weight_dtype`, rounded."""
        self.model = model
        self._rounding = rounding
        wide, is_narrow = torch.promote_types(weight_dtype, torch.float32), weight_dtype.itemsize < 4
        self._copies = {
            name: nn.Parameter(p.detach().to(wide, copy=True))
            for name, p in learned_parameters(model).items()
            if is_narrow or (rounding is not None and name in rounding.inputs_first)
        }
        cast(model, weight_dtype)
        self.parameters = learned_parameters(model)
        self.parameters |= self._copies
        self.publish()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of one backward pass to the masters' and clear them on the model."""
        for name, working in self._working().items():
            if working.grad is None:
                continue
            master = self._copies[name]
            if master.grad is None:
                master.grad = working.grad.to(master.dtype)
            else:
                master.grad += working.grad
            working.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the working weights, rounded to their grid and dtype."""
        for name, working in self._working().items():
            master = self._copies[name]
            working.copy_(self._rounding.of(name, master) if self._rounding is not None else master)

    def _working(self) -> dict[str, nn.Parameter]:
        """The model's own weights of which there are copies."""
        learned = learned_parameters(self.model) if self._copies else {}
        return {name: learned[name] for name in self._copies}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None
        for working in self.model.parameters():
            working.grad = None

    def state(self) -> dict[str, Tensor]:
        """The masters by parameter name (a tied weight once), detached, not copied."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over masters saved by `state`, and publish them."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
        self.publish()
