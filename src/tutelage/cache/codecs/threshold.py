"""Threshold sampling: a few weighted tokens a position, an unbiased sample of the teacher; the default codec.

At m the teacher's distribution becomes at most m + 1 tokens whose weights are whole grains and sum to 1 exactly; each
weight has the teacher's probability as its expectation over the draw, after all rounding (`cache/sampling.py`).  Right
in losses that are linear in the target alone, which is `forward_kl`.  With the tokens goes the alignment witness, 8
bits of the teacher's log p(next) where the next token is no head, coded as `_row.witness_codes` says.

Bytes a token: 12 at m = 25 on documentation (SmolLM2), growing about as m**0.85; a row is one entropy-coded byte
string (`cache/set_coder.py`).  Its own tokens are the context of every symbol, so it decodes with them and no others.
Tables are fitted on a sample of the data and stored once.  The gradient error is that of a sample: 0.13 a position
there, and it averages away as 1 / sqrt(n).

Shape legend: N trained positions of several rows, M entries of all positions, V vocabulary, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache._coder_cpu import STATIC
from tutelage.cache._set_coder_cpu import ROW_WITNESS, Model
from tutelage.cache.codec import Budget, Encoded, Kind, Positions, Settings, Tables
from tutelage.cache.codecs import _row
from tutelage.cache.codecs._threshold_fit import DEFAULT_BYTES, fit
from tutelage.cache.sampling import Drawn, sample
from tutelage.cache.set_coder import Ints, Sets, decode_row, encode_row
from tutelage.cache.set_tables import model_of, sets_between, spans
from tutelage.types import Head, SampledTargets

__all__ = ["KIND", "decode", "encode", "expected_bytes", "fit"]

KIND: Kind = "sample"


def expected_bytes(budget: Budget, *, n_vocabulary: int, hidden_size: int, row_positions: float) -> float | None:
    """The budget, which the fit keeps; None where a threshold or an error is given instead."""
    if budget.error is not None or budget.fixed:
        return None
    return budget.bytes_per_token or DEFAULT_BYTES


def encode(
    hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float, settings: Settings, tables: Tables
) -> Encoded:
    """The rows as bytes, and log p(next) at the temperature; the draw is that of `positions.seeds_R`."""
    m, grains = grain_settings(settings)
    drawn = sample(hidden_ND, head=head, positions=positions, temperature=temperature, m=m, grains=grains)
    rows, witness_bits = encode_drawn(drawn, positions=positions, settings=settings, tables=tables)
    return Encoded(rows=rows, next_logp_N=drawn.next_logp_N, witness_bytes=witness_bits / 8)


def grain_settings(settings: Settings) -> tuple[int, int]:
    """m = 1 / tau, and tau in grains."""
    m, grains = settings["m"], settings["grains"]
    assert isinstance(m, int) and isinstance(grains, int)
    return m, grains


def encode_drawn(
    drawn: Drawn, *, positions: Positions, settings: Settings, tables: Tables
) -> tuple[tuple[bytes, ...], float]:
    """The rows of sampled targets, and how many of their bits the witness takes."""
    m, grains = grain_settings(settings)
    model = model_of(tables, m=m, grains=grains)
    witness_N = _row.witness_codes(drawn.next_logp_N).astype(np.int64)
    rows = tuple(
        encode_row(
            model,
            sets_between(drawn, witness_N, first, last),
            current_ids_n=positions.current_ids_N[first:last],
            next_ids_n=positions.next_ids_N[first:last],
        )
        for first, last in spans(positions)
    )
    return rows, witness_bits(sets_between(drawn, witness_N, 0, len(witness_N)), model, next_ids_N=positions.next_ids_N)


def witness_bits(sets: Sets, model: Model, *, next_ids_N: Ints) -> float:
    """How many bits the witness takes: two plain ones and a symbol of its table, where the next token is no head."""
    position_M = np.repeat(np.arange(len(next_ids_N)), np.diff(sets.offsets))
    is_next_M = sets.ids_M == next_ids_N[position_M]
    is_head_M = np.arange(len(sets.ids_M)) - sets.offsets[position_M] < sets.n_heads_N[position_M]
    is_head_N, is_pick_N = (np.zeros(len(next_ids_N), np.bool_) for _ in range(2))
    is_head_N[position_M[is_next_M & is_head_M]] = True
    is_pick_N[position_M[is_next_M & ~is_head_M]] = True
    context_N, symbol_N = ROW_WITNESS + is_pick_N, sets.witness_N >> 2
    share_N = np.diff(model.cumulative.astype(np.int64))[context_N, symbol_N] / (1 << STATIC)
    return float((2.0 - np.log2(share_N))[~is_head_N].sum())


def decode(
    rows: Sequence[npt.NDArray[np.uint8]],
    *,
    positions: Positions,
    n_vocabulary: int,
    temperature: float,
    settings: Settings,
    tables: Tables,
) -> SampledTargets:
    """The weighted tokens of all positions; `Mismatch` for bytes that are damaged or belong to other tokens."""
    m, grains = grain_settings(settings)
    model = model_of(tables, m=m, grains=grains)
    assert len(model.class_V) == n_vocabulary, "the reader has compared vocabularies"
    parts = [
        decode_row(
            model,
            data,
            current_ids_n=positions.current_ids_N[first:last],
            next_ids_n=positions.next_ids_N[first:last],
            row_number=number,
        )
        for number, (data, (first, last)) in enumerate(zip(rows, spans(positions), strict=True))
    ]
    ids_M, units_M, lengths_N = (
        np.concatenate([np.zeros(0, np.int64), *arrays])
        for arrays in (
            [part.ids_M for part in parts], [part.units_M for part in parts], [np.diff(part.offsets) for part in parts]
        )
    )  # fmt: skip
    return SampledTargets(
        ids_M=torch.from_numpy(ids_M),
        weights_M=torch.from_numpy(units_M.astype(np.float32) / np.float32(m * grains)),
        offsets=torch.from_numpy(_offsets(lengths_N)),
        temperature=temperature,
    )


def _offsets(lengths_N: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths_N)])
