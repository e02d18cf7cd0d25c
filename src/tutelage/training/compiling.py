"""`training.compile`: the decoder layers of the models of a run, compiled by `torch.compile` while it trains.

Layer by layer, so that equal layers are compiled once, and for any number of rows and any length, so that a batch that
is a little shorter needs no kernels of its own, and a run that goes on has the same ones.  Outside of `compiled`, and
inside `plain`, the models are as they were: generating and measuring would compile again for shapes of their own.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tutelage import console
from tutelage.errors import ConfigError
from tutelage.models.layers import decoder_layers
from tutelage.models.quantized import is_quantized
from tutelage.types import CausalLM

_KERNELS = 64  # of one piece of code: models x (training, asked) x (one row, several) x kinds of layers


def require_compiler(device: str) -> None:
    """ConfigError[COMPILE] where nothing can be compiled for this device: before models are loaded, not at step 1."""
    if sys.version_info < (3, 12) and "setuptools" not in sys.modules:
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")  # else it asserts that nobody has imported that
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports, once a process: distutils, setuptools
            torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # a compiler from outside: it fails in ways of its own
        missing = "a C++ compiler" if device == "cpu" else "Triton and a C compiler"
        found = f"training.compile: torch.compile does not work here on {device} ({_first_line(error)})"
        raise ConfigError(
            "COMPILE", f"{found}; it needs {missing}: install it, or set training.compile=false"
        ) from error


@contextmanager
def compiled(models: Sequence[CausalLM]) -> Iterator[None]:
    """The layers of these models run compiled inside, as before outside; ConfigError[COMPILE] where that fails.

    Left as they are: models with rounded weights that no student learns from, and those that lie on several devices.
    """
    layers = _layers(models)
    for layer in layers:
        layer.compile(dynamic=True)
    if layers:
        console.say("training.compile: the first steps compile, which takes a minute or so")
    more_kernels = torch._dynamo.config.patch(recompile_limit=_KERNELS)
    same_dropout = torch._inductor.config.patch(fallback_random=True)
    try:
        with more_kernels, same_dropout, _without_its_warnings():
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ConfigError(
            "COMPILE",
            f"training.compile: a layer cannot be compiled ({_first_line(error)}); set training.compile=false",
        ) from error
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def plain(models: Iterable[CausalLM]) -> Iterator[None]:
    """Inside `compiled`: these models as they were, for what a user's own function does with them."""
    found = [layer for model in models for layer in model.modules() if layer._compiled_call_impl is not None]
    calls = [_taken(layer) for layer in found]
    try:
        yield
    finally:
        for layer, call in zip(found, calls, strict=True):
            layer._compiled_call_impl = call


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """torch.compile warns of what it does itself: it looks at gradients in between, and imports distutils."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", message="The distutils package is deprecated")
        yield


def _taken(layer: nn.Module) -> Any:
    """What calls the compiled layer; the layer itself is called as it was from now on."""
    call, layer._compiled_call_impl = layer._compiled_call_impl, None
    return call


def _layers(models: Sequence[CausalLM]) -> list[nn.Module]:
    try:
        return [layer for model in models if _can(model) for layer in decoder_layers(model)[1]]
    except ConfigError as error:
        where = "a model of the run has no list of layers that could be compiled"
        raise ConfigError("COMPILE", f"training.compile: {where}; set training.compile=false") from error


def _can(model: CausalLM) -> bool:
    return not is_quantized(model) and getattr(model, "hf_device_map", None) is None


def _probe(x_N: torch.Tensor) -> torch.Tensor:
    return x_N.sin() + 1.0


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
