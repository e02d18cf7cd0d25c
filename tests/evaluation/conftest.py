"""Tiny models and held-out batches, made here: no data room, no download."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tutelage.types import IGNORED, Batch, TokenView

N_VOCABULARY = 60


def tiny_model(seed: int, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small Llama with large random weights, so that its distributions are far from uniform."""
    model: nn.Module = tiny.llama(seed=seed, layers=1, vocabulary=N_VOCABULARY, dtype=dtype).requires_grad_(False)
    return model


def rows_of_ids(n: int, *, length: int = 12, seed: int = 0) -> list[Tensor]:
    """n sequences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, N_VOCABULARY, (length - i % 4,), generator=generator) for i in range(n)]


def batches_of(rows: Sequence[Tensor], *, size: int) -> list[tuple[Batch, Tensor]]:
    """The rows, `size` to a batch, padded at their end, with the row of each trained position."""
    made = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        width = max(len(r) for r in group)
        ids_BT = torch.zeros(len(group), width, dtype=torch.int64)
        labels_BT = torch.full_like(ids_BT, IGNORED)
        for i, row in enumerate(group):
            ids_BT[i, : len(row)] = row
            labels_BT[i, 1 : len(row)] = row[1:]
        view = TokenView.of(ids_BT, labels_BT)
        made.append((Batch(views={"tiny": view}), start + view.index_N // width))
    return made


def rows_written_by(model: nn.Module, n: int, *, length: int = 12, seed: int = 0) -> list[Tensor]:
    """n sequences of different lengths, drawn from the model itself."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(1, N_VOCABULARY, (n, 1), generator=generator)
    for _ in range(length - 1):
        p_BV = model(input_ids=ids_BT).logits[:, -1].double().softmax(-1)
        ids_BT = torch.cat([ids_BT, torch.multinomial(p_BV, 1, generator=generator)], dim=1)
    return [row[: length - i % 4] for i, row in enumerate(ids_BT)]


@pytest.fixture(scope="session")
def teacher() -> nn.Module:
    return tiny_model(1)


@pytest.fixture(scope="session")
def student() -> nn.Module:
    return tiny_model(2)
