"""What models write to prompts that end where an answer begins: greedy, in batches, bounded in tokens.

Shape legend: B prompts of a batch, T positions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models import vocabulary
from tutelage.models.placement import device_of

BATCH_TOKENS = 4_096  # of prompts and answers together, at most (one prompt may have more)


def write_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n_vocabulary: int,
    max_tokens: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[str]:
    """The model's answer to each prompt: the most likely token again and again, at most `max_tokens`."""
    written = write_ids(model, tokenizer, prompts, n_vocabulary=n_vocabulary, max_tokens=max_tokens, progress=progress)
    return [vocabulary.decoded(tokenizer, ids) for ids in written]


@torch.no_grad()
def write_ids(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n_vocabulary: int,
    max_tokens: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[list[int]]:
    """The same as ids, without the one that ended the text: fewer than `max_tokens` where it ended by itself."""
    answers: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(sorted(end_ids(model, tokenizer)))
    for batch in _batches(prompts, max_tokens=max_tokens):
        written = _write(model, [prompts[n] for n in batch], ends=ends, n_vocabulary=n_vocabulary, n_new=max_tokens)
        for n, ids in zip(batch, written, strict=True):
            answers[n] = ids
        progress(len(batch))
    return answers


def end_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """The ids that a model stops on."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return {int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None}


def _batches(prompts: Sequence[Sequence[int]], *, max_tokens: int) -> list[list[int]]:
    """Places of prompts, similar lengths together."""
    batches: list[list[int]] = []
    for n in sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), n)):
        width = len(prompts[n]) + max_tokens
        if batches and (len(batches[-1]) + 1) * width <= BATCH_TOKENS:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches


def _write(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, ends: Tensor, n_vocabulary: int, n_new: int
) -> list[list[int]]:
    """New ids of each prompt, without the one that ended it.  Shorter prompts have padding at their left."""
    width = max(map(len, prompts))
    step_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    device = device_of(model)
    step_BT, mask_BT, ends = step_BT.to(device), mask_BT.to(device), ends.to(device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    made: list[Tensor] = []
    open_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = None
    while len(made) < n_new and bool(open_B.any()):
        output = model(
            input_ids=step_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        next_B = output.logits[:, -1, :n_vocabulary].argmax(-1)
        open_B = open_B & ~torch.isin(next_B, ends)
        made.append(torch.where(open_B, next_B, -1))
        step_BT = next_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(step_BT)], -1)
        positions_BT = positions_BT[:, -1:] + 1
    rows = torch.stack(made, -1).tolist() if made else [[] for _ in prompts]
    return [[number for number in row if number >= 0] for row in rows]
