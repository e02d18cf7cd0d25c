"""The whole distribution: log-probabilities of the whole vocabulary, for small caches and as the oracle of the others.

Bytes a token: V * 2 + 1 (float16), V * 4 + 1 (float32), V * 8 + 1 (float64), and 6 a row.  Little-endian, a row:

    n x V float   log-probabilities in nats at temperature 1, whatever the cache's temperature: as logits they serve any
    n x uint8     alignment witness, log p(next)
    6 bytes       hash of the next tokens, CRC-32 (`_row.py`)

Error: float16 rounds each log-probability by at most 2**-11 of its magnitude plus 2**-25 (-inf is kept, and what lies
below -65,504 nats becomes it); with d the rounding, KL(teacher || stored) <= (max d - min d)**2 / 8.  float64 is exact.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache.codec import Budget, Encoded, Fitted, Kind, Mismatch, Positions, Sample, Settings, Tables
from tutelage.cache.codecs._row import (
    SEAL_BYTES,
    distributions,
    next_logp,
    opened,
    row_of,
    sealed,
    slices_of,
    witness_codes,
)
from tutelage.errors import ConfigError
from tutelage.types import Head, LogitTargets

KIND: Kind = "logits"
DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
_LEAST_FLOAT16 = -65504.0


def fit(sample: Sample, *, budget: Budget, temperature: float) -> Fitted:
    """The dtype that was chosen, float16 without one; there is nothing else to fit."""
    unknown = budget.fixed.keys() - {"dtype"}
    if unknown:
        raise ConfigError("CONFIG", f"cache: {', '.join(sorted(unknown))} unknown to codec dense; it knows dtype")
    n_vocabulary = sample.head.n_vocabulary
    name = str(budget.fixed.get("dtype", "float16"))
    if name not in DTYPES:
        raise ConfigError("CONFIG", f"cache.dtype: '{name}' unknown; known: {', '.join(DTYPES)}")
    n_bytes = _position_bytes(n_vocabulary, name)
    if budget.bytes_per_token is not None and n_bytes > budget.bytes_per_token:
        raise ConfigError(
            "CONFIG",
            f"cache.bytes_per_token: {budget.bytes_per_token:g}, and {name} log-probabilities of {n_vocabulary} tokens "
            f"are {n_bytes}; set cache.codec=threshold (unbiased at 16) or cache.codec=hidden",
        )
    why = f"{name} log-probabilities: {n_bytes} bytes a token" + (_rounding(sample) if name == "float16" else "")
    return Fitted(settings={"dtype": name}, tables={}, why=why)


def expected_bytes(budget: Budget, *, n_vocabulary: int, hidden_size: int, row_positions: float) -> float:
    """What a position takes, and the row's seal."""
    dtype = str(budget.fixed.get("dtype", "float16"))
    return _position_bytes(n_vocabulary, dtype) + SEAL_BYTES / row_positions


def rounding_bound(logp: Tensor) -> Tensor:
    """By how much float16 rounds a log-probability at most, in nats; near 0 the absolute term is all there is."""
    return 2.0**-11 * logp.abs() + 2.0**-25


def _rounding(sample: Sample) -> str:
    """What the rounding can cost on the sample: (max d - min d)**2 / 8 with |d| at most the least likely token's."""
    chunks = distributions(sample.hidden_ND, head=sample.head, positions=sample.positions, temperature=1.0)
    least = min((logp_CV[logp_CV > _LEAST_FLOAT16].min().item() for _, logp_CV in chunks), default=0.0)
    bound_nats = (2 * rounding_bound(torch.tensor(least)).item()) ** 2 / 8
    return f"; rounding costs at most {bound_nats:.1e} nats of KL"


def encode(
    hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float, settings: Settings, tables: Tables
) -> Encoded:
    """The rows as bytes."""
    stored = np.empty((len(positions), head.n_vocabulary), DTYPES[str(settings["dtype"])])
    next_logp_N = np.empty(len(positions))
    for place, logp_CV in distributions(hidden_ND, head=head, positions=positions, temperature=1.0):
        with np.errstate(over="ignore"):  # beyond float16 lies -inf
            stored[place] = logp_CV.cpu().numpy()
        next_logp_N[place] = next_logp(logp_CV, positions=positions, place=place)
    codes_N = witness_codes(next_logp_N)
    rows = tuple(
        sealed(stored[row].tobytes() + codes_N[row].tobytes(), positions.next_ids_N[row])
        for row in slices_of(positions)
    )
    return Encoded(rows=rows, next_logp_N=next_logp_N, witness_bytes=float(len(positions)))


def decode(
    rows: Sequence[npt.NDArray[np.uint8]],
    *,
    positions: Positions,
    n_vocabulary: int,
    temperature: float,
    settings: Settings,
    tables: Tables,
) -> LogitTargets:
    """Log-probabilities [N, V] at temperature 1: float32, or float64 where they are stored so."""
    name = str(settings["dtype"])
    payloads = opened(rows, positions=positions, payload_bytes=lambda n: n * _position_bytes(n_vocabulary, name))
    wide = np.float64 if name == "float64" else np.float32
    logits_NV = np.empty((len(positions), n_vocabulary), wide)
    codes_N = np.empty(len(positions), np.uint8)
    for row, data in zip(slices_of(positions), payloads, strict=True):
        n = row.stop - row.start
        logits_NV[row] = data[: len(data) - n].view(DTYPES[name]).reshape(n, n_vocabulary)
        codes_N[row] = data[len(data) - n :]
    _check_witness(logits_NV, codes_N, positions=positions)
    return LogitTargets(logits_NV=torch.from_numpy(logits_NV))


def _check_witness(
    logits_NV: npt.NDArray[np.floating], codes_N: npt.NDArray[np.uint8], *, positions: Positions
) -> None:
    stored_N = logits_NV[np.arange(len(positions)), positions.next_ids_N]
    wrong = np.abs(witness_codes(stored_N).astype(int) - codes_N) > 1
    if wrong.any():
        raise Mismatch(row_of(int(wrong.argmax()), positions=positions), "its witness contradicts its distribution")


def _position_bytes(n_vocabulary: int, dtype: str) -> int:
    return n_vocabulary * np.dtype(DTYPES[dtype]).itemsize + 1
