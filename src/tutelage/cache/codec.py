"""What every codec of `codecs/` is: the values that go in and come out, and the functions that a codec file has.

    KIND                      "sample" | "top_k" | "hidden" | "logits": which targets it decodes to
    fit(sample, ...)          choose settings and tables on a sample of the data, so that a budget is met
    encode(...)               whole rows of a forward pass to one byte string a row
    decode(...)               the byte strings of whole rows back to targets; refuses what does not belong to the rows

Shape legend: N trained positions of several rows, one row after the other; R rows; V vocabulary; D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.io import Json
from tutelage.types import CachedTargets, Head

CODECS = "cache/codecs"
Kind: TypeAlias = Literal["sample", "top_k", "hidden", "logits"]
Settings: TypeAlias = Mapping[str, Json]  # of a codec, as the manifest holds them
Tables: TypeAlias = Mapping[str, Tensor]  # of a codec, shared by all rows, stored once
CHUNK_POSITIONS = 512  # positions whose logits a codec holds at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The trained positions of whole rows: the token there, the true next token, and how the rows share them.

    A codec may use both ids as context, when it writes and when it reads: the reader always has the tokens.
    """

    current_ids_N: npt.NDArray[np.int64]
    next_ids_N: npt.NDArray[np.int64]
    counts_R: npt.NDArray[np.int64]  # trained positions of each row; their sum is N
    seeds_R: npt.NDArray[np.uint64]  # of each row's draw: derived from the row's key and the draw's number alone

    def __len__(self) -> int:
        return len(self.next_ids_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample of the data, labelled by the teacher: what `fit` works on.  Hidden states [N, D] at the positions."""

    hidden_ND: Tensor
    head: Head
    positions: Positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the user asked for: at most one of bytes a token (targets and witness, on average) and an error target.

    `error` is the per-position gradient error of `cache/error.py`; `fixed` holds what the user chose outright.
    """

    bytes_per_token: float | None = None
    error: float | None = None
    fixed: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What `fit` chose, and a sentence for people that says why, with the measured numbers."""

    settings: Settings
    tables: Tables
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One byte string a row, and the teacher's log-probability of each true next token (nats, float64)."""

    rows: tuple[bytes, ...]
    next_logp_N: npt.NDArray[np.float64]
    witness_bytes: float  # of `rows`, how much the alignment witness takes (an entropy code may share bytes)


class Codec(Protocol):
    """A module of `codecs/`."""

    KIND: Kind

    def expected_bytes(
        self, budget: Budget, *, n_vocabulary: int, hidden_size: int, row_positions: float
    ) -> float | None:
        """Bytes a token of targets, witness and checksums, before anything is asked: rows of so many positions.

        None where the data alone can tell.
        """
        ...

    def fit(self, sample: Sample, *, budget: Budget, temperature: float) -> Fitted:
        """Settings and tables for a budget; ConfigError when it cannot be met, naming what can."""
        ...

    def encode(
        self,
        hidden_ND: Tensor,
        *,
        head: Head,
        positions: Positions,
        temperature: float,
        settings: Settings,
        tables: Tables,
    ) -> Encoded:
        """The rows as bytes: the same bytes for the same hidden states, whatever rows are encoded beside them."""
        ...

    def decode(
        self,
        rows: Sequence[npt.NDArray[np.uint8]],
        *,
        positions: Positions,
        n_vocabulary: int,
        temperature: float,
        settings: Settings,
        tables: Tables,
    ) -> CachedTargets:
        """Targets on the CPU at the N positions.

        Raises `Mismatch` for bytes that are cut, flipped, or do not belong to the tokens of `positions`.
        """
        ...


class Mismatch(Exception):  # not for users: the reader turns it into IntegrityError with shard and row
    """Row `row` of a decode call does not belong to its tokens; `what` says how that was seen."""

    def __init__(self, row: int, what: str, *, damaged: bool = False) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what, self.damaged = row, what, damaged


def chunks_of(n_positions: int) -> list[slice]:
    """Slices of at most CHUNK_POSITIONS positions."""
    return [slice(n, min(n + CHUNK_POSITIONS, n_positions)) for n in range(0, n_positions, CHUNK_POSITIONS)]


@torch.no_grad()
def log_probabilities(hidden_ND: Tensor, *, head: Head, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, V] of the teacher, float32 or wider: for a chunk, never for all positions."""
    logits_NV = head.logits(hidden_ND)
    return torch.log_softmax(logits_NV / temperature if temperature != 1.0 else logits_NV, dim=-1)
