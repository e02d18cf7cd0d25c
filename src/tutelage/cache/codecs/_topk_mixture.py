"""Averaged top-k targets, cut to k again.

Coarse: where one teacher kept an id and another did not, the second one's probability of it stays in the tail.

Shape legend: N positions, C positions of a chunk, K kept ids, V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np

from tutelage.cache.codec import Encoded, Fitted, Positions, Settings, Tables, chunks_of
from tutelage.cache.codecs import _row, topk
from tutelage.cache.mixture import Mixture, padded
from tutelage.errors import ConfigError


def fit(
    sample: Mixture,
    *,
    positions: Positions,
    parts: Sequence[Settings],
    bytes_per_token: float | None,
    n_vocabulary: int,
) -> Fitted:
    """k of the largest part, or what the bytes hold of it."""
    tails = {bool(part["tail"]) for part in parts}
    if len(tails) > 1:
        raise ConfigError(
            "CACHE_MISMATCH",
            "some of the caches have a tail and some have none; label those without again, with cache.tail=true",
        )
    tail, bits = tails.pop(), _row.id_bits(n_vocabulary)
    k = max(int(str(part["k"])) for part in parts)
    framing = 1 + 2 * tail + _row.SEAL_BYTES * len(positions.counts_R) / max(1, len(positions))
    if bytes_per_token is not None:
        k = min(k, math.floor((bytes_per_token - framing) / (bits / 8 + 2)))
    if k < 1:
        raise ConfigError(
            "CONFIG",
            f"--bytes-per-token {bytes_per_token:g}: top-1 takes {framing + bits / 8 + 2:.1f}; give more, or merge "
            "caches of codec threshold",
        )
    kept = _kept_mass(sample, k=k)
    why = (
        f"average of {len(parts)} caches, cut to top-{k}{' and its tail' if tail else ''}: "
        f"{k * (bits / 8 + 2) + framing:.1f} bytes a token, kept mass {kept:.3f}; coarse, since what a teacher did not "
        "keep is in its tail"
    )
    return Fitted(settings={"k": k, "tail": tail}, tables={}, why=why)


def _kept_mass(sample: Mixture, *, k: int) -> float:
    sums = [padded(sample, place)[1].sort(-1, descending=True).values[:, :k].sum() for place in chunks_of(len(sample))]
    return float(sum(sums)) / max(1, len(sample))


def encode(mixture: Mixture, *, positions: Positions, settings: Settings, tables: Tables, n_vocabulary: int) -> Encoded:
    """The rows as bytes; the witness never contradicts what is kept."""
    k, tail, n = int(str(settings["k"])), bool(settings["tail"]), len(mixture)
    ids_NK, logp_NK = np.zeros((n, k), np.int64), np.full((n, k), -np.inf, "<f2")
    tail_N, witness_N = np.empty(n, "<f2"), mixture.next_logp_N.copy()
    for place in chunks_of(n):
        ids_CK, p_CK = padded(mixture, place)
        best = p_CK.sort(dim=-1, descending=True, stable=True)
        kept_Ck = best.values[:, :k]
        found = ids_CK.gather(-1, best.indices)[:, :k].numpy()
        logp_Ck = kept_Ck.log().numpy()
        ids_NK[place], logp_NK[place] = found, logp_Ck
        rest_C = best.values[:, k:].sum(-1).numpy() + mixture.tail_N[place]
        with np.errstate(divide="ignore"):
            tail_N[place] = np.log(rest_C)
        is_next = found == positions.next_ids_N[place][:, None]
        own_C = np.where(is_next, logp_Ck, -np.inf).max(-1)
        witness_N[place] = np.where(is_next.any(-1), own_C, np.minimum(witness_N[place], logp_Ck[:, -1]))
    rows = topk.rows_of(
        ids_NK,
        logp_NK,
        tail_N=tail_N if tail else None,
        next_logp_N=witness_N,
        positions=positions,
        bits=_row.id_bits(n_vocabulary),
    )
    return Encoded(rows=rows, next_logp_N=mixture.next_logp_N, witness_bytes=float(n))
