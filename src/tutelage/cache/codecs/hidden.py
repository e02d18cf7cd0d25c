"""The teacher's last hidden states in 8 bits a number, and its head once: every loss, at any temperature.

Bytes a token: D + 3, and 6 a row (SmolLM2-135M: 579).  Little-endian, a row of n positions:

    n x D int8     codes -127 ... 127
    n x float16    scale of the position
    n x uint8      alignment witness, log p(next) at temperature 1
    6 bytes        hash of the next tokens, CRC-32 (`_row.py`)

    hidden = code * scale of the position * scale of the column + offset of the column

Tables, once a cache: `column_scale` and `column_offset` (float32, D), `head.weight` (its own dtype, real vocabulary
alone) and `head.bias`.  Settings: the head's scale, soft cap and fingerprint, and the witness's tolerance.

Error: rounding to nearest, half a step of 1/127 of the position's largest number.  Columns are scaled so that this
hurts least: the geometric mean, weights 3/4 and 1/4, of their rms (equal relative error) and of sensitivity**-0.5
(equal cost in nats; the sensitivity is the mean diagonal of the Fisher information of the hidden state).  SmolLM2-135M
on Python's documentation, KL(teacher || stored) in nats: 2.4e-4; by rms alone 3.3e-4, without column offsets 5.1e-4,
one scale a column for all positions 1.2e-3.

Shape legend: N trained positions of several rows, C positions of a chunk, R rows, V vocabulary, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache.codec import (
    Budget,
    Encoded,
    Fitted,
    Kind,
    Mismatch,
    Positions,
    Sample,
    Settings,
    Tables,
    chunks_of,
    log_probabilities,
)
from tutelage.cache.codecs import _row
from tutelage.cache.error import CacheError, measure
from tutelage.errors import ConfigError
from tutelage.types import DenseTargets, Head

KIND: Kind = "hidden"
_LARGEST = 127
_MOST_FITTED = 1024  # positions that the error is measured on
_LEAST_TOLERANCE_NATS = 0.5  # of the witness: a foreign row is wrong by several nats


# --- fit -------------------------------------------------------------------------------------------------------------


def fit(sample: Sample, *, budget: Budget, temperature: float) -> Fitted:
    """Column scales and offsets from the sample, and the head; there is one size, D + 3 bytes a token."""
    if budget.fixed:
        raise ConfigError("CONFIG", f"cache: {', '.join(sorted(budget.fixed))} unknown to codec hidden; it knows none")
    n_bytes = sample.hidden_ND.shape[1] + 3
    if budget.bytes_per_token is not None and n_bytes > budget.bytes_per_token:
        raise ConfigError(
            "CONFIG",
            f"cache.bytes_per_token: {budget.bytes_per_token:g}, and hidden states take {n_bytes}; "
            "set cache.codec=threshold (forward KL from 8 bytes on) or cache.codec=topk",
        )
    tables = {**_columns(sample), **_head_tables(sample.head)}
    settings = {
        "scale": sample.head.scale,
        "soft_cap": sample.head.soft_cap,
        "fingerprint": sample.head.fingerprint,
        "tolerance_nats": _LEAST_TOLERANCE_NATS,
    }
    measured, largest_nats = _measured(sample, settings=settings, tables=tables, temperature=temperature)
    if budget.error is not None and measured.per_position > budget.error:
        raise ConfigError(
            "CONFIG",
            f"cache.error: {budget.error:g}, and 8-bit hidden states have {measured.per_position:.3g}; "
            "set cache.codec=dense or a larger cache.error",
        )
    why = (
        f"8-bit hidden states: {n_bytes} bytes a token; KL to the teacher {measured.kl_nats:.1e} nats, gradient error "
        f"{measured.per_position:.4f} a position, {measured.batch:.5f} of the mean over {measured.n}"
    )
    tolerance = max(_LEAST_TOLERANCE_NATS, 4 * largest_nats)
    return Fitted(settings={**settings, "tolerance_nats": tolerance}, tables=tables, why=why)


def expected_bytes(budget: Budget, *, n_vocabulary: int, hidden_size: int, row_positions: float) -> float:
    """A byte a number, two for the position's scale, one for its witness, and the row's seal."""
    return hidden_size + 3 + _row.SEAL_BYTES / row_positions


def _columns(sample: Sample) -> dict[str, Tensor]:
    hidden_ND = sample.hidden_ND.float()
    offset_D = hidden_ND.mean(0)
    rms_D = (hidden_ND - offset_D).square().mean(0).sqrt()
    sensitivity_D = _sensitivity(sample)
    scale_D = (rms_D**0.75 * sensitivity_D**-0.125).nan_to_num(posinf=0.0)
    scale_D = scale_D.clamp_min(1e-6 * scale_D.max().clamp_min(1e-30))  # a column that is constant in the sample
    return {"column_scale": (scale_D / scale_D.mean()).cpu(), "column_offset": offset_D.cpu()}


@torch.no_grad()
def _sensitivity(sample: Sample) -> Tensor:
    """What a small error of each column costs in KL, up to a factor, shape [D]: E_p[W**2] - E_p[W]**2, averaged."""
    weight_VD = sample.head.weight_VD[: sample.head.n_vocabulary].float()
    some_ND = sample.hidden_ND[:: max(1, len(sample.hidden_ND) // _MOST_FITTED)]
    total_D = torch.zeros_like(weight_VD[0])
    for place in chunks_of(len(some_ND)):
        p_CV = log_probabilities(some_ND[place], head=sample.head).exp_().to(weight_VD.dtype)
        total_D += (p_CV.sum(0) @ weight_VD.square()) - (p_CV @ weight_VD).square().sum(0)
    return (total_D / max(1, len(some_ND))).clamp_min(1e-12)


def _head_tables(head: Head) -> dict[str, Tensor]:
    tables = {"head.weight": head.weight_VD[: head.n_vocabulary].detach().cpu().contiguous()}
    if head.bias_V is not None:
        tables["head.bias"] = head.bias_V[: head.n_vocabulary].detach().cpu().contiguous()
    return tables


@torch.no_grad()
def _measured(sample: Sample, *, settings: Settings, tables: Tables, temperature: float) -> tuple[CacheError, float]:
    """The error on the sample, and by how much a next token's log-probability is off at most."""
    hidden_ND, next_ids_N1 = sample.hidden_ND[:_MOST_FITTED], torch.from_numpy(sample.positions.next_ids_N)[:, None]
    targets = DenseTargets(
        hidden_ND=_hidden(*_codes(hidden_ND, tables=tables), tables=tables).to(hidden_ND.device), head=sample.head
    )
    largest_nats = 0.0
    for place in chunks_of(len(hidden_ND)):
        at = next_ids_N1[:_MOST_FITTED][place].to(hidden_ND.device)
        difference_C1 = log_probabilities(hidden_ND[place], head=sample.head).gather(-1, at) - log_probabilities(
            targets.hidden_ND[place], head=sample.head
        ).gather(-1, at)
        largest_nats = max(largest_nats, difference_C1.abs().max().item())
    return measure(targets, hidden_ND=hidden_ND, head=sample.head, temperature=temperature), largest_nats


# --- encode ----------------------------------------------------------------------------------------------------------


def encode(
    hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float, settings: Settings, tables: Tables
) -> Encoded:
    """The rows as bytes."""
    next_logp_N = np.empty(len(positions))
    for place, logp_CV in _row.distributions(hidden_ND, head=head, positions=positions, temperature=1.0):
        next_logp_N[place] = _row.next_logp(logp_CV, positions=positions, place=place)
    codes_ND, scale_N = _codes(hidden_ND, tables=tables)
    witness_N = _row.witness_codes(next_logp_N)
    rows = tuple(
        _row.sealed(
            codes_ND[row].tobytes() + scale_N[row].tobytes() + witness_N[row].tobytes(), positions.next_ids_N[row]
        )
        for row in _row.slices_of(positions)
    )
    return Encoded(rows=rows, next_logp_N=next_logp_N, witness_bytes=float(len(positions)))


def _codes(hidden_ND: Tensor, *, tables: Tables) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Codes [N, D] and the scale of each position [N]."""
    even_ND = (hidden_ND.detach().cpu().float() - tables["column_offset"]) / tables["column_scale"]
    scale_N = (even_ND.abs().amax(-1) / _LARGEST).clamp(2.0**-24, 65504.0).half()
    codes_ND = (even_ND / scale_N.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return codes_ND.numpy(), scale_N.numpy()


def _hidden(codes_ND: npt.NDArray[np.int8], scale_N: npt.NDArray[np.float16], *, tables: Tables) -> Tensor:
    """Hidden states [N, D], float32."""
    even_ND = torch.from_numpy(codes_ND).float().mul_(torch.from_numpy(scale_N).float()[:, None])
    return even_ND.mul_(tables["column_scale"]).add_(tables["column_offset"])


# --- decode ----------------------------------------------------------------------------------------------------------


def decode(
    rows: Sequence[npt.NDArray[np.uint8]],
    *,
    positions: Positions,
    n_vocabulary: int,
    temperature: float,
    settings: Settings,
    tables: Tables,
) -> DenseTargets:
    """Hidden states [N, D] in float32 with the cache's own head."""
    size, n = len(tables["column_scale"]), len(positions)
    payloads = _row.opened(rows, positions=positions, payload_bytes=lambda m: m * (size + 3))
    codes_ND, scale_N = np.empty((n, size), np.int8), np.empty(n, "<f2")
    witness_N = np.empty(n, np.uint8)
    for row, data in zip(_row.slices_of(positions), payloads, strict=True):
        m = row.stop - row.start
        codes_ND[row] = data[: m * size].view(np.int8).reshape(m, size)
        scale_N[row] = data[m * size : m * (size + 2)].view("<f2")
        witness_N[row] = data[m * (size + 2) :]
    targets = DenseTargets(hidden_ND=_hidden(codes_ND, scale_N, tables=tables), head=_head(settings, tables=tables))
    _check_witness(targets, witness_N, positions=positions, tolerance_nats=_number(settings["tolerance_nats"]))
    return targets


def _head(settings: Settings, *, tables: Tables) -> Head:
    """The cache's head: it refers to the tables' tensors, so nothing is copied and nothing need be kept."""
    weight_VD, soft_cap = tables["head.weight"], settings["soft_cap"]
    return Head(
        weight_VD=weight_VD,
        bias_V=tables.get("head.bias"),
        n_vocabulary=len(weight_VD),
        scale=_number(settings["scale"]),
        soft_cap=None if soft_cap is None else _number(soft_cap),
        fingerprint=str(settings["fingerprint"]),
    )


@torch.no_grad()
def _check_witness(
    targets: DenseTargets, witness_N: npt.NDArray[np.uint8], *, positions: Positions, tolerance_nats: float
) -> None:
    """Raise `Mismatch` where the middle position of a row does not give the witness: one head product, R rows."""
    middle_R = [(row.start + row.stop) // 2 for row in _row.slices_of(positions) if row.stop > row.start]
    for place in chunks_of(len(middle_R)):
        at_C = torch.tensor(middle_R[place], dtype=torch.int64)
        next_C1 = torch.from_numpy(positions.next_ids_N)[at_C][:, None]
        logp_C = (
            log_probabilities(targets.hidden_ND[at_C], head=targets.head).gather(-1, next_C1)[:, 0].double().numpy()
        )
        most_C, least_C = (_row.witness_codes(logp_C + d) for d in (-tolerance_nats, tolerance_nats))
        seen_C = witness_N[middle_R[place]].astype(int)
        wrong_C = (seen_C > most_C.astype(int) + 1) | (seen_C < least_C.astype(int) - 1)
        if wrong_C.any():
            raise Mismatch(
                _row.row_of(middle_R[place][int(wrong_C.argmax())], positions=positions),
                "its witness contradicts its hidden states and the head",
            )


def _number(value: object) -> float:
    assert isinstance(value, int | float), value
    return float(value)
