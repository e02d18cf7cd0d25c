"""Writes text with a model in this process: rows together, each with its own draws.

What a row says depends on its prompt and its generator alone, not on its neighbours, as far as the arithmetic allows:
padding stands on the left and is masked out, positions count from a row's own first token, and a token is drawn by a
race of all of them.  What padding changes in the last bits of float32 turned none of 2,000 races; it turned 14 of 2,000
uniform numbers that fall into a cumulative distribution, whose thousands of borders all move.

Shape legend: B rows that still write, T tokens, D hidden size, V vocabulary, N rows of one piece of the logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import ConfigError
from tutelage.models.head import head_of
from tutelage.models.placement import device_of
from tutelage.types import CausalLM

LOGIT_BYTES = 64 << 20  # of probabilities that are alive at once
_ROUNDINGS = 8.0  # of the dtype by which padding may change a hidden state: another order of the same sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The ids after a prompt, without the one that ended them."""

    ids: tuple[int, ...]
    ended: bool  # else cut by the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be written: after which ids, how much, how, and with whose luck."""

    ids: Sequence[int]
    most: int
    temperature: float
    draw: np.random.Generator


@dataclass(slots=True)
class _Row:
    wish: Wish
    number: int
    ids: list[int]


class Decoder:
    """A model, its head and the ids on which it stops."""

    def __init__(self, model: CausalLM, *, n_vocabulary: int, ends: frozenset[int]) -> None:
        self._model, self._ends = model, ends
        self._head = head_of(model, n_vocabulary=n_vocabulary)
        self._device = device_of(model)

    @torch.no_grad()
    def write(self, wishes: Sequence[Wish], *, on_step: Callable[[int], None] = lambda n: None) -> list[Written]:
        """The text of each wish; `on_step` is told how many tokens were just written, and may raise to stop."""
        done: dict[int, Written] = {}
        rows = [_Row(wish, number, []) for number, wish in enumerate(wishes)]
        ids_BT, mask_BT = self._padded([row.wish.ids for row in rows])
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache: Any = None
        while rows:
            hidden_BD, cache = self._forward(ids_BT, mask_BT, positions_BT, cache)
            tokens = self._choose(hidden_BD, rows)
            on_step(len(rows))
            kept = [b for b, token in enumerate(tokens) if not self._took(rows[b], token, done)]
            if not kept:
                break
            last_B = torch.tensor([tokens[b] for b in kept], device=self._device)
            positions_BT = positions_BT[:, -1:] + 1
            if len(kept) < len(rows):
                kept_B = torch.tensor(kept, device=self._device)
                mask_BT, positions_BT = mask_BT[kept_B], positions_BT[kept_B]
                cache.batch_select_indices(kept_B)
                rows = [rows[b] for b in kept]
            ids_BT = last_B[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        return [done[number] for number in range(len(wishes))]

    def _took(self, row: _Row, token: int, done: dict[int, Written]) -> bool:
        """Takes a token in; whether the row is done with it."""
        ended = token in self._ends
        if not ended:
            row.ids.append(token)
        if ended or len(row.ids) >= row.wish.most:
            done[row.number] = Written(ids=tuple(row.ids), ended=ended)
            return True
        return False

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T], every row ending in the last column."""
        longest = max(len(ids) for ids in prompts)
        ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for b, ids in enumerate(prompts):
            ids_BT[b, longest - len(ids) :] = torch.tensor(list(ids))
            mask_BT[b, longest - len(ids) :] = 1
        return ids_BT.to(self._device), mask_BT.to(self._device)

    def _forward(self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The hidden states [B, D] of the last column, and the cache of all; logits of other columns are never made."""
        output = self._model.base_model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache, use_cache=True
        )
        if output.past_key_values is None:
            raise ConfigError("CONFIG", f"{type(self._model).__name__} cannot go on with a text; choose another model")
        return output.last_hidden_state[:, -1], output.past_key_values

    def _choose(self, hidden_BD: Tensor, rows: Sequence[_Row]) -> list[int]:
        """The next token of each row, a piece of the rows at a time."""
        step = max(1, LOGIT_BYTES // (8 * self._head.n_vocabulary))
        chosen: list[int] = []
        for begin in range(0, len(rows), step):
            logits_NV = self._head.logits(hidden_BD[begin : begin + step])
            wishes = [row.wish for row in rows[begin : begin + step]]
            temperatures, draws = [wish.temperature for wish in wishes], [wish.draw for wish in wishes]
            chosen += picks(logits_NV, temperatures=temperatures, draws=draws)
        return chosen

    @torch.no_grad()
    def feels_padding(self, prompt: Sequence[int]) -> bool:
        """Whether padding on the left changes what the model sees: then rows of different length cannot share a batch.

        So it is for models without attention alone (recurrent layers take padding for text).
        """
        longer = [*prompt, *prompt]
        alone_D = self._hidden([prompt])[0].float()
        beside_D = self._hidden([prompt, longer])[0].float()
        scale = max(1.0, float(alone_D.abs().max()))
        eps = torch.finfo(next(self._model.parameters()).dtype).eps
        return not float((alone_D - beside_D).abs().max()) <= _ROUNDINGS * eps * scale * len(longer) ** 0.5

    def _hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        ids_BT, mask_BT = self._padded(prompts)
        return self._forward(ids_BT, mask_BT, (mask_BT.cumsum(-1) - 1).clamp(min=0), None)[0]


def picks(logits_NV: Tensor, *, temperatures: Sequence[float], draws: Sequence[np.random.Generator]) -> list[int]:
    """A token for each row: the most likely at temperature 0, else the first to arrive in a race.

    Token i arrives after a time that is exponential with rate p_i, so it is the first with probability p_i.
    """
    if not any(temperatures):
        found: list[int] = logits_NV.argmax(-1).tolist()
        return found
    if logits_NV.device.type == "mps":  # has no float64
        logits_NV = logits_NV.cpu()
    greedy_N = [temperature == 0 for temperature in temperatures]
    divisor_N = torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64, device=logits_NV.device)
    probability_NV = torch.softmax(logits_NV.double() / divisor_N[:, None], dim=-1)
    time_NV = np.ones(logits_NV.shape)
    for time_V, draw, greedy in zip(time_NV, draws, greedy_N, strict=True):
        if not greedy:
            draw.standard_exponential(out=time_V)
    np.maximum(time_NV, np.finfo(np.float64).tiny, out=time_NV)
    chosen: list[int] = (probability_NV / torch.from_numpy(time_NV).to(probability_NV.device)).argmax(-1).tolist()
    return chosen
