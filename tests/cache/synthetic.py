"""Teachers without a model: random heads and hidden states, and rows of random tokens with their true next ones.

Shape legend: N positions, V vocabulary, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tutelage.cache.codec import Budget, Encoded, Fitted, Positions, Sample
from tutelage.types import Head


def head(*, vocabulary: int = 300, hidden: int = 8, dtype=torch.float32, seed: int = 0, **more) -> Head:
    weight_VD = torch.randn(vocabulary, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Head(weight_VD=weight_VD, bias_V=None, n_vocabulary=vocabulary, **more)


def states(n: int, *, hidden: int = 8, seed: int = 1, dtype=torch.float32) -> torch.Tensor:
    """Hidden states [N, D] whose distributions have an entropy of a few nats with `head`."""
    return 1.5 * torch.randn(n, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def positions(counts: Sequence[int], *, vocabulary: int = 300, seed: int = 2) -> Positions:
    draw = np.random.default_rng(seed)
    ids_N = draw.integers(0, vocabulary, (2, sum(counts)))
    return Positions(
        current_ids_N=ids_N[0], next_ids_N=ids_N[1], counts_R=np.array(counts, np.int64),
        seeds_R=draw.integers(0, 2**63, len(counts)).astype(np.uint64),
    )  # fmt: skip


def part(whole: Positions, row: int) -> tuple[slice, Positions]:
    """One row alone, and where it lies among the positions."""
    stop = int(whole.counts_R[: row + 1].sum())
    place = slice(stop - int(whole.counts_R[row]), stop)
    return place, Positions(
        current_ids_N=whole.current_ids_N[place], next_ids_N=whole.next_ids_N[place],
        counts_R=whole.counts_R[row : row + 1], seeds_R=whole.seeds_R[row : row + 1],
    )  # fmt: skip


def likely(hidden_ND: torch.Tensor, teacher: Head, whole: Positions, *, seed: int = 3) -> Positions:
    """The same rows with next tokens drawn from the teacher, as those of real text are."""
    p_NV = torch.softmax(teacher.logits(hidden_ND), -1)
    next_N1 = torch.multinomial(p_NV, 1, generator=torch.Generator().manual_seed(seed))
    return Positions(
        current_ids_N=whole.current_ids_N, next_ids_N=next_N1[:, 0].numpy(), counts_R=whole.counts_R,
        seeds_R=whole.seeds_R,
    )  # fmt: skip


def bytes_of(encoded: Encoded) -> list[np.ndarray]:
    return [np.frombuffer(row, np.uint8) for row in encoded.rows]


def fitted(codec, *, hidden_ND, teacher: Head, rows: Positions, budget: Budget | None = None) -> Fitted:
    sample = Sample(hidden_ND=hidden_ND, head=teacher, positions=rows)
    return codec.fit(sample, budget=budget or Budget(), temperature=1.0)


def encoded(codec, chosen: Fitted, *, hidden_ND, teacher: Head, rows: Positions) -> Encoded:
    return codec.encode(
        hidden_ND, head=teacher, positions=rows, temperature=1.0, settings=chosen.settings, tables=chosen.tables
    )


def decoded(codec, chosen: Fitted, data: Sequence[np.ndarray], *, rows: Positions, vocabulary: int):
    return codec.decode(
        data, positions=rows, n_vocabulary=vocabulary, temperature=1.0, settings=chosen.settings, tables=chosen.tables
    )
