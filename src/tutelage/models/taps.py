"""What a model computes inside: the outputs of its decoder layers, and the queries, keys and values of their attention.

Forward hooks on a model's own modules, in place for one forward pass.  Queries and keys are those of the projections,
before any norm of their own and before positions are rotated in.

Shape legend: B rows, T positions, W width of what is tapped.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigError
from tutelage.models.head import spread_ids, trunk
from tutelage.models.layers import decoder_layers
from tutelage.models.placement import device_of
from tutelage.types import CausalLM, Tap, TokenView

_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_FUSED = "c_attn"  # GPT-2: queries, keys and values side by side
_THIRD = {"query": 0, "key": 1, "value": 2}
_PROBE = 4  # positions


def n_layers(model: CausalLM) -> int:
    """How many decoder layers a model has; ConfigError[FEATURES] where they cannot be found."""
    try:
        return len(decoder_layers(model)[1])
    except ConfigError as error:
        raise ConfigError(
            "FEATURES", f"{type(model).__name__}: no list of decoder layers found; leave the terms with features out"
        ) from error


@contextmanager
def tapped(model: CausalLM, taps: Iterable[Tap]) -> Iterator[Mapping[Tap, Tensor]]:
    """What the one forward pass inside computes at these places, [B, T, W] each, with the graph of the pass."""
    found: dict[Tap, Tensor] = {}
    with ExitStack() as stack:
        for tap in taps:
            module, third = _place(model, tap)
            handle = module.register_forward_hook(partial(_keep, found, tap, third))
            stack.callback(handle.remove)
        yield found


@torch.no_grad()
def widths(model: CausalLM, taps: Iterable[Tap]) -> dict[Tap, int]:
    """The width of what is computed at these places, measured; ConfigError[FEATURES] where nothing usable is."""
    taps = tuple(taps)
    device = device_of(model)
    rows = model.get_output_embeddings().weight.shape[0]
    ids_BT = spread_ids(rows)[:, :_PROBE].to(device)
    with tapped(model, taps) as found:
        trunk(model, TokenView.of(ids_BT, ids_BT))
    for tap in taps:
        if tap not in found or found[tap].shape[:-1] != ids_BT.shape:
            shape = tuple(found[tap].shape) if tap in found else "nothing"
            raise ConfigError(
                "FEATURES",
                f"{type(model).__name__}: {shape} as the {tap.part} of layer {tap.layer}, expected one vector a "
                "position; leave the term with features out",
            )
    return {tap: found[tap].shape[-1] for tap in taps}


def _keep(found: dict[Tap, Tensor], tap: Tap, third: int | None, _module: nn.Module, _inputs: Any, output: Any) -> None:
    """The hook: a layer may give a tuple, whose first entry are its states."""
    state_BTW = output[0] if isinstance(output, tuple) else output
    found[tap] = state_BTW if third is None else state_BTW.chunk(3, dim=-1)[third]


def _place(model: CausalLM, tap: Tap) -> tuple[nn.Module, int | None]:
    """(module, which third of its output) of a tap."""
    layer = decoder_layers(model)[1][tap.layer]
    if tap.part == "output":
        return layer, None
    for name, third in ((_PROJECTIONS[tap.part], None), (_FUSED, _THIRD[tap.part])):
        modules = [module for path, module in layer.named_modules() if path.rpartition(".")[2] == name]
        if len(modules) == 1:
            return modules[0], third
    raise ConfigError(
        "FEATURES",
        f"{type(model).__name__}: layer {tap.layer} has no {_PROJECTIONS[tap.part]} of its own; attention_relations "
        "need q_proj, k_proj, v_proj or c_attn: take hidden_states",
    )
