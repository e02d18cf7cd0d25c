"""A causal language model taken apart: the trunk gives hidden states, the head turns them into logits.

Shape legend: B rows, T positions, N = B*T flattened, D hidden size, V vocabulary.
"""

import hashlib

import torch
from torch import Tensor

from tutelage import console
from tutelage.errors import ConfigError, IntegrityError, NumericError
from tutelage.types import CausalLM, Head, TokenView

_PROBE_LENGTH = 8
_SPREAD_LENGTH = 32
_MOST_PADDING_MASS = 1e-4
_ROUNDINGS = 2.0  # by how many roundings of its dtype a document may differ behind another one


def trunk(model: CausalLM, view: TokenView) -> Tensor:
    """Last hidden states [B, T, D] of a transformers causal LM, after its final norm, without the head.

    Documents packed in one row are kept apart by their restarting positions, from which transformers builds a
    block-diagonal causal mask.
    """
    output = model.base_model(input_ids=view.ids_BT, position_ids=view.positions_BT, use_cache=False)
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD


def trained_hidden(model: CausalLM, view: TokenView) -> Tensor:
    """Hidden states [N, D] at the trained positions of a view, in its order."""
    return trunk(model, view).flatten(0, 1).index_select(0, view.index_N)


def head_of(model: CausalLM, *, n_vocabulary: int) -> Head:
    """The head of a transformers causal LM, cut to the tokenizer's real vocabulary.

    Reads soft-capping (`final_logit_softcapping`, Gemma) and scaling (`logit_scale`, Cohere; `logits_scaling`,
    Granite) from the config.
    """
    output = model.get_output_embeddings()
    if output is None:
        raise ConfigError("FUSED_UNSUPPORTED", f"{type(model).__name__} has no output embedding: not a causal LM")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None)
    rows = output.weight.shape[0]
    if rows < n_vocabulary:
        raise ConfigError(
            "VOCAB_PAD",
            f"the head has {rows} rows, the tokenizer {n_vocabulary} tokens: wrong tokenizer for this model?",
        )
    return Head(
        weight_VD=output.weight,
        bias_V=getattr(output, "bias", None),
        n_vocabulary=n_vocabulary,
        scale=scale / float(divisor) if divisor else scale,
        soft_cap=getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def padding_mass(model: CausalLM, *, n_vocabulary: int) -> float:
    """The largest probability that the unmasked head puts on its rows beyond the tokenizer's vocabulary, on a probe."""
    if model.get_output_embeddings().weight.shape[0] == n_vocabulary:
        return 0.0
    ids_BT = spread_ids(n_vocabulary).to(next(model.parameters()).device)
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

    Raises ConfigError[FUSED_UNSUPPORTED] when a model does something to its logits that `head_of` does not know, and
    NumericError[NONFINITE] for a model that is broken before any training.
    """
    device = next(model.parameters()).device
    ids_BT = torch.arange(_PROBE_LENGTH, device=device)[None] % n_vocabulary
    view = TokenView.of(ids_BT, ids_BT)
    own_NV = model(input_ids=ids_BT, use_cache=False).logits[0, :, :n_vocabulary].float()
    if own_NV.isnan().any():
        raise NumericError("NONFINITE", f"{type(model).__name__} gives NaN logits as it is loaded; get the model again")
    ours_NV = head_of(model, n_vocabulary=n_vocabulary).logits(trunk(model, view)[0]).float()
    largest = (own_NV - ours_NV).abs().max().item()
    if not largest <= 1e-2 * max(1.0, own_NV.abs().max().item()):
        raise ConfigError(
            "FUSED_UNSUPPORTED",
            f"{type(model).__name__} changes its logits in a way this version does not know "
            f"(difference {largest:.3g} to trunk + head); please report the model's name",
        )


def refuse_too_long(model: CausalLM, *, max_length: int) -> None:
    """Raise ConfigError when windows are longer than the positions that the model's config says it has."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ConfigError(
            "CONFIG",
            f"data.max_length: {max_length}, and {type(model).__name__} has {positions} positions; "
            f"set data.max_length={positions} or less",
        )


@torch.no_grad()
def verify_packing(model: CausalLM, *, n_vocabulary: int) -> None:
    """Check that a document's hidden states do not depend on the document before it in the same row.

    transformers builds the mask from restarting positions for most architectures, but not for all (BLOOM, OPT, Mamba,
    …), and says nothing where it does not.  Raises ConfigError[PACKING].
    """
    device = next(model.parameters()).device
    ids_BT = spread_ids(n_vocabulary).to(device)
    n_first = ids_BT.shape[1] - _PROBE_LENGTH
    positions_BT = torch.cat([torch.arange(n_first), torch.arange(_PROBE_LENGTH)])[None].to(device)
    hidden = []
    for shift in (0, 1):
        changed_BT = torch.cat([(ids_BT[:, :n_first] + shift) % n_vocabulary, ids_BT[:, n_first:]], dim=1)
        hidden.append(trunk(model, TokenView.of(changed_BT, changed_BT, positions_BT))[0, n_first:].float())
    largest, size = (hidden[0] - hidden[1]).abs().max().item(), hidden[0].abs().max().item()
    if not largest <= _ROUNDINGS * torch.finfo(next(model.parameters()).dtype).eps * max(1.0, size):
        raise ConfigError(
            "PACKING",
            f"{type(model).__name__} lets documents that share a row see each other (difference {largest:.1e}, "
            "expected 0): training would mix them; use a model whose attention follows position_ids, such as Llama, "
            "Qwen, Gemma, Mistral or GPT-2",
        )
