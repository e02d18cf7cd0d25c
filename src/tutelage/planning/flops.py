"""Floating-point operations of a model, by formula; one multiplication and one addition count 2.

    forward, a token     2 * (weights that multiply) + 4 * layers * attention width * tokens that are looked at
    training, a token    3 * forward: the backward pass makes two products for each one of the forward, one of them
                         for the weight itself: it is left out for weights that stay beside adapters

The weights that multiply are all matrices, the head's included, tied or not; looking up an embedding, norms,
activations and softmax are left out, as in PyTorch's own counter (`torch.utils.flop_counter`), which a test compares
with.  Of experts, the share that a token is sent to.  The attention counts every token of the window on both sides, as
a masked product computes it; see Kaplan et al., arXiv:2001.08361, and Hoffmann et al., arXiv:2203.15556, appendix F.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any  # configs of transformers are untyped

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tutelage.errors import ConfigError
from tutelage.models.head import require_rows
from tutelage.models.layers import expert_weights, n_experts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a model's cost follows from; `attention_width` is heads times the head's dimension."""

    parameters: int  # tied ones once
    multiplying: int  # weights that multiply for each token, the head's included
    head: int  # of these, the head's
    layers: int
    attention_width: int
    hidden: int
    vocabulary: int
    learned: int | None = None  # of those that multiply, those that training changes: adapters alone; None: all
    rounded: int = 0  # weights on a grid of integers: each is kept as it learns and as it is rounded
    packed_bytes: float | None = None  # of the model with these integers packed, and all else in two bytes

    def forward_flops(self, *, context: float, with_head: bool = True) -> float:
        """Of one token in a window of `context` tokens; without the head where logits are not asked for."""
        weights = self.multiplying - (0 if with_head else self.head)
        return 2.0 * weights + 4.0 * self.layers * self.attention_width * context

    def training_flops(self, *, context: float) -> float:
        """Forward and backward of one token; a weight that stays as it is has no gradient of its own to compute."""
        staying = 0 if self.learned is None else self.multiplying - self.learned
        return 3.0 * self.forward_flops(context=context) - 2.0 * staying


def together(sizes: Sequence[Size]) -> Size:
    """Several models that read the same tokens, as one: all their weights, all their products."""
    return Size(
        parameters=sum(size.parameters for size in sizes),
        multiplying=sum(size.multiplying for size in sizes),
        head=sum(size.head for size in sizes),
        layers=1,
        attention_width=sum(size.layers * size.attention_width for size in sizes),
        hidden=sizes[0].hidden,
        vocabulary=sizes[0].vocabulary,
    )


def size_of(config: Any, *, n_vocabulary: int | None = None) -> Size:
    """The size of the causal LM that a transformers config describes; nothing of it is made in memory.

    `n_vocabulary`: the tokenizer's real size, where the config has padding.  ConfigError[MODEL_LOAD] for a config of
    anything else, [VOCAB_PAD] where the head has fewer rows than the tokenizer has tokens.
    """
    try:
        with torch.device("meta"):
            return size_of_model(AutoModelForCausalLM.from_config(config), n_vocabulary=n_vocabulary)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:  # of the model's own code
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        found = f"the size of a model of type {config.model_type} cannot be told ({type(error).__name__}: {reason})"
        raise ConfigError(
            "MODEL_LOAD", f"{found}; name a causal language model, such as Llama, Qwen, Gemma or GPT-2"
        ) from error


def size_of_model(model: nn.Module, *, n_vocabulary: int | None = None) -> Size:
    """The size of a causal LM of transformers, on any device (meta too)."""
    config: Any = model.config
    text = config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[operator]  # a method of every causal LM
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in looked_up)
    experts, share = _experts(model, text)
    require_rows(head, n_vocabulary=n_vocabulary or 0)
    rows = min(head.weight.shape[0], n_vocabulary or head.weight.shape[0])
    n_head = rows * head.weight.shape[1]
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        multiplying=matrices + round(experts * share) + n_head,
        head=n_head,
        layers=text.num_hidden_layers,
        attention_width=_attention_width(model, text),
        hidden=head.weight.shape[1],
        vocabulary=rows,
    )


def _attention_width(model: nn.Module, config: Any) -> int:
    """Heads times the head's dimension: the mean over the layers, where they differ (Gemma 4); 0 without attention."""
    mixed = [m for name, m in model.named_modules() if name.endswith(".self_attn.o_proj") and isinstance(m, nn.Linear)]
    if mixed:
        return sum(m.in_features for m in mixed) // int(config.num_hidden_layers)
    heads: int = getattr(config, "num_attention_heads", 0)  # Mamba has none
    dimension: int = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return heads * dimension


def _experts(model: nn.Module, config: Any) -> tuple[int, float]:
    """(weights of all experts, the share of them that a token meets): of a model without experts (0, 1)."""
    if (n_experts := n_experts_of(config)) is None:
        return 0, 1.0
    n_weights = sum(weight.numel() for weight in expert_weights(model))
    return n_weights, (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts
