"""Which channels, MLP neurons and heads matter: measured by what they carry on a sample of the training text.

As in Minitron (arXiv:2407.14679) by activations alone, in one forward pass:

    channel     mean |output of a norm|, summed over all norms
    MLP neuron  root mean square of its activation, times the norm of the column that it writes with
    head        root mean square of what it adds to the residual stream; of a group the sum of its heads'

Shape legend: N trained positions, D hidden size, F MLP neurons, H heads, K dimension of a head, L layers, M norms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.losses.support import wide
from tutelage.models.anatomy import Anatomy, Sizes, anatomy_of
from tutelage.models.head import trunk
from tutelage.models.width import Kept
from tutelage.types import Batch, CausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What was measured, float64 on the CPU.  `shares_MD` are mean squares of a norm's input, its rms taken as 1."""

    hidden_D: Tensor
    mlp_LF: Tensor
    heads_LH: Tensor
    shares_MD: Tensor
    n_positions: int


@torch.no_grad()
def measure_widths(model: CausalLM, batches: Sequence[Batch]) -> Importance:
    """The importance of each channel, neuron and head at the trained positions of `batches`; deterministic.

    ConfigError[WIDTH] for a model that is not understood.
    """
    anatomy = anatomy_of(model)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with _watched(model, anatomy, positions_N=batch.view.index_N, sums=sums):
            trunk(model, batch.view)
    n_positions = sum(batch.n_trained for batch in batches)
    outputs_MD = torch.stack([sums[f"{name} output"] for name in anatomy.norms])
    layers = range(anatomy.n_layers)
    return Importance(
        hidden_D=outputs_MD.sum(0) / n_positions,
        mlp_LF=torch.stack([sums[f"mlp {layer}"] for layer in layers]).div(n_positions).sqrt(),
        heads_LH=torch.stack([sums[f"heads {layer}"] for layer in layers]).div(n_positions).clamp(min=0).sqrt(),
        shares_MD=torch.stack([sums[f"{name} input"] for name in anatomy.norms]) / n_positions,
        n_positions=n_positions,
    )


@contextmanager
def _watched(model: CausalLM, anatomy: Anatomy, *, positions_N: Tensor, sums: dict[str, Tensor]) -> Iterator[None]:
    """Inside, every forward pass adds to `sums` what its trained positions say."""

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value.cpu().double() if name in sums else value.cpu().double()

    def trained(activation: Tensor) -> Tensor:
        return activation.flatten(0, 1).index_select(0, positions_N).to(wide(activation.dtype))

    def norm(name: str) -> Callable[..., None]:
        def after(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            squares_ND = trained(inputs[0]).square()
            add(f"{name} input", (squares_ND / squares_ND.mean(-1, keepdim=True).clamp(min=1e-30)).sum(0))
            add(f"{name} output", trained(output).abs().sum(0))

        return after

    def mlp(layer: int, down: nn.Linear) -> Callable[..., None]:
        columns_F = down.weight.to(wide(down.weight.dtype)).square().sum(0)

        def before(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            add(f"mlp {layer}", trained(inputs[0]).square().sum(0) * columns_F)

        return before

    def heads(layer: int, out: nn.Linear) -> Callable[..., None]:
        weight_DHK = out.weight.reshape(out.weight.shape[0], -1, anatomy.head_dim)
        weight_HDK = weight_DHK.to(wide(weight_DHK.dtype)).transpose(0, 1)
        gram_HKK = weight_HDK.transpose(1, 2) @ weight_HDK

        def before(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            read_NHK = trained(inputs[0]).reshape(positions_N.shape[0], -1, anatomy.head_dim)
            add(f"heads {layer}", torch.einsum("nhk,hkj,nhj->h", read_NHK, gram_HKK, read_NHK))

        return before

    modules: dict[str, Any] = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(norm(name)) for name in anatomy.norms]
    for layer in range(anatomy.n_layers):
        down = modules[f"{anatomy.blocks}.{layer}.mlp.down_proj"]
        out = modules[f"{anatomy.blocks}.{layer}.self_attn.o_proj"]
        hooks += [down.register_forward_pre_hook(mlp(layer, down)), out.register_forward_pre_hook(heads(layer, out))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def choose_widths(model: CausalLM, importance: Importance, *, sizes: Sizes) -> Kept:
    """The most important of each, as many as `sizes` says; of equals the first."""
    anatomy = anatomy_of(model)
    hidden = _largest(importance.hidden_D, sizes.hidden)
    shares_M = importance.shares_MD[:, hidden].sum(-1) / importance.shares_MD.sum(-1)
    factors_M = (shares_M * anatomy.sizes.hidden / sizes.hidden).sqrt()
    narrower = sizes.hidden < anatomy.sizes.hidden
    return Kept(
        hidden=tuple(hidden),
        mlp=tuple(tuple(_largest(of_F, sizes.mlp)) for of_F in importance.mlp_LF),
        heads=tuple(_heads(of_H, anatomy=anatomy, sizes=sizes) for of_H in importance.heads_LH),
        norm_factors=dict(zip(anatomy.norms, factors_M.tolist(), strict=True)) if narrower else {},
    )


def _largest(values: Tensor, n_kept: int) -> list[int]:
    """The places of the largest values, rising."""
    order: list[int] = values.argsort(descending=True, stable=True)[:n_kept].tolist()
    return sorted(order)


def _heads(of_H: Tensor, *, anatomy: Anatomy, sizes: Sizes) -> tuple[int, ...]:
    """Of a layer the best groups, and in each of them the best heads."""
    per_group = anatomy.sizes.heads // anatomy.sizes.groups
    groups = _largest(of_H.view(anatomy.sizes.groups, per_group).sum(-1), sizes.groups)
    n_heads = sizes.heads // sizes.groups
    return tuple(
        group * per_group + head
        for group in groups
        for head in _largest(of_H[group * per_group : (group + 1) * per_group], n_heads)
    )


# --- in JSON: a bit each, so that ten thousand neurons are a line ---
def to_json(kept: Kept) -> dict[str, Any]:
    """What a resumed run takes up again."""
    return {
        "hidden": _bits(kept.hidden),
        "mlp": [_bits(layer) for layer in kept.mlp],
        "heads": [_bits(layer) for layer in kept.heads],
        "norm_factors": dict(kept.norm_factors),
    }


def from_json(value: Mapping[str, Any]) -> Kept:
    """The inverse of `to_json`."""
    return Kept(
        hidden=_places(value["hidden"]),
        mlp=tuple(_places(layer) for layer in value["mlp"]),
        heads=tuple(_places(layer) for layer in value["heads"]),
        norm_factors={name: float(factor) for name, factor in value["norm_factors"].items()},
    )


def _bits(places: Sequence[int]) -> str:
    return f"{sum(1 << place for place in places):x}"


def _places(bits: str) -> tuple[int, ...]:
    number = int(bits, 16)
    return tuple(place for place in range(number.bit_length()) if number >> place & 1)
