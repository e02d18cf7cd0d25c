"""Models that lie in several places: parts on devices, in the CPU's memory, or on the disk until they are computed.

`device_map` is accelerate's: hooks bring the weights of a part to a device for its forward pass, and drop them behind
it.  Until then such a weight is on torch's `meta` device: it has a shape and no numbers.
"""

import os
import secrets
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tutelage import io
from tutelage.errors import ConfigError
from tutelage.home import home
from tutelage.locks import exclusive, lock_path
from tutelage.types import CausalLM

DeviceMap: TypeAlias = Literal["auto"] | Mapping[str, int | str]
_LOCK = ".lock"
_held: dict[Path, int] = {}  # folders of this process and their locks


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
    """A folder for weights that cannot be read from the model's own files; empty in most cases.

    It is locked as long as the process lives; what killed ones have left is removed here.
    """
    place = home() / "offload"
    io.make_directory(place)
    with exclusive(lock_path(place, "folders"), what=str(place)):  # none looks between a folder and its lock
        for left in filter(Path.is_dir, place.iterdir()):
            if (handle := io.take_lock(left / _LOCK)) is not None:
                io.remove_tree(left)
                os.close(handle)
        folder = place / f"{os.getpid()}-{secrets.token_hex(4)}"
        io.make_directory(folder)
        own = io.take_lock(folder / _LOCK)
        assert own is not None, "nobody else knows its name"
        _held[folder] = own
    return folder


def _remove(folder: Path) -> None:
    io.remove_tree(folder)
    os.close(_held.pop(folder))


def require_parts(model: nn.Module, device_map: DeviceMap) -> None:
    """ConfigError for a name that is no part of the model: such a line would do nothing."""
    parts = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    unknown = [name for name in device_map if name not in parts] if device_map != "auto" else []
    if unknown:
        inside = [name for name, _ in model.named_modules() if name and name.count(".") < 2]
        raise ConfigError(
            "CONFIG", f"teacher.device_map: {unknown[0]!r} is no part of the model; it has {', '.join(inside[:8])}, …"
        )


def settle(model: CausalLM, folder: Path) -> None:
    """Of a model that was loaded with a device map: its head stays in memory, and `folder` goes when the model does.

    The head is asked about every chunk of positions, by the loss and not by the model's own forward pass.
    """
    weakref.finalize(model, _remove, folder)
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
