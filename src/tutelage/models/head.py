"""A causal language model taken apart: the trunk gives hidden states, the head turns them into logits.

Shape legend: B rows, T positions, N = B*T flattened, D hidden size, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage import console
from tutelage.errors import ConfigError, IntegrityError, NumericError
from tutelage.models.placement import device_of
from tutelage.types import CausalLM, Head, TokenView

_PROBE_LENGTH = 8
_SPREAD_LENGTH = 32
_MOST_PADDING_MASS = 1e-4
_LEAST_TOLERANCE = 1e-5
_ROUNDINGS = 4.0  # of its dtype, by which a model's own logits may differ from ours: it caps them in its dtype
# What a config calls the numbers that logits are multiplied with, divided by and capped at.
_FACTORS = ("logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
_DIVISORS = ("logits_scaling",)  # Granite
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM


def trunk(model: CausalLM, view: TokenView) -> Tensor:
    """Last hidden states [B, T, D] of a transformers causal LM, after its final norm, without the head.

    Documents packed in one row are kept apart by their restarting positions, from which transformers builds a
    block-diagonal causal mask.  They lie where the view does, wherever the last part of the model computes.
    """
    # Without positions the argument is left out: a model that has no such argument (BLOOM, Mamba) needs no other way.
    positions = {"position_ids": view.positions_BT} if view.positions_BT is not None else {}
    hidden_BTD: Tensor = body(model)(input_ids=view.ids_BT, use_cache=False, **positions).last_hidden_state
    return hidden_BTD.to(view.ids_BT.device)


def body(model: CausalLM) -> CausalLM:
    """Everything of a causal LM but its head."""
    base = model.base_model
    if base is not model:
        return base
    from transformers import PreTrainedModel

    # Llama 4's text model names as its base what only the model with images has.
    found = next((part for part in model.children() if isinstance(part, PreTrainedModel)), None)
    if found is None:
        raise ConfigError("FUSED_UNSUPPORTED", f"{type(model).__name__} has no part that is a model without its head")
    return found


def require_rows(output: Any, *, n_vocabulary: int) -> None:
    """ConfigError[VOCAB_PAD] where the head, a linear layer, has fewer rows than the tokenizer has tokens."""
    if (rows := output.weight.shape[0]) < n_vocabulary:
        raise ConfigError(
            "VOCAB_PAD",
            f"the head has {rows} rows, the tokenizer {n_vocabulary} tokens: wrong tokenizer for this model?",
        )


def trained_hidden(model: CausalLM, view: TokenView) -> Tensor:
    """Hidden states [N, D] at the trained positions of a view, in its order."""
    return trunk(model, view).flatten(0, 1).index_select(0, view.index_N)


def head_of(model: CausalLM, *, n_vocabulary: int) -> Head:
    """The head of a transformers causal LM, cut to the tokenizer's real vocabulary.

    Scaling and soft-capping are read from the config, under the names that the architectures give them;
    `verify_head` refuses a model that does anything else.
    """
    output = model.get_output_embeddings()
    if output is None:
        raise ConfigError("FUSED_UNSUPPORTED", f"{type(model).__name__} has no output embedding: not a causal LM")
    config = model.config.get_text_config()
    require_rows(output, n_vocabulary=n_vocabulary)
    return Head(
        weight_VD=output.weight,
        bias_V=getattr(output, "bias", None),
        n_vocabulary=n_vocabulary,
        scale=_number(config, _FACTORS, otherwise=1.0) / _number(config, _DIVISORS, otherwise=1.0),
        soft_cap=_number(config, _SOFT_CAPS, otherwise=None),
    )


def _number(config: Any, names: tuple[str, ...], *, otherwise: Any) -> Any:
    """The first of these fields that holds a number other than 0 (MPT has text in one that it does not use)."""
    values = (getattr(config, name, None) for name in names)
    return next((float(v) for v in values if isinstance(v, int | float) and v), otherwise)


@torch.no_grad()
def padding_mass(model: CausalLM, *, n_vocabulary: int) -> float:
    """The largest probability that the unmasked head puts on its rows beyond the tokenizer's vocabulary, on a probe."""
    if model.get_output_embeddings().weight.shape[0] == n_vocabulary:
        return 0.0
    ids_BT = spread_ids(n_vocabulary).to(device_of(model))
    logits_BTR = model(input_ids=ids_BT, use_cache=False).logits.float()
    return float(torch.softmax(logits_BTR, -1)[..., n_vocabulary:].sum(-1).max())


def spread_ids(n_vocabulary: int) -> Tensor:
    """A fixed row of ids [1, T] from all over the vocabulary: a probe that needs no text."""
    return (torch.arange(_SPREAD_LENGTH)[None] * 7919) % n_vocabulary


def refuse_padding_mass(model: CausalLM, *, n_vocabulary: int) -> None:
    """Warn of head rows beyond the tokenizer's vocabulary; IntegrityError[VOCAB_PAD] when they carry more than 1e-4."""
    rows = model.get_output_embeddings().weight.shape[0]
    if rows == n_vocabulary:
        return
    mass = padding_mass(model, n_vocabulary=n_vocabulary)
    if mass > _MOST_PADDING_MASS:
        raise IntegrityError(
            "VOCAB_PAD",
            f"the teacher puts {mass:.1e} on {rows - n_vocabulary} ids that its tokenizer does not have; "
            "wrong tokenizer for this model?",
        )
    console.warning(
        "VOCAB_PAD",
        f"teacher {rows} rows, tokenizer {n_vocabulary} tokens: {rows - n_vocabulary} unused ids dropped "
        f"(max teacher mass {mass:.0e})",
    )


def head_fingerprint(head: Head) -> str:
    """SHA-256 over the head's numbers: equal for equal heads only."""
    digest = hashlib.sha256(repr((head.n_vocabulary, head.scale, head.soft_cap)).encode())
    weight = head.weight_VD.detach()[: head.n_vocabulary].to(device="cpu", dtype=torch.float32).contiguous()
    digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def verify_head(model: CausalLM, *, n_vocabulary: int) -> None:
    """Check on a few tokens that trunk + head equal the model's own logits, before anything is trained on them.

    And that none of them changes with a token after it.  Raises ConfigError[FUSED_UNSUPPORTED] when a model does
    something to its logits that `head_of` does not know, ConfigError[MODEL_LOAD] when it is no causal model, and
    NumericError[NONFINITE] for one that is broken before any training.
    """
    ids_BT = torch.arange(_PROBE_LENGTH, device=device_of(model))[None] % n_vocabulary
    own_NV = _own_logits(model, ids_BT, n_vocabulary=n_vocabulary)
    if own_NV.isnan().any():
        raise NumericError("NONFINITE", f"{type(model).__name__} gives NaN logits as it is loaded; get the model again")
    tolerance = max(_LEAST_TOLERANCE, _ROUNDINGS * torch.finfo(next(model.parameters()).dtype).eps)
    other_BT = torch.cat([ids_BT[:, :-1], (ids_BT[:, -1:] + 1) % n_vocabulary], dim=1)
    ahead = (own_NV - _own_logits(model, other_BT, n_vocabulary=n_vocabulary))[:-1].abs().max().item()
    if not ahead <= tolerance * max(1.0, own_NV.abs().max().item()):
        raise ConfigError(
            "MODEL_LOAD",
            f"{type(model).__name__} sees the tokens that it is to predict (difference {ahead:.1e}, expected 0); "
            "give a causal language model, such as Llama, Qwen, Gemma or GPT-2",
        )
    ours_NV = head_of(model, n_vocabulary=n_vocabulary).logits(trunk(model, TokenView.of(ids_BT, ids_BT))[0]).float()
    largest = (own_NV - ours_NV).abs().max().item()
    if not largest <= tolerance * max(1.0, own_NV.abs().max().item()):
        raise ConfigError(
            "FUSED_UNSUPPORTED",
            f"{type(model).__name__} changes its logits in a way this version does not know "
            f"(difference {largest:.3g} to trunk + head); please report the model's name",
        )


def _own_logits(model: CausalLM, ids_BT: Tensor, *, n_vocabulary: int) -> Tensor:
    """What the model itself says of one row, float32 [T, V]."""
    own_NV: Tensor = model(input_ids=ids_BT, use_cache=False).logits[0, :, :n_vocabulary].float()
    return own_NV


def refuse_too_long(model: CausalLM, *, max_length: int) -> None:
    """Raise ConfigError when windows are longer than the positions that a model has, or has for sure.

    Longrope (Phi-3 of 128k) takes other frequencies for all rows of a batch when one of them is longer than what the
    model was first trained on: what a text gives would depend on what else is in its batch.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    first = min(_longrope_beginnings(getattr(config, "rope_parameters", None) or {}), default=max_length)
    if max_length > first:
        raise ConfigError(
            "CONFIG",
            f"data.max_length: {max_length}, and beyond {first} tokens {type(model).__name__} (longrope) gives "
            f"a text other numbers beside long ones than beside short ones; set data.max_length={first} or less",
        )
    if positions is not None and max_length > positions:
        raise ConfigError(
            "CONFIG",
            f"data.max_length: {max_length}, and {type(model).__name__} has {positions} positions; "
            f"set data.max_length={positions} or less",
        )


def _longrope_beginnings(rope: Mapping[str, Any]) -> Iterator[int]:
    """Where the other frequencies begin, of one set of parameters or of each kind of layer."""
    if rope.get("rope_type") == "longrope":
        yield int(rope["original_max_position_embeddings"])
    for nested in rope.values():
        if isinstance(nested, Mapping):
            yield from _longrope_beginnings(nested)
