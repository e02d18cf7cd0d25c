"""Whether the documents that share a row can be kept apart, measured on the model itself.

transformers builds a block-diagonal mask from restarting positions for most architectures.  For others it does not, and
says nothing: learned positions of their own (OPT), ALiBi (BLOOM, MPT), states that run through (Mamba, Jamba,
Qwen3-Next), masks that forget the positions (GPT-OSS in 5.23).  No list of names is kept: a model is asked.

Shape legend: B rows, T positions, D hidden size.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from tutelage import console
from tutelage.models.head import spread_ids, trunk
from tutelage.models.placement import device_of
from tutelage.types import CausalLM, TokenView

_SECOND = 8  # positions of the second document of the probe
_LEAST_SEEN, _SEEN_ROUNDINGS = 1e-5, 4.0  # what may come through from the document before: mixtures add in other orders
_LEAST_ALONE, _ALONE_ROUNDINGS = 1e-3, 32.0  # the same alone, in products of another shape

_LEAST_SIZE = 1e-3  # of a dimension, against the root mean square of all


def all_pack(models: Iterable[CausalLM], *, n_vocabulary: int) -> bool:
    """Whether all these models keep the documents of a row apart; a note[PACKING] names each that does not."""
    found = {type(model).__name__: difference(model, n_vocabulary=n_vocabulary) for model in models}
    for name, seen in found.items():
        if seen > 0.0:
            console.note(
                "PACKING",
                f"{name} does not keep documents that share a row apart (difference {seen:.1e}, expected 0): it gets "
                "one document a row, which costs padding; choose data.max_length near the length of the documents",
            )
    return not any(found.values())


@torch.no_grad()
def difference(model: CausalLM, *, n_vocabulary: int) -> float:
    """How much of a document depends on the one before it in its row, relative to its size; 0.0: only roundings.

    The document before is changed, and left out: the hidden states may not change.  Each hidden dimension is compared
    with its own size, since a few of them are a hundred times larger than all others in many models.
    """
    device, roundings = device_of(model), torch.finfo(next(model.parameters()).dtype).eps
    ids_BT = spread_ids(n_vocabulary).to(device)
    n_first = ids_BT.shape[1] - _SECOND
    positions_BT = torch.cat([torch.arange(n_first), torch.arange(_SECOND)])[None].to(device)
    changed_BT = torch.cat([(ids_BT[:, :n_first] + 1) % n_vocabulary, ids_BT[:, n_first:]], dim=1)
    behind, behind_other = (
        trunk(model, TokenView.of(ids, ids, positions_BT))[0, n_first:].float() for ids in (ids_BT, changed_BT)
    )
    seen = _relative(behind, behind_other).max().item()
    if not seen <= max(_LEAST_SEEN, _SEEN_ROUNDINGS * roundings):
        return seen
    second_BT = ids_BT[:, n_first:]
    alone = trunk(model, TokenView.of(second_BT, second_BT))[0].float()
    # The median: a rounding may send a position of a mixture to another expert.
    moved = _relative(alone, behind).median().item()
    return moved if not moved <= max(_LEAST_ALONE, _ALONE_ROUNDINGS * roundings) else 0.0


def _relative(a_TD: Tensor, b_TD: Tensor) -> Tensor:
    """Of each position, the root mean square of the differences, each over its dimension's own; shape [T]."""
    size_D = a_TD.square().mean(0).sqrt()
    size_D = size_D.clamp_min(_LEAST_SIZE * size_D.square().mean().sqrt().item())
    return ((a_TD - b_TD) / size_D).square().mean(-1).sqrt()
