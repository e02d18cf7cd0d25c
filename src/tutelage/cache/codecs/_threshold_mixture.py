"""Averaged samples, thresholded again: an unbiased sample of the average, since its parts are unbiased.

Shape legend: N positions, C positions of a chunk, K entries of a position, M entries of all, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tutelage.cache.codec import Encoded, Fitted, Positions, Settings, Tables
from tutelage.cache.codecs import _row
from tutelage.cache.codecs._threshold_fit import LEAST_M, MOST_M
from tutelage.cache.codecs.threshold import encode_drawn, grain_settings
from tutelage.cache.mixture import Floats, Ints, Mixture, padded
from tutelage.cache.sampling import Drawn, draws, reference
from tutelage.cache.set_tables import Profile, learn
from tutelage.errors import ConfigError

_CHUNK = 2_048  # positions drawn at once: a few dozen entries each
_LEAST_ROWS = 8  # a sample with fewer rows is not parted
Mask: TypeAlias = npt.NDArray[np.bool_]


def fit(
    sample: Mixture,
    *,
    positions: Positions,
    parts: Sequence[Settings],
    bytes_per_token: float | None,
    n_vocabulary: int,
) -> Fitted:
    """The largest m within the bytes, and tables, both from the averaged sample."""
    assert bytes_per_token is not None, "merge gives the largest of the parts"
    grains = max(grain_settings(part)[1] for part in parts)
    found: dict[int, float] = {}

    def n_bytes(m: int) -> float:
        if m not in found:
            found[m] = _measured_bytes(sample, m=m, grains=grains, positions=positions, n_vocabulary=n_vocabulary)
        return found[m]

    low, high = LEAST_M, min(MOST_M, len(parts) * max(grain_settings(part)[0] for part in parts)) + 1
    if n_bytes(low) > bytes_per_token:
        raise ConfigError(
            "CONFIG",
            f"--bytes-per-token {bytes_per_token:g}: the average takes {n_bytes(low):.1f} at its smallest m = {low}; "
            f"type --bytes-per-token {math.ceil(n_bytes(low))}",
        )
    while high - low > max(1, low // 50):
        middle = round(math.sqrt(low * high)) if high > low + 2 else low + 1
        low, high = (middle, high) if n_bytes(middle) <= bytes_per_token else (low, middle)
    drawn = draw(sample, positions=positions, m=low, grains=grains)
    tables = _tables(sample, drawn, m=low, grains=grains, positions=positions, n_vocabulary=n_vocabulary, last=2.0)
    why = (
        f"average of {len(parts)} caches, m = {low} (tau = {1 / low:.4g}): {n_bytes(low):.2f} bytes a token on rows "
        "that the tables were not fitted on"
    )
    return Fitted(settings={"m": low, "grains": grains}, tables=tables, why=why)


def encode(mixture: Mixture, *, positions: Positions, settings: Settings, tables: Tables, n_vocabulary: int) -> Encoded:
    """The rows as bytes, with the draw of `positions.seeds_R`."""
    m, grains = grain_settings(settings)
    drawn = draw(mixture, positions=positions, m=m, grains=grains)
    rows, witness_bits = encode_drawn(drawn, positions=positions, settings=settings, tables=tables)
    return Encoded(rows=rows, next_logp_N=mixture.next_logp_N, witness_bytes=witness_bits / 8)


def draw(mixture: Mixture, *, positions: Positions, m: int, grains: int) -> Drawn:
    """Weighted tokens at all positions; each weight has the average's probability as its expectation."""
    draws_N, parts = draws(positions), []
    for start in range(0, len(mixture), _CHUNK):
        place = slice(start, min(start + _CHUNK, len(mixture)))
        ids_CK, p_CK = padded(mixture, place)
        nothing_C = np.zeros(place.stop - place.start, np.int64)
        one = reference(p_CK.log(), nothing_C, draws_C=draws_N[place], m=m, grains=grains)
        position_M = np.repeat(np.arange(place.stop - place.start), np.diff(one.offsets))
        parts.append((ids_CK.numpy()[position_M, one.ids_M], one.units_M, np.diff(one.offsets), one.n_heads_N))
    nothing = np.zeros(0, np.int64)
    ids_M, units_M, counts_N, n_heads_N = (np.concatenate([nothing, *(part[i] for part in parts)]) for i in range(4))
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    return Drawn(
        ids_M=ids_M,
        units_M=units_M,
        offsets=offsets,
        n_heads_N=n_heads_N,
        next_logp_N=_witness(mixture, ids_M, offsets, n_heads_N, next_ids_N=positions.next_ids_N, m=m),
    )


def _witness(mixture: Mixture, ids_M: Ints, offsets: Ints, n_heads_N: Ints, *, next_ids_N: Ints, m: int) -> Floats:
    """Log p(next), at or above the threshold exactly where the next token is a head."""
    position_M = np.repeat(np.arange(len(mixture)), np.diff(offsets))
    rank_M = np.arange(len(ids_M)) - offsets[position_M]
    is_head_M = (rank_M < n_heads_N[position_M]) & (ids_M == next_ids_N[position_M])
    is_head_N = np.bincount(position_M, weights=is_head_M, minlength=len(mixture)) > 0
    edge = -math.log(m)
    return np.where(
        is_head_N, np.maximum(mixture.next_logp_N, edge), np.minimum(mixture.next_logp_N, np.nextafter(edge, -1e9))
    )


def _rows_between(positions: Positions, first: float, last: float) -> Mask:
    """The rows in a share of all of them; every row where there are too few to part."""
    share_R = (np.arange(len(positions.counts_R)) + 0.5) / max(1, len(positions.counts_R))
    if len(share_R) < _LEAST_ROWS:
        return np.ones(len(share_R), np.bool_)
    return (share_R >= first) & (share_R < last)


def _tables(
    sample: Mixture, drawn: Drawn, *, m: int, grains: int, positions: Positions, n_vocabulary: int, last: float
) -> Tables:
    """Lists from the first rows, weights from those after them up to a share of all."""
    seen = Profile(
        position_M=sample.position_of_entries,
        ids_M=sample.ids_M,
        p_M=sample.p_M,
        low_V=np.zeros(n_vocabulary),
        positions=positions,
    )
    return learn(
        seen,
        drawn,
        witness_N=_row.witness_codes(drawn.next_logp_N).astype(np.int64),
        m=m,
        grains=grains,
        list_R=_rows_between(positions, 0.0, 0.6),
        weight_R=_rows_between(positions, 0.6, last),
    )


def _measured_bytes(sample: Mixture, *, m: int, grains: int, positions: Positions, n_vocabulary: int) -> float:
    """Bytes a token of rows that the tables have not seen."""
    drawn = draw(sample, positions=positions, m=m, grains=grains)
    tables = _tables(sample, drawn, m=m, grains=grains, positions=positions, n_vocabulary=n_vocabulary, last=0.85)
    rows, _ = encode_drawn(drawn, positions=positions, settings={"m": m, "grains": grains}, tables=tables)
    inside_R = _rows_between(positions, 0.85, 2.0)
    n_bytes = sum(len(row) for row, inside in zip(rows, inside_R, strict=True) if inside)
    return n_bytes / max(1, int(positions.counts_R[inside_R].sum()))
