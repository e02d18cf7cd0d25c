"""A model with fewer channels, MLP neurons and heads, made of the weights of a wider one.

Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation (Minitron), arXiv:2407.14679.

A norm divides by the root of the mean square over the channels.  With fewer of them that mean is another one, so each
norm's weight is multiplied by what was measured: rms over the kept channels / rms over all, on average.  Where the
channels taken out are zero this is sqrt(all / kept), and, with an epsilon of `all / kept` times the old one, the narrow
model computes what the wide one did.  Norms over the channels of one head (Qwen3) share that epsilon though their width
stays: an effect of the order of the epsilon itself.

Shape legend: D hidden size.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from tutelage.errors import ConfigError
from tutelage.models.anatomy import Anatomy, Axis, Sizes, anatomy_of, sizes_of
from tutelage.models.student import empty
from tutelage.types import CausalLM

ROUNDED_TO = 8  # a share of channels or neurons becomes a multiple of this


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a narrow model keeps, rising: channels, and by layer MLP neurons and heads.

    `norm_factors` by module: what the weight of each norm over all channels is multiplied by.
    """

    hidden: tuple[int, ...]
    mlp: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]
    norm_factors: Mapping[str, float]


def wanted_sizes(
    config: Any,
    *,
    hidden: float | None = None,
    mlp: float | None = None,
    heads: float | None = None,
    key_value_heads: int | None = None,
) -> Sizes:
    """The widths that a recipe asks of a teacher with this config; below 1 a number is a share.

    Without `key_value_heads` whole groups of heads are kept, with it as many heads of each group.  A share of the
    channels becomes one that the heads divide where the family asks for that.  Raises ConfigError[WIDTH] for more than
    the teacher has, heads that make no equal groups, and widths that its family's config refuses.
    """
    return _as_saved(config, _asked_sizes(config, hidden, mlp, heads, key_value_heads), hidden=hidden)


def _as_saved(config: Any, asked: Sizes, *, hidden: float | None) -> Sizes:
    """Sizes that transformers saves: of most families the heads divide the channels, though their own width stays."""
    if _is_valid(config, asked):
        return asked
    own, _ = sizes_of(config)
    others = [n for n in range(asked.heads, own.hidden + 1, asked.heads) if _is_valid(config, replace(asked, hidden=n))]
    is_share = hidden is not None and hidden < 1
    wanted = own.hidden * hidden if hidden is not None and is_share else asked.hidden
    others.sort(key=lambda n: (abs(n - wanted), n % ROUNDED_TO))
    if others and is_share:
        return replace(asked, hidden=others[0])
    way = f"hidden={' or '.join(str(n) for n in sorted(others[:2]))}" if others else "other heads"
    found = f"{asked.hidden} channels and {asked.heads} heads"
    raise ConfigError("WIDTH", f"student.width: {type(config).__name__} takes no {found} together; give {way}")


def _is_valid(config: Any, sizes: Sizes) -> bool:
    try:
        narrow_config(config, sizes).validate()
    except StrictDataclassError:
        return False
    return True


def _asked_sizes(
    config: Any, hidden: float | None, mlp: float | None, heads: float | None, key_value_heads: int | None
) -> Sizes:
    own, _ = sizes_of(config)
    per_group = own.heads // own.groups
    step = per_group if key_value_heads is None else key_value_heads
    asked = Sizes(
        hidden=_number(hidden, own.hidden, name="hidden", step=ROUNDED_TO),
        mlp=_number(mlp, own.mlp, name="mlp", step=ROUNDED_TO),
        heads=_number(heads, own.heads, name="heads", step=step),
        groups=0,
    )
    if key_value_heads is None:
        if asked.heads % per_group:
            raise ConfigError(
                "WIDTH",
                f"student.width.heads: {asked.heads}, and the teacher's {own.heads} heads share keys and values by "
                f"{per_group}; give a multiple of {per_group}, or student.width.key_value_heads too",
            )
        return replace(asked, groups=asked.heads // per_group)
    if heads is None:
        asked = replace(asked, heads=per_group * key_value_heads)
    if key_value_heads > own.groups or asked.heads % key_value_heads or asked.heads > per_group * key_value_heads:
        raise ConfigError(
            "WIDTH",
            f"student.width: {asked.heads} heads on {key_value_heads} key_value_heads; the teacher has {own.heads} on "
            f"{own.groups}: give at most {own.groups} key_value_heads, and heads that are 1 to {per_group} times as "
            "many",
        )
    return replace(asked, groups=key_value_heads)


def _number(asked: float | None, own: int, *, name: str, step: int) -> int:
    if asked is None:
        return own
    if asked < 1:
        return min(own, max(1, int(asked * own / step + 0.5)) * step)
    if asked > own:
        raise ConfigError("WIDTH", f"student.width.{name}: {asked:.0f}, and the teacher has {own}; give 1 to {own}")
    return int(asked)


def narrow_config(config: Any, sizes: Sizes) -> Any:
    """A copy of a transformers config with these widths; a head keeps its dimension."""
    own, head_dim = sizes_of(config)
    made = copy.deepcopy(config)
    text = made.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_attention_heads = sizes.hidden, sizes.mlp, sizes.heads
    text.head_dim = head_dim
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = sizes.groups
    if getattr(text, "rms_norm_eps", None) is not None and sizes.hidden != own.hidden:
        text.rms_norm_eps = text.rms_norm_eps * own.hidden / sizes.hidden
    return made


@torch.no_grad()
def narrowed(model: CausalLM, kept: Kept) -> CausalLM:
    """A new model of the weights of `model` that `kept` names, in its dtype and on its device; tied weights stay tied.

    Keeping everything gives the same weights bitwise.  ConfigError[WIDTH] for a model that is not understood.
    """
    anatomy = anatomy_of(model)
    sizes = Sizes(
        hidden=len(kept.hidden),
        mlp=len(kept.mlp[0]),
        heads=len(kept.heads[0]),
        groups=len(_groups(kept.heads[0], anatomy)),
    )
    made = empty(narrow_config(model.config, sizes), dtype=next(model.parameters()).dtype)
    weights = {name: _cut(name, tensor, anatomy=anatomy, kept=kept) for name, tensor in model.state_dict().items()}
    if sizes.hidden != anatomy.sizes.hidden:
        _rescale(weights, anatomy=anatomy, kept=kept)
    made.load_state_dict(weights, strict=True)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(next(model.parameters()).device)


def _groups(heads: tuple[int, ...], anatomy: Anatomy) -> list[int]:
    """The key-value heads that these heads share."""
    return sorted({head // (anatomy.sizes.heads // anatomy.sizes.groups) for head in heads})


def _cut(name: str, tensor: Tensor, *, anatomy: Anatomy, kept: Kept) -> Tensor:
    for dimension, axis in enumerate(anatomy.axes(name)):
        if axis is not None:
            index = torch.tensor(_index(axis, name, anatomy=anatomy, kept=kept), device=tensor.device)
            tensor = tensor.index_select(dimension, index)
    return tensor


def _index(axis: Axis, name: str, *, anatomy: Anatomy, kept: Kept) -> list[int]:
    """The rows or columns of a parameter that stay."""
    if axis == "hidden":
        return list(kept.hidden)
    layer = int(name.removeprefix(f"{anatomy.blocks}.").split(".", 1)[0])
    if axis == "mlp":
        return list(kept.mlp[layer])
    heads = kept.heads[layer] if axis == "heads" else _groups(kept.heads[layer], anatomy)
    return [head * anatomy.head_dim + i for head in heads for i in range(anatomy.head_dim)]


def _rescale(weights: dict[str, Tensor], *, anatomy: Anatomy, kept: Kept) -> None:
    """Norms for fewer channels; of an embedding that its own width scales (Gemma) the same rows as before.

    A head that is tied to such an embedding grows with it, so the last norm takes that factor back.
    """
    factors = dict(kept.norm_factors)
    if anatomy.scales_embedding:
        grown = (anatomy.sizes.hidden / len(kept.hidden)) ** 0.5
        for name in weights:
            if name.endswith("embed_tokens.weight") or (anatomy.is_tied and name.endswith("lm_head.weight")):
                weights[name] = weights[name] * grown
        if anatomy.is_tied:
            factors[anatomy.final_norm] /= grown
    offset = 1.0 if anatomy.adds_one else 0.0
    for norm in anatomy.norms:
        name = f"{norm}.weight"
        weights[name] = (weights[name] + offset) * factors[norm] - offset
