"""Models that lie in several places: parts on devices, in the CPU's memory, or on the disk until they are computed.

`device_map` is accelerate's: hooks bring the weights of a part to a device for its forward pass, and drop them behind
it.  Until then such a weight is on torch's `meta` device: it has a shape and no numbers.
"""

import itertools
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tutelage import io
from tutelage.home import home
from tutelage.types import CausalLM

DeviceMap: TypeAlias = Literal["auto"] | Mapping[str, int | str]
_SERIAL = itertools.count()


def device_of(model: CausalLM) -> torch.device:
    """Where a model's head lies: what is asked of it goes there, and its answers are there."""
    output = model.get_output_embeddings()
    weight: Tensor = output.weight if output is not None else next(model.parameters())
    return weight.device


def summary(model: nn.Module) -> str:
    """A sentence for people: how much of a model is in the memory of a device."""
    n_weights = sum(p.numel() for p in model.parameters())
    n_away = sum(p.numel() for p in model.parameters() if p.is_meta)
    places = sorted({str(p.device) for p in model.parameters() if not p.is_meta})
    away = f"; {n_away:,} weights are read again in every forward pass" if n_away else ""
    return f"{n_weights - n_away:,} of {n_weights:,} weights lie on {', '.join(places)}{away}"


def offload_folder() -> Path:
    """A folder of this process for weights that cannot be read from the model's own files; empty in most cases."""
    return home() / "offload" / f"{os.getpid()}-{next(_SERIAL)}"


def settle(model: CausalLM, folder: Path) -> None:
    """Of a model that was loaded with a device map: its head stays in memory, and `folder` goes when the model does.

    The head is asked about every chunk of positions, by the loss and not by the model's own forward pass.
    """
    weakref.finalize(model, io.remove_tree, folder)
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or not output.weight.is_meta:
        return
    own = {name: fetched(output, name) for name, _ in output.named_parameters(recurse=False)}
    _keep(output, own)
    if model.config.get_text_config().tie_word_embeddings and embedding.weight.is_meta:
        _keep(embedding, {"weight": output.weight})


def _keep(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """These weights stay with the module."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(module)
    for name, weight in weights.items():
        own = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        setattr(module, name, own)


@torch.no_grad()
def fetched(module: nn.Module, name: str) -> Tensor:
    """A weight or buffer of a module with its numbers, wherever they lie; a copy if they are not in memory."""
    tensor: Tensor = getattr(module, name)
    if not tensor.is_meta:
        return tensor
    from accelerate.utils import align_module_device

    with align_module_device(module):
        there: Any = getattr(module, name)
        return there.detach().clone()  # type: ignore[no-any-return]  # accelerate is untyped


def numbers(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """An entry of a model's `state_dict` with its numbers, read alone: a model on the disk is never whole in memory."""
    if not tensor.is_meta:
        return tensor
    owner, _, attribute = name.rpartition(".")
    return fetched(model.get_submodule(owner), attribute)
