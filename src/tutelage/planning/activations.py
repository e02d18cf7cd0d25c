"""Bytes that autograd keeps of one micro-batch: counted on tensors without memory, so for any architecture.

The trunk of one layer and of two layers of the model's own config runs in PyTorch's fake mode, on the path that it
takes on a CPU; what it saves for the backward pass is counted once a storage.  A transformer's layers are alike, so
those of all layers follow.
"""

import logging
from dataclasses import dataclass
from typing import Any  # configs of transformers are untyped

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from tutelage.models.student import shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Bytes: `fixed` whatever the layers, `a_layer` for each of them."""

    fixed: float
    a_layer: float

    def of(self, n_layers: int, *, checkpointing: bool, kept_a_layer: float) -> float:
        """Of a model of so many layers; with checkpointing a layer keeps its input, and one at a time the rest."""
        if checkpointing:
            return self.fixed + n_layers * kept_a_layer + self.a_layer
        return self.fixed + n_layers * self.a_layer


def saved_by(config: Any, *, rows: int, length: int, dtype: torch.dtype) -> Saved | None:
    """Of a micro-batch of `rows` windows of `length` tokens, several documents in a window.

    None for an architecture whose pass depends on its numbers (a mixture of experts), or takes no such mask (BLOOM).
    """
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        one, two = (_saved(shortened(config, n), rows=rows, length=length, dtype=dtype) for n in (1, 2))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
        return None  # whatever the model's own code raises on tensors without numbers
    finally:
        logger.disabled = before
    return Saved(fixed=max(0.0, 2.0 * one - two), a_layer=float(two - one))


def _saved(config: Any, *, rows: int, length: int, dtype: torch.dtype) -> int:
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        ids_BT = torch.zeros(rows, length, dtype=torch.int64)
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(input_ids=ids_BT, attention_mask=mask, use_cache=False)
    return sum(sizes.values())
