"""Threshold sampling: a teacher's distribution as at most m + 1 weighted tokens a position, unbiased.

With tau = 1/m (m an integer; Duffield, Lund, Thorup, J. ACM 2007), a token with p >= tau is a *head*, the others are
the *tail*.  One uniform draw u a position does everything:

- the tail is swept in the order of ids: the token that holds a point u, u + 1, u + 2, … of the tail's cumulative
  probability in units of tau is picked and weighs tau.  As p < tau, each is picked with probability p / tau, and never
  twice; T being the tail's mass, the number of picks differs from T / tau by less than 1;
- weights are whole *grains*, g = tau / grains.  All heads but the largest are rounded to them by the same kind of sweep
  over their cumulative sum, shifted by u: each becomes one of its two neighbours, with p as the expectation, and their
  sum is off by less than one grain;
- the largest head weighs 1 - all others.  Its expectation is 1 - (1 - p_max) = p_max, so every token is unbiased; it
  differs from p_max by less than tau (picks) + g (heads), hence is greater than p_max - tau - g >= -g: as a whole
  number of grains it is at least 0;
- without any head T / tau = m is whole, so there are exactly m picks, which weigh 1.

The sum of the weights is exactly 1 in integers, and in float32 as long as m * grains <= 2**24.

Shape legend: N positions, R rows, C positions of a chunk, V vocabulary, D hidden size, M entries of all positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any  # what numba compiled is Any to the checker

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache.codec import Positions
from tutelage.errors import NumericError
from tutelage.types import Head

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
PRODUCT_ROWS = 256  # every product has this shape: one that has another rounds differently, and bytes would follow
_STORED_AS = {torch.bfloat16: torch.int16, torch.float32: torch.float32}  # what numba sees; others go the plain way


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The weighted tokens of N positions, one position after the other: first head, other heads by id, picks by id."""

    ids_M: Ints
    units_M: Ints  # weights in grains; m * grains at each position
    offsets: Ints
    n_heads_N: Ints
    next_logp_N: Floats  # nats, at the temperature

    def between(self, first: int, last: int) -> "Drawn":
        """The positions from first to last - 1."""
        entries = slice(self.offsets[first], self.offsets[last])
        return Drawn(
            ids_M=self.ids_M[entries],
            units_M=self.units_M[entries],
            offsets=self.offsets[first : last + 1] - self.offsets[first],
            n_heads_N=self.n_heads_N[first:last],
            next_logp_N=self.next_logp_N[first:last],
        )


def draws(positions: Positions) -> Floats:
    """A uniform draw of (0, 1) for each position [N]: SplitMix64 of the row's seed and the position's index in it.

    (k + 1/2) / 2**32 with a 32-bit k, so that neither 0 nor 1 occurs.
    """
    counts_R = positions.counts_R
    index_N = np.arange(len(positions)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    state_N = np.repeat(positions.seeds_R.astype(np.uint64), counts_R)
    state_N = state_N + (index_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state_N = (state_N ^ (state_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state_N = (state_N ^ (state_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state_N = state_N ^ (state_N >> np.uint64(31))
    return ((state_N >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**32


@torch.no_grad()
def sample(hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float, m: int, grains: int) -> Drawn:
    """Weighted tokens at all positions: by the compiled loop on a CPU, else by `reference` where the products are."""
    draws_N, parts = draws(positions), []
    for place, product_CV in products(hidden_ND, head=head):
        next_ids_C = positions.next_ids_N[place]
        if product_CV.device.type == "cpu" and product_CV.dtype in _STORED_AS:
            parts.append(_compiled(product_CV, head, temperature, next_ids_C, draws_N[place], m, grains))
        else:
            logp_CV = torch.log_softmax(_finished(product_CV, head).double() / temperature, -1)
            parts.append(reference(logp_CV, next_ids_C, draws_C=draws_N[place], m=m, grains=grains))
    drawn = _joined(parts)
    if not np.isfinite(drawn.next_logp_N).all():
        raise NumericError("NONFINITE", "the teacher gives NaN or infinite logits; get the model again")
    return drawn


def products(hidden_ND: Tensor, *, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """The head's bare products [C, V] chunk by chunk, in reused memory."""
    n_positions, width = hidden_ND.shape
    dtype = head.weight_VD.dtype
    buffer_CD = torch.zeros(PRODUCT_ROWS, width, dtype=dtype, device=hidden_ND.device)
    buffer_CV = torch.empty(PRODUCT_ROWS, head.n_vocabulary, dtype=dtype, device=hidden_ND.device)
    for start in range(0, n_positions, PRODUCT_ROWS):
        place = slice(start, min(start + PRODUCT_ROWS, n_positions))
        n = place.stop - start
        buffer_CD[:n] = hidden_ND[place]
        head.product(buffer_CD, out_NV=buffer_CV)
        yield place, buffer_CV[:n]


def _finished(product_CV: Tensor, head: Head) -> Tensor:
    return head.finish(product_CV)


def _compiled(
    product_CV: Tensor, head: Head, temperature: float, next_ids_C: Ints, draws_C: Floats, m: int, grains: int
) -> Drawn:
    from tutelage.cache import _sampling_cpu  # numba: imported where it is used

    factor = head.scale / temperature
    if head.soft_cap is not None or factor <= 0:
        product_CV, factor = head.finish(product_CV), 1.0 / temperature
    n = len(product_CV)
    ids_M, units_M = np.empty(n * (m + 1), np.int64), np.empty(n * (m + 1), np.int64)
    n_heads_N, n_entries_N, next_logp_N = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    seen: Any = product_CV.view(_STORED_AS[product_CV.dtype]).numpy()
    end = _sampling_cpu.rows(
        seen, np.float32(factor), draws_C, next_ids_C, m, grains, ids_M, units_M, n_heads_N, n_entries_N, next_logp_N
    )
    return Drawn(
        ids_M=ids_M[:end].copy(),
        units_M=units_M[:end].copy(),
        offsets=_offsets(n_entries_N),
        n_heads_N=n_heads_N,
        next_logp_N=next_logp_N,
    )


def reference(logp_CV: Tensor, next_ids_C: Ints, *, draws_C: Floats, m: int, grains: int) -> Drawn:
    """The same from log-probabilities in float64, plain PyTorch on any device; moves the picks alone to the CPU."""
    p_CV = logp_CV.double().exp()
    draw_C1 = torch.from_numpy(draws_C).to(p_CV.device)[:, None]
    is_head_CV = p_CV * m >= 1.0
    n_heads_C = is_head_CV.sum(-1)
    largest_C1 = p_CV.argmax(-1, keepdim=True)
    cumulative_CV = torch.where(is_head_CV, 0.0, p_CV * m).cumsum(-1)
    cumulative_CV = torch.where((n_heads_C == 0)[:, None], cumulative_CV * (m / cumulative_CV[:, -1:]), cumulative_CV)
    points_CV = (cumulative_CV - draw_C1).ceil().clamp_min(0)  # how many of draw, draw + 1, … lie below
    is_pick_CV = torch.diff(points_CV, dim=-1, prepend=torch.zeros_like(draw_C1)) > 0
    others_CV = torch.where(is_head_CV, p_CV * (m * grains), 0.0).scatter(-1, largest_C1, 0.0)
    rounded_CV = (others_CV.cumsum(-1) + draw_C1).floor()
    units_CV = torch.diff(rounded_CV, dim=-1, prepend=torch.zeros_like(draw_C1)) + is_pick_CV * grains
    has_head_C1 = (n_heads_C > 0)[:, None]
    rest_C1 = m * grains - units_CV.sum(-1, keepdim=True) + units_CV.gather(-1, largest_C1)
    units_CV = torch.where(has_head_C1, units_CV.scatter(-1, largest_C1, rest_C1), units_CV)
    # first head, other heads, picks, each by id
    rank_CV = torch.where(is_head_CV, 1, torch.where(is_pick_CV, 2, 3)).scatter(-1, largest_C1, 0)
    rank_CV = torch.where(has_head_C1, rank_CV, torch.where(is_pick_CV, 2, 3))
    n_entries_C = (rank_CV < 3).sum(-1)
    order_CK = rank_CV.sort(dim=-1, stable=True).indices[:, : int(n_entries_C.max())]
    kept_CK = torch.arange(order_CK.shape[1], device=p_CV.device) < n_entries_C[:, None]
    next_ids_C1 = torch.from_numpy(next_ids_C).to(p_CV.device)[:, None]
    return Drawn(
        ids_M=order_CK[kept_CK].cpu().numpy(),
        units_M=units_CV.gather(-1, order_CK)[kept_CK].long().cpu().numpy(),
        offsets=_offsets(n_entries_C.cpu().numpy()),
        n_heads_N=n_heads_C.cpu().numpy(),
        next_logp_N=logp_CV.gather(-1, next_ids_C1)[:, 0].double().cpu().numpy(),
    )


def _offsets(n_entries_N: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(n_entries_N)])


def _joined(parts: list[Drawn]) -> Drawn:
    nothing = np.zeros(0, np.int64)
    return Drawn(
        ids_M=np.concatenate([nothing, *(p.ids_M for p in parts)]),
        units_M=np.concatenate([nothing, *(p.units_M for p in parts)]),
        offsets=_offsets(np.concatenate([nothing, *(np.diff(p.offsets) for p in parts)])),
        n_heads_N=np.concatenate([nothing, *(p.n_heads_N for p in parts)]),
        next_logp_N=np.concatenate([np.zeros(0), *(p.next_logp_N for p in parts)]),
    )
