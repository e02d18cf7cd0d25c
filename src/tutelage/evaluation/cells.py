"""Into which cells the tokens of a text fall: by position, by rarity, by the teacher's confidence.

A cell is a part of one sequence; its sums are kept beside the sequence's own, so that a slice over all sequences can be
measured from the records.  Sequences themselves are told apart by source and length, see `slices.py`.

Shape legend: N trained positions, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.types import Batch

POSITION, RARITY, CONFIDENCE = "position", "rarity", "teacher_confidence"

_POSITIONS = (16, 64, 256, 1024)  # of the token in its row, from 0
_PER_MILLION = (10.0, 100.0, 1000.0)  # tokens of the training data
_CONFIDENCES = (0.25, 0.5, 0.75, 0.9, 0.99)

NAMES: Mapping[str, tuple[str, ...]] = {
    POSITION: ("positions 0-15", "positions 16-63", "positions 64-255", "positions 256-1,023", "positions from 1,024"),
    RARITY: (
        "tokens that the training data lack",
        "tokens under 10 in a million",
        "tokens of 10 to 100 in a million",
        "tokens of 100 to 1,000 in a million",
        "tokens over 1,000 in a million",
    ),
    CONFIDENCE: (
        "teacher under 25 % sure",
        "teacher 25 to 50 % sure",
        "teacher 50 to 75 % sure",
        "teacher 75 to 90 % sure",
        "teacher 90 to 99 % sure",
        "teacher over 99 % sure",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFacts:
    """What is known of the tokens of a vocabulary; None where nobody can say."""

    n_bytes_V: NDArray[np.int64] | None = None  # 0: a control token, which stands for no text
    rarity_V: NDArray[np.int64] | None = None  # the place of each token in NAMES[RARITY]


def rarity_classes(n_seen_V: NDArray[np.int64]) -> NDArray[np.int64]:
    """By token its place in NAMES[RARITY], from how often each was seen in the training data."""
    per_million_V = n_seen_V * (1e6 / max(int(n_seen_V.sum()), 1))
    classes_V: NDArray[np.int64] = np.searchsorted(_PER_MILLION, per_million_V, side="right") + 1
    return np.where(n_seen_V == 0, 0, classes_V).astype(np.int64)


def positions_in_row(batch: Batch) -> NDArray[np.int64]:
    """By trained position the place of the token that it predicts in its row, from 0, shape [N]."""
    view = batch.view
    index_N = view.index_N.cpu().numpy()
    if view.positions_BT is None:
        return np.asarray(index_N % view.ids_BT.shape[1] + 1, dtype=np.int64)
    return np.asarray(view.positions_BT.reshape(-1).cpu().numpy()[index_N] + 1, dtype=np.int64)


def cells_of(
    position_N: NDArray[np.int64],
    next_ids_N: NDArray[np.int64],
    *,
    tokens: TokenFacts,
    confidence_N: NDArray[np.float64] | None,
) -> dict[str, NDArray[np.int64]]:
    """By kind the cell of each token; `confidence_N` is the teacher's, None without one."""
    found = {POSITION: np.searchsorted(_POSITIONS, position_N, side="right")}
    if tokens.rarity_V is not None:
        found[RARITY] = tokens.rarity_V[next_ids_N]
    if confidence_N is not None:
        found[CONFIDENCE] = np.searchsorted(_CONFIDENCES, np.nan_to_num(confidence_N), side="right")
    return {kind: np.asarray(cell_N, dtype=np.int64) for kind, cell_N in found.items()}
