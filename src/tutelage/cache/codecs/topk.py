"""The k most likely tokens and the probability of all others together: what APIs give.  Biased: compare by error.

Bytes a token: k * bits / 8 + 2 k + 3, and 6 a row; with k = 64 and 49,152 tokens (16 bits) 259.  Little-endian, a row
of n positions:

    ceil(n * k * bits / 8)   ids, most probable first, as one stream of bits, the lowest bit of each id first;
                             bits is the least number that holds the vocabulary's last id, so an id never wraps
    n x k float16            their log-probabilities in nats, at the manifest's temperature
    n x float16              log-probability of every other token together (the tail); absent with tail: false
    n x uint8                alignment witness, log p(next)
    6 bytes                  hash of the next tokens, CRC-32 (`_row.py`)

Error: float16 rounds each log-probability by at most 2**-11 of its magnitude plus 2**-25, -inf is kept exactly; the
reader normalises the k + 1 numbers again, so they sum to 1.  What the merging of the tail costs depends on the student
and has no bound: `fit` says what the gradient error is on a sample.  The tail is a logsumexp over what is not kept, in
the precision of the logits.  With `tail: false` the kept probabilities are normalised alone, which has another
minimiser than the teacher; it is never the default.

Shape legend: N trained positions of several rows, C positions of a chunk, V vocabulary, K kept ids.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage import console
from tutelage.cache.codec import Budget, Encoded, Fitted, Kind, Mismatch, Positions, Sample, Settings, Tables
from tutelage.cache.codecs import _row
from tutelage.cache.error import Accumulator, CacheError, Probe, probe
from tutelage.errors import ConfigError
from tutelage.types import Head, TopKTargets

KIND: Kind = "top_k"
DEFAULT_K = 64
MOST_FITTED_K = 1024  # an error that needs more is the business of another codec


# --- fit -------------------------------------------------------------------------------------------------------------


def fit(sample: Sample, *, budget: Budget, temperature: float) -> Fitted:
    """k from the budget: chosen outright, the most that the bytes hold, or the least that meets the error."""
    unknown = budget.fixed.keys() - {"k", "tail"}
    if unknown:
        raise ConfigError("CONFIG", f"cache: {', '.join(sorted(unknown))} unknown to codec topk; it knows k and tail")
    tail, n_vocabulary = budget.fixed.get("tail", True) is not False, sample.head.n_vocabulary
    if "k" in budget.fixed:
        k = _fixed_k(budget.fixed["k"], n_vocabulary=n_vocabulary)
    elif budget.bytes_per_token is not None:
        k = _most_k(budget.bytes_per_token, sample=sample, tail=tail)
    else:
        k = MOST_FITTED_K if budget.error is not None else DEFAULT_K
    full = _kept(sample, k=min(k, n_vocabulary), temperature=temperature)
    teacher = probe(sample.hidden_ND, head=sample.head, temperature=temperature)
    k = full.ids_NK.shape[1]
    if "k" not in budget.fixed and budget.error is not None:
        k = _least_k(full, probe=teacher, tail=tail, error=budget.error)
    measured = _error(full, k=k, probe=teacher, tail=tail)
    if not tail:
        console.warning(
            "BIASED_LOSS",
            f"top-{k} without tail has another minimiser than the teacher; mean dropped mass "
            f"{1 - measured.kept_mass:.2g}; leave out cache.tail=false",
        )
    return Fitted(settings={"k": k, "tail": tail}, tables={}, why=_why(measured, k=k, tail=tail, sample=sample))


def expected_bytes(budget: Budget, *, n_vocabulary: int, hidden_size: int, row_positions: float) -> float | None:
    """Of k ids with their log-probabilities; None where an error says how many they are."""
    if "k" not in budget.fixed and budget.error is not None:
        return None
    tail = budget.fixed.get("tail", True) is not False
    entry, framing = _row.id_bits(n_vocabulary) / 8 + 2, 1 + 2 * tail + (_row.SEAL_BYTES + 7 / 16) / row_positions
    if "k" not in budget.fixed and budget.bytes_per_token is not None:
        return framing + entry * min(n_vocabulary, max(1, math.floor((budget.bytes_per_token - framing) / entry)))
    k = budget.fixed.get("k", DEFAULT_K)
    return framing + entry * min(n_vocabulary, k if isinstance(k, int) else DEFAULT_K)


def _fixed_k(k: object, *, n_vocabulary: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_vocabulary:
        raise ConfigError("CONFIG", f"cache.k: {k}, expected 1 to {n_vocabulary} (the vocabulary); set cache.k=64")
    return k


def _most_k(bytes_per_token: float, *, sample: Sample, tail: bool) -> int:
    bits = _row.id_bits(sample.head.n_vocabulary)
    framing = _framing(sample, tail=tail)
    k = math.floor((bytes_per_token - framing) / (bits / 8 + 2))
    if k < 1:
        raise ConfigError(
            "CONFIG",
            f"cache.bytes_per_token: {bytes_per_token:g}, and top-1 takes {framing + bits / 8 + 2:.1f}; "
            "set cache.codec=threshold, which is unbiased at any size",
        )
    return min(k, sample.head.n_vocabulary)


def _least_k(full: TopKTargets, *, probe: Probe, tail: bool, error: float) -> int:
    """The least k whose per-position error is at most `error`: doubled until it is, then bisected."""

    def meets(k: int) -> bool:
        return _error(full, k=k, probe=probe, tail=tail).per_position <= error

    low, high, most = 0, 1, full.ids_NK.shape[1]
    while not meets(high):
        if high == most:
            raise ConfigError(
                "CONFIG",
                f"cache.error: {error:g}, and top-{most} does not reach it; set cache.codec=threshold or "
                "cache.codec=hidden, which do in fewer bytes",
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _kept(sample: Sample, *, k: int, temperature: float) -> TopKTargets:
    parts = [
        _top_k(logp_CV, k=k)
        for _, logp_CV in _row.distributions(
            sample.hidden_ND, head=sample.head, positions=sample.positions, temperature=temperature
        )
    ]
    ids_NK, logp_NK, tail_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return TopKTargets(ids_NK=ids_NK, logp_NK=logp_NK, tail_logp_N=tail_N, temperature=temperature)


def _error(full: TopKTargets, *, k: int, probe: Probe, tail: bool) -> CacheError:
    """The error of the first k of more entries, rounded as they are stored."""
    rest_NK = torch.cat([full.logp_NK[:, k:], full.tail_logp_N[:, None]], -1)
    sums = Accumulator()
    targets = _normalised(
        full.ids_NK[:, :k],
        full.logp_NK[:, :k].half(),
        rest_NK.logsumexp(-1).half() if tail else None,
        temperature=full.temperature,
    )
    sums.add(targets, probe=probe)
    return sums.result()


def _framing(sample: Sample, *, tail: bool) -> float:
    """Bytes a token that do not depend on k."""
    filled = 7 / 8 if _row.id_bits(sample.head.n_vocabulary) % 8 else 0.0  # at most, of the last byte of a row's ids
    n_rows = int((sample.positions.counts_R > 0).sum())
    return 1 + 2 * tail + (_row.SEAL_BYTES + filled) * n_rows / max(1, len(sample.positions))


def _why(measured: CacheError, *, k: int, tail: bool, sample: Sample) -> str:
    n_bytes = k * (_row.id_bits(sample.head.n_vocabulary) / 8 + 2) + _framing(sample, tail=tail)
    return (
        f"top-{k} {'and its tail' if tail else 'without tail'}: {n_bytes:.1f} bytes a token; gradient error "
        f"{measured.per_position:.3f} a position, {measured.batch:.4f} of the mean over {measured.n}; "
        f"kept mass {measured.kept_mass:.3f}"
    )


# --- encode ----------------------------------------------------------------------------------------------------------


def encode(
    hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float, settings: Settings, tables: Tables
) -> Encoded:
    """The rows as bytes."""
    k, tail, n = *_k_and_tail(settings), len(positions)
    bits = _row.id_bits(head.n_vocabulary)
    ids_NK, logp_NK = np.empty((n, k), np.int64), np.empty((n, k), "<f2")
    tail_N, next_logp_N = np.empty(n, "<f2"), np.empty(n)
    for place, logp_CV in _row.distributions(hidden_ND, head=head, positions=positions, temperature=temperature):
        next_logp_N[place] = _row.next_logp(logp_CV, positions=positions, place=place)
        ids_CK, kept_CK, tail_C = _top_k(logp_CV, k=k)
        ids_NK[place], logp_NK[place] = ids_CK.cpu().numpy(), kept_CK.half().cpu().numpy()
        tail_N[place] = tail_C.half().cpu().numpy()
    rows = rows_of(
        ids_NK, logp_NK, tail_N=tail_N if tail else None, next_logp_N=next_logp_N, positions=positions, bits=bits
    )
    return Encoded(rows=rows, next_logp_N=next_logp_N, witness_bytes=float(n))


def rows_of(
    ids_NK: npt.NDArray[np.int64],
    logp_NK: _row.Floats,
    *,
    tail_N: _row.Floats | None,
    next_logp_N: _row.Floats,
    positions: Positions,
    bits: int,
) -> tuple[bytes, ...]:
    """Kept entries and tail (float16), and the witness, as the bytes of rows."""
    codes_N = _row.witness_codes(next_logp_N)
    return tuple(
        _row.sealed(
            _row.packed(ids_NK[row].reshape(-1), bits=bits)
            + logp_NK[row].tobytes()
            + (tail_N[row].tobytes() if tail_N is not None else b"")
            + codes_N[row].tobytes(),
            positions.next_ids_N[row],
        )
        for row in _row.slices_of(positions)
    )


def _top_k(logp_CV: Tensor, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [C, K], their log-probabilities and that of all others together [C]; overwrites `logp_CV`."""
    kept_CK, ids_CK = logp_CV.topk(k, dim=-1)
    # Over what is left, never log(1 - sum p), which is the log of a rounding error.
    tail_C = logp_CV.scatter_(-1, ids_CK, -math.inf).logsumexp(-1)
    return ids_CK, kept_CK, tail_C


def _k_and_tail(settings: Settings) -> tuple[int, bool]:
    k, tail = settings["k"], settings["tail"]
    assert isinstance(k, int) and isinstance(tail, bool), settings
    return k, tail


# --- decode ----------------------------------------------------------------------------------------------------------


def decode(
    rows: Sequence[npt.NDArray[np.uint8]],
    *,
    positions: Positions,
    n_vocabulary: int,
    temperature: float,
    settings: Settings,
    tables: Tables,
) -> TopKTargets:
    """The kept entries and the tail, float32, normalised; a tail of -inf where none is stored."""
    k, tail, n = *_k_and_tail(settings), len(positions)
    bits = _row.id_bits(n_vocabulary)
    payloads = _row.opened(
        rows,
        positions=positions,
        payload_bytes=lambda m: _row.packed_bytes(m * k, bits=bits) + m * (2 * k + 2 * tail + 1),
    )
    ids_NK, logp_NK = np.empty((n, k), np.int64), np.empty((n, k), "<f2")
    tail_N, codes_N = np.full(n, -np.inf, "<f2"), np.empty(n, np.uint8)
    for row, data in zip(_row.slices_of(positions), payloads, strict=True):
        n_row = row.stop - row.start
        ids_NK[row] = _row.unpacked(data, n_row * k, bits=bits).reshape(n_row, k)
        start = _row.packed_bytes(n_row * k, bits=bits)
        stop = start + 2 * n_row * k
        logp_NK[row] = data[start:stop].view("<f2").reshape(n_row, k)
        if tail:
            tail_N[row] = data[stop : stop + 2 * n_row].view("<f2")
        codes_N[row] = data[len(data) - n_row :]
    _refuse_wrong(ids_NK, logp_NK, codes_N, positions=positions, n_vocabulary=n_vocabulary)
    return _normalised(
        torch.from_numpy(ids_NK),
        torch.from_numpy(logp_NK),
        torch.from_numpy(tail_N) if tail else None,
        temperature=temperature,
    )


def _normalised(ids_NK: Tensor, logp_NK: Tensor, tail_N: Tensor | None, *, temperature: float) -> TopKTargets:
    """Stored numbers as targets whose probabilities sum to 1: rounding to float16 moves the sum by up to 5e-4."""
    if tail_N is None:
        kept_NK, tail_N = torch.log_softmax(logp_NK.float(), dim=-1), torch.full((len(ids_NK),), -math.inf)
    else:
        all_NS = torch.log_softmax(torch.cat([logp_NK, tail_N[:, None]], -1).float(), dim=-1)
        kept_NK, tail_N = all_NS[:, :-1], all_NS[:, -1]
    return TopKTargets(ids_NK=ids_NK, logp_NK=kept_NK, tail_logp_N=tail_N, temperature=temperature)


def _refuse_wrong(
    ids_NK: npt.NDArray[np.int64],
    logp_NK: _row.Floats,
    codes_N: npt.NDArray[np.uint8],
    *,
    positions: Positions,
    n_vocabulary: int,
) -> None:
    """Raise `Mismatch` for ids beyond the vocabulary, and where the witness contradicts the stored numbers.

    Where the next token is kept, its stored log-probability has the witness's code (or the one beside it, by rounding);
    elsewhere it is not more likely than the last kept one.
    """
    beyond_N = (ids_NK >= n_vocabulary).any(-1)
    is_next_NK = ids_NK == positions.next_ids_N[:, None]
    kept_N = is_next_NK.any(-1)
    place_N = np.where(kept_N, is_next_NK.argmax(-1), ids_NK.shape[1] - 1)
    stored_N = _row.witness_codes(np.take_along_axis(logp_NK, place_N[:, None], -1)[:, 0]).astype(int)
    difference_N = codes_N.astype(int) - stored_N
    contradicted_N = np.where(kept_N, np.abs(difference_N) > 1, difference_N < -1)
    for wrong_N, what in (
        (beyond_N, "holds ids beyond the vocabulary"),
        (contradicted_N, "its witness contradicts it"),
    ):
        if wrong_N.any():
            raise Mismatch(_row.row_of(int(wrong_N.argmax()), positions=positions), what)
