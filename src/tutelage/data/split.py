"""Which rows are trained on and which are held out: no document, and no window, is on both sides."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage import console
from tutelage.data.store import Store
from tutelage.errors import IntegrityError

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Row numbers: `train` of the store, `held_out` of the store itself or of the store of held-out sources."""

    train: Rows
    held_out: Rows
    n_overlapping: int  # held-out rows whose document or window also stood in the training sources
    n_dropped: int  # training rows left out for that


def by_share(store: Store, share: float) -> Split:
    """Holds out about this share of the documents, by the hash of their content.

    A document stays on its side when others are added.  Copies that differ in white space or case are on one side.
    At least one document is held out, unless `share` is 0, and at least one is not.
    """
    is_held_out, scored = _drawn(store, share), np.flatnonzero(store.n_trained > 0)
    return _finish(store, scored[~is_held_out], held_out_store=store, held_out=scored[is_held_out])


def by_sources(store: Store, held_out_store: Store, *, share: float | None = None) -> Split:
    """Holds out sources of their own; what they share with the training sources is left out of training.

    With `share`, those of their rows that `by_share` would hold out.
    """
    held_out = np.flatnonzero(held_out_store.n_trained > 0)
    if share is not None:
        held_out = held_out[_drawn(held_out_store, share)]
    return _finish(store, np.flatnonzero(store.n_trained > 0), held_out_store=held_out_store, held_out=held_out)


def _drawn(store: Store, share: float) -> npt.NDArray[np.bool_]:
    """Which of the rows with something to learn are held out."""
    scored = np.flatnonzero(store.n_trained > 0)
    if share <= 0:
        return np.zeros(len(scored), np.bool_)
    draws = _uniform(store.documents[scored])
    is_held_out = draws < share
    if not is_held_out.any():
        is_held_out = draws == draws.min()
    if is_held_out.all():
        is_held_out = draws != draws.max()
    if not is_held_out.any():
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            f"one document ({store.name(0)}) cannot be trained on and held out; give data.held_out a source of its "
            "own, a separator that cuts the file into documents, or more files",
        )
    return is_held_out


def _finish(store: Store, train: Rows, *, held_out_store: Store, held_out: Rows) -> Split:
    """Drops the training rows that stand on the other side too, loudly."""
    documents, held_out_documents = store.documents[train], held_out_store.documents[held_out]
    keys, held_out_keys = store.keys[train], held_out_store.keys[held_out]
    dropped = _is_in(documents, held_out_documents) | _is_in(keys, held_out_keys)
    overlapping = _is_in(held_out_documents, documents) | _is_in(held_out_keys, keys)
    split = Split(
        train=train[~dropped],
        held_out=held_out,
        n_overlapping=int(overlapping.sum()),
        n_dropped=int(dropped.sum()),
    )
    if split.n_dropped:
        found = f"{split.n_overlapping} of {len(held_out)} held-out rows occur in the training data"
        how = "(exact, or but for white space or case)"
        console.warning("OVERLAP", f"{found} {how}; {split.n_dropped} training rows are left out")
    if not len(split.train):
        raise IntegrityError(
            "NO_TOKENS",
            f"0 of {len(store)} rows are left to train on; check data.sources, data.held_out, data.train_on",
        )
    return split


def is_held_out(document: bytes, share: float) -> bool:
    """Whether `by_share` holds a document out, as far as its hash alone decides."""
    return int.from_bytes(document[:8], "big") / 2.0**64 < share


def _uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """A number in [0, 1) from each hash of shape [n, 32]."""
    return _first_words(hashes).astype(np.float64) / 2.0**64


def _first_words(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(hashes[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def _is_in(hashes: Hashes, others: Hashes) -> npt.NDArray[np.bool_]:
    """Which hashes of shape [n, 32] are among the others: by the first 8 bytes, then by all of them."""
    found = np.isin(_first_words(hashes), _first_words(others))
    if found.any():
        known = {row.tobytes() for row in others}
        for n in np.flatnonzero(found):
            found[n] = hashes[n].tobytes() in known
    return found
