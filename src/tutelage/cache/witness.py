"""The teacher's log-probability of each true next token, as a cache has it: the alignment witness.

Shape legend: N trained positions.
"""

import numpy as np
import numpy.typing as npt

from tutelage.cache.codec import Settings
from tutelage.cache.codecs import _row
from tutelage.cache.reader import TeacherCache
from tutelage.cache.tokens import Tokens

Floats = npt.NDArray[np.float64]


def next_logp(cache: TeacherCache, tokens: Tokens, *, draw: int = 0) -> Floats:
    """Log p(next), nats, at the N positions of whole rows, rounded as the codec stores it.

    At the cache's temperature; codecs hidden and dense store it at temperature 1.
    """
    ends_R = np.cumsum(tokens.counts_R)
    parts = []
    for key, n, end in zip(tokens.keys, tokens.counts_R.tolist(), ends_R.tolist(), strict=True):
        data, place = cache.row(key, draw=draw), slice(end - n, end)
        if cache.codec.KIND == "sample":
            parts.append(_of_set(cache, data, tokens=tokens, place=place))
        else:
            parts.append(_row.witness_logp(data[len(data) - _row.SEAL_BYTES - n : len(data) - _row.SEAL_BYTES]))
    return np.concatenate([np.zeros(0), *parts])


def _of_set(cache: TeacherCache, data: npt.NDArray[np.uint8], *, tokens: Tokens, place: slice) -> Floats:
    """A head's own weight, the witness of every other token."""
    from tutelage.cache.codecs.threshold import grain_settings  # compiled: imported where it is used
    from tutelage.cache.set_coder import decode_row
    from tutelage.cache.set_tables import model_of

    settings: Settings = cache.manifest.settings
    m, grains = grain_settings(settings)
    next_ids_n = tokens.next_ids_N[place]
    sets = decode_row(
        model_of(cache.tables, m=m, grains=grains),
        data,
        current_ids_n=tokens.current_ids_N[place],
        next_ids_n=next_ids_n,
        row_number=0,
    )
    logp_n = np.empty(len(next_ids_n))
    for n, upcoming in enumerate(next_ids_n):
        heads = slice(sets.offsets[n], sets.offsets[n] + sets.n_heads_N[n])
        found = np.flatnonzero(sets.ids_M[heads] == upcoming)
        if len(found):
            logp_n[n] = np.log(max(int(sets.units_M[heads][found[0]]), 0.5) / (m * grains))
        else:
            logp_n[n] = _row.witness_logp(sets.witness_N[n : n + 1].astype(np.uint8))[0]
    return logp_n
