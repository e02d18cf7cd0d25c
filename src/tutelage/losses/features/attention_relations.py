"""Attention relations: which positions resemble each other in a layer's queries, in its keys and in its values.

MiniLM (arXiv:2002.10957) and MiniLMv2 (arXiv:2012.15828): queries (likewise keys, values) of all attention heads are
put side by side and cut into relation heads, as many for teacher and student, so that widths and numbers of heads may
differ.  The relation of a position i to the positions j is softmax_j(x_i . x_j / sqrt(width of a relation head)), and
the loss KL(teacher || student), averaged over relation heads and over the three kinds.

Relations are causal and stay inside a document: position i is compared with those before it in its own document and
itself.  The papers' encoders see the whole text; here the relation of i is then made of what the model has read at i,
like its prediction, so that neither what follows, nor padding, nor another document of the row changes it.

A relation is [heads, positions, positions]: it is made for a few positions at a time, with its gradient in closed form
((q - p) on the student's side), and is gone again.

Shape legend: B rows, T positions, W width of the student's queries, keys or values, U of the teacher's; H relation
heads, n positions of a block that ask, m those that they look at, d width of a relation head.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutelage.errors import ConfigError
from tutelage.losses.support import wide
from tutelage.losses.terms import Feature
from tutelage.types import Part, Tap, TokenView

PARTS: tuple[Part, ...] = ("query", "key", "value")
EVERY_LAYER = False  # one layer, the last: MiniLM
_LEAST_WIDTH = 16  # of a relation head, where their number is not said: MiniLMv2's 48 of 768, 64 of 1024
_ENTRIES = 2**21  # of the relations that are held at once


def settled(feature: Feature, own: Mapping[Tap, int], teachers: Mapping[Tap, int]) -> Feature:
    """With its number of relation heads; ConfigError[FEATURES] where that does not divide a width."""
    heads, widths = feature.settings["relation_heads"], {**_named("student", own), **_named("teacher", teachers)}
    common = math.gcd(*widths.values())
    if heads == "auto":
        most = max(1, min(widths.values()) // _LEAST_WIDTH)
        heads = max(h for h in range(1, most + 1) if common % h == 0)
    heads = int(heads)
    for name, width in widths.items():
        if width % heads:
            known = ", ".join(str(h) for h in range(1, common + 1) if common % h == 0)
            raise ConfigError(
                "FEATURES",
                f"attention_relations: relation_heads {heads} do not divide the width {width} of the {name}; give one "
                f"of {known}, or auto",
            )
    return replace(feature, settings={**feature.settings, "relation_heads": heads})


def _named(whose: str, widths: Mapping[Tap, int]) -> dict[str, int]:
    return {f"{whose}'s {tap.part} (layer {tap.layer})": width for tap, width in widths.items()}


def total(
    feature: Feature,
    own: Mapping[Tap, Tensor],
    teachers: Mapping[Tap, Tensor],
    *,
    view: TokenView,
    learned: Mapping[str, Tensor],
) -> Tensor:
    """The sum over trained positions of the KL of their relations, 0-dim, in nats."""
    assert not learned, "relations need no projection"
    ((student_layer, teacher_layer),) = feature.pairs
    heads = int(feature.settings["relation_heads"])
    blocks = tuple(_blocks(view, heads=heads))
    sums = [
        relation_kl(
            teachers[Tap(layer=teacher_layer, part=part)], own[Tap(layer=student_layer, part=part)],
            blocks=blocks, heads=heads,
        )
        for part in PARTS
    ]  # fmt: skip
    return torch.stack(sums).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Positions of a row that ask, [n], those that they look at (a slice of m), and who may look where, [n, m]."""

    row: int
    asking_n: Tensor
    seen: slice
    may_see_nm: Tensor


def _blocks(view: TokenView, *, heads: int) -> Iterator[Block]:
    """The trained positions of a view, a few of one row at a time; each looks back to where its document begins."""
    n_rows, length = view.ids_BT.shape
    device, index_N = view.ids_BT.device, view.index_N.cpu()
    at_once = max(1, _ENTRIES // (heads * length))
    begin_BT = torch.zeros(n_rows, length, dtype=torch.int64)
    if view.positions_BT is not None:
        begin_BT = (torch.arange(length) - view.positions_BT.cpu()).clamp_min(0)
    for row in range(n_rows):
        asking_N = index_N[index_N // length == row] - row * length
        for start in range(0, len(asking_N), at_once):
            asking_n = asking_N[start : start + at_once]
            begin_n = begin_BT[row, asking_n]
            low, high = int(begin_n.min()), int(asking_n.max()) + 1
            seen_m = torch.arange(low, high)
            may_see_nm = (seen_m >= begin_n[:, None]) & (seen_m <= asking_n[:, None])
            yield Block(row=row, asking_n=asking_n.to(device), seen=slice(low, high), may_see_nm=may_see_nm.to(device))


def relation_kl(teachers_BTU: Tensor, own_BTW: Tensor, *, blocks: tuple[Block, ...], heads: int) -> Tensor:
    """Sum over the positions of the blocks of KL(teacher || student) of their relations, mean over heads, 0-dim, nats.

    Differentiable once, with respect to the student's side alone.
    """
    needs_gradient = torch.is_grad_enabled() and own_BTW.requires_grad
    found: Tensor = _RelationKL.apply(own_BTW, teachers_BTU, blocks, heads, needs_gradient)  # type: ignore[no-untyped-call]
    return found


class _RelationKL(torch.autograd.Function):
    """The gradient is formed in the forward, block by block, while the relations are there."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        ctx, own_BTW: Tensor, teachers_BTU: Tensor, blocks: tuple[Block, ...], heads: int, needs_gradient: bool
    ) -> Tensor:
        dtype = wide(own_BTW.dtype)
        total = own_BTW.new_zeros((), dtype=dtype)
        gradient_BTW = torch.zeros_like(own_BTW, dtype=dtype) if needs_gradient else None
        for block in blocks:
            own_HTd = _heads(own_BTW[block.row].to(dtype), heads)
            logp_Hnm = _log_relations(_heads(teachers_BTU[block.row].to(dtype), heads), block)
            logq_Hnm = _log_relations(own_HTd, block)
            p_Hnm = logp_Hnm.exp()
            ratio_Hnm = (logp_Hnm - logq_Hnm).masked_fill_(~block.may_see_nm, 0.0)  # -inf - -inf where nobody looks
            total += (p_Hnm * ratio_Hnm).sum() / heads
            if gradient_BTW is not None:
                slope_Hnm = (logq_Hnm.exp() - p_Hnm).div_(heads * math.sqrt(own_HTd.shape[-1]))
                gradient_HTd = _heads(gradient_BTW[block.row], heads)
                gradient_HTd[:, block.seen] += slope_Hnm.transpose(1, 2) @ own_HTd[:, block.asking_n]
                gradient_HTd.index_add_(1, block.asking_n, slope_Hnm @ own_HTd[:, block.seen])
        ctx.gradient_BTW = gradient_BTW.to(own_BTW.dtype) if gradient_BTW is not None else None
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):  # type: ignore[no-untyped-def]
        gradient_BTW, ctx.gradient_BTW = ctx.gradient_BTW, None
        return gradient_BTW.mul_(grad_total.to(gradient_BTW.dtype)), None, None, None, None


def _heads(x_TW: Tensor, heads: int) -> Tensor:
    """A view of [T, W] as [H, T, d]."""
    return x_TW.view(x_TW.shape[0], heads, -1).transpose(0, 1)


def _log_relations(x_HTd: Tensor, block: Block) -> Tensor:
    """Log-probabilities [H, n, m] of the relations of a block, in nats; -inf where a position may not look."""
    scores_Hnm = x_HTd[:, block.asking_n] @ x_HTd[:, block.seen].transpose(1, 2) / math.sqrt(x_HTd.shape[-1])
    return torch.log_softmax(scores_Hnm.masked_fill_(~block.may_see_nm, -torch.inf), dim=-1)
