"""What of a decoder can be taken out without changing what the rest means: channels, neurons of the MLPs, heads.

Understood are blocks of q_proj, k_proj, v_proj, o_proj and gate_proj, up_proj, down_proj with root-mean-square norms:
Llama, Mistral, Qwen2 and Qwen3, Gemma and their like.  A parameter of any other name is refused, not guessed at.

Shape legend: T positions, D hidden size.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tutelage.errors import ConfigError
from tutelage.models.layers import decoder_layers
from tutelage.types import CausalLM

Axis = Literal["hidden", "mlp", "heads", "groups"] | None
_AXES: dict[str, tuple[Axis, Axis]] = {  # of the rows and the columns of a weight; a bias has the rows'
    "embed_tokens": (None, "hidden"),
    "lm_head": (None, "hidden"),
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("groups", "hidden"),
    "self_attn.v_proj": ("groups", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "mlp.gate_proj": ("mlp", "hidden"),
    "mlp.up_proj": ("mlp", "hidden"),
    "mlp.down_proj": ("hidden", "mlp"),
}
_HEAD_NORM = re.compile(r"self_attn\.[qk]_norm$")
_UNDERSTOOD = "understood are Llama, Mistral, Qwen2, Qwen3, Gemma and models with blocks like theirs"
_INSTEAD = "give the student as {layers: …}, {model: …} or {config: …}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The widths of a model: `heads` that ask, in `groups` of as many each that share one key and value."""

    hidden: int
    mlp: int
    heads: int
    groups: int

    def __str__(self) -> str:
        return f"hidden {self.hidden}, mlp {self.mlp}, heads {self.heads} in {self.groups} groups"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where the widths of a model stand in its modules."""

    blocks: str  # the path of the list of layers
    n_layers: int
    sizes: Sizes
    head_dim: int
    norms: tuple[str, ...]  # the modules that normalise all channels
    final_norm: str
    adds_one: bool  # its norms multiply by 1 + weight (Gemma)
    scales_embedding: bool  # its embedding is multiplied by the root of the hidden size (Gemma)
    is_tied: bool

    def axes(self, parameter: str) -> tuple[Axis, ...]:
        """What each dimension of a parameter counts; () for one that has none of the widths."""
        owner, _, kind = parameter.rpartition(".")
        if owner in self.norms:
            return ("hidden",)
        found = next((axes for name, axes in _AXES.items() if owner.endswith(name)), None)
        if found is None:
            return ()
        return found if kind == "weight" else found[:1]


def sizes_of(config: Any) -> tuple[Sizes, int]:
    """(widths, dimension of a head) by a transformers config; ConfigError[WIDTH] where they are no plain numbers."""
    text = config.get_text_config()
    found: list[int] = []
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        value = getattr(text, name, None)
        if not isinstance(value, int):
            what = f"has no {name}" if value is None else f"has {name} {value!r}, expected one number"
            raise _refused(type(config).__name__, f"its config {what}")
        found.append(value)
    hidden, mlp, heads = found
    groups = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    return Sizes(hidden=hidden, mlp=mlp, heads=heads, groups=groups), head_dim


@torch.no_grad()
def anatomy_of(model: CausalLM) -> Anatomy:
    """How a causal LM is built; ConfigError[WIDTH], with what was found, for one that is built otherwise."""
    who = type(model).__name__
    sizes, head_dim = sizes_of(model.config)
    blocks, layers = decoder_layers(model)
    modules = dict(model.named_modules())
    norms = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if any(owner.endswith(known) for known in _AXES) and parameter.ndim in (1, 2):
            continue
        if _HEAD_NORM.search(owner):
            if parameter.numel() != head_dim:
                raise _refused(who, f"{name} {list(parameter.shape)} normalises several heads together")
        elif "norm" in owner.rpartition(".")[2] and name.endswith(".weight") and parameter.shape == (sizes.hidden,):
            norms.append(owner)
        else:
            raise _refused(who, f"{name} {list(parameter.shape)} is not understood")
    kinds = {_norm_kind(modules[name]) for name in norms}
    if len(kinds) != 1 or None in kinds:
        raise _refused(who, f"{type(modules[norms[0]]).__name__} is no norm by the root mean square" if norms else
                       "it has no norms")  # fmt: skip
    final = [name for name in norms if not name.startswith(f"{blocks}.")]
    if len(final) != 1:
        raise _refused(who, f"{len(final)} norms after the layers")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return Anatomy(
        blocks=blocks,
        n_layers=len(layers),
        sizes=sizes,
        head_dim=head_dim,
        norms=tuple(norms),
        final_norm=final[0],
        adds_one=kinds == {"1 + weight"},
        scales_embedding=_scales(embedding, sizes.hidden, who),
        is_tied=head.weight is embedding.weight,
    )


def _norm_kind(norm: nn.Module) -> str | None:
    """What a norm multiplies x / rms(x) by: its `weight`, or `1 + weight`; None for another kind of norm."""
    weight_D: torch.Tensor = norm.weight  # type: ignore[assignment]  # a parameter: `anatomy_of` has just seen it
    n_channels = weight_D.shape[0]
    x_D = torch.linspace(-1.0, 2.0, n_channels, device=weight_D.device, dtype=weight_D.dtype)
    found_D, wide_D, factor_of_D = (t.cpu().double() for t in (norm(x_D[None])[0], x_D, weight_D))
    unit_D = wide_D / wide_D.square().mean().sqrt()
    for name, factor_D in (("weight", factor_of_D), ("1 + weight", 1.0 + factor_of_D)):
        expected_D = unit_D * factor_D
        if (found_D - expected_D).abs().max() <= 2e-2 * expected_D.abs().max().clamp(min=1e-6):
            return name
    return None


def _scales(embedding: nn.Module, n_channels: int, who: str) -> bool:
    """Whether the embedding is multiplied by the root of the hidden size; ConfigError[WIDTH] for another factor."""
    weight: torch.Tensor = embedding.weight  # type: ignore[assignment]  # of an nn.Embedding
    row = int(weight[:64].abs().sum(-1).argmax())
    looked_up = embedding(torch.tensor([row], device=weight.device))[0].cpu().double()
    factor = float(looked_up.norm() / weight[row].cpu().double().norm())
    for scale, is_scaled in ((1.0, False), (n_channels**0.5, True)):
        if abs(factor - scale) <= 1e-2 * scale:
            return is_scaled
    raise _refused(who, f"its embedding is multiplied by {factor:.4g}")


def _refused(who: str, what: str) -> ConfigError:
    return ConfigError("WIDTH", f"student.width: {who} cannot be narrowed: {what}; {_UNDERSTOOD}; {_INSTEAD}")
