"""The teacher's loss on every training row, asked once and kept, and the order of the rows that follows from it.

    HOME/losses/KEY/part-00000   float64, little-endian: mean loss of each row in nats, in the order of the rows' keys;
                                 then 32 bytes: SHA-256 of KEY, the part's number and these numbers
KEY is the SHA-256 of the teacher, the rows' content and how they are asked.  A part is whole or absent: what a killed
process has measured stays.

Shape legend: N trained positions of a batch, R rows, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage import console, io
from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.cache.job import windows_of_pass
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet, as_scalars
from tutelage.cache.tokens import groups, tokens_of
from tutelage.cache.witness import next_logp
from tutelage.data.curriculum import Curriculum
from tutelage.data.loader import evaluation_batches
from tutelage.data.store import key_of
from tutelage.errors import IntegrityError, NumericError
from tutelage.home import home
from tutelage.locks import exclusive
from tutelage.recipe import Recipe
from tutelage.teachers.cached import CachedTeacher
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training.corpus import Corpus
from tutelage.training.plan import n_steps_of
from tutelage.types import Batch, MixtureTargets

Floats = npt.NDArray[np.float64]
Ask = Callable[[RowSet], Floats]  # the mean loss on each of the rows, nats
PART_POSITIONS = 1 << 16
_FORMAT, _DIGEST_BYTES = 1, 32


def of_recipe(
    recipe: Recipe,
    corpus: Corpus,
    *,
    teacher: LiveTeacher | EnsembleTeacher | CachedTeacher,
    identity: io.Json,
    device: str,
) -> Curriculum:
    """The order of the training rows by the loss of the teacher, which `identity` names; it runs on `device`.

    It depends on what the rows hold, on the teacher and on how a forward pass is made up, and on nothing else: not on
    the place of a row, on the seed, the batch or the micro-batch.
    """
    section, rows = recipe.data.curriculum, RowSet.of([(corpus.store, corpus.split.train)])
    assert section is not None, "who calls has asked"
    how: dict[str, io.Json] = {"teacher": identity}
    if isinstance(teacher, CachedTeacher):
        ask: Ask = partial(_stored, teacher.cache)
    else:
        windows = windows_of_pass(recipe.data.max_length, device=device)
        how |= {"windows": windows, "max_length": recipe.data.max_length, "packed": corpus.packed}
        ask = partial(_asked, teacher, corpus, windows=windows, max_length=recipe.data.max_length, device=device)
    losses_R = row_losses(rows, ask, how=how)
    n_steps = n_steps_of(recipe.training, corpus.loader())
    return Curriculum(
        ranks_R=_ranks(losses_R, keys=corpus.store.keys[corpus.split.train]),
        start=section.start,
        n_steps=max(1, round(section.until * n_steps)),
    )


def _ranks(losses_R: Floats, *, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The place of each training row from the easiest on; `losses_R` are in the order of their keys, each key once."""
    _, places = np.unique(as_scalars(keys), return_inverse=True)
    ranks = np.empty(len(places), dtype=np.int64)
    ranks[np.lexsort((places, losses_R[places]))] = np.arange(len(places))
    return ranks


def row_losses(rows: RowSet, ask: Ask, *, how: dict[str, io.Json]) -> Floats:
    """The mean loss of each row in nats, shape [R]: from the parts that are kept, and asked for where there is none.

    Raises NumericError[NONFINITE] for a loss that is no number, IntegrityError[CHECKSUM] for a damaged part.
    """
    key = key_of({"format": _FORMAT, "rows": rows.sha256(), "part": PART_POSITIONS, **how})
    folder = home() / "losses" / key
    part_R = (np.cumsum(rows.n_trained) - rows.n_trained) // PART_POSITIONS
    edges = [0, *(np.flatnonzero(np.diff(part_R)) + 1).tolist(), len(rows)]
    parts = [_Part(folder / f"part-{n:05d}", f"{key} {n}", *span) for n, span in enumerate(pairwise(edges))]
    with exclusive(folder.with_name(f"{key}.lock"), what="the teacher's loss on the same rows"):
        missing = [part for part in parts if not part.path.is_file()]
        if missing:
            io.make_directory(folder)
            io.remove_leftovers(folder)
            _fill(missing, rows, ask)
        return np.concatenate([part.read() for part in parts])


def _fill(missing: Sequence["_Part"], rows: RowSet, ask: Ask) -> None:
    """Ask about the rows of parts that are not there."""
    total = sum(part.end - part.begin for part in missing)
    with console.Progress("the teacher reads the training data", total=total) as bar:
        for part in missing:
            some = rows.take(slice(part.begin, part.end))
            losses_R = ask(some)
            _require_numbers(losses_R, some)
            part.write(losses_R)
            bar.update(bar.done + len(some))


@dataclass(frozen=True, slots=True)
class _Part:
    """The losses of the rows from `begin` to `end`, in a file."""

    path: Path
    name: str
    begin: int
    end: int

    def write(self, losses_R: Floats) -> None:
        data = losses_R.astype("<f8").tobytes()
        io.write_bytes(self.path, data + self._digest(data))

    def read(self) -> Floats:
        content = self.path.read_bytes()
        data, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if len(data) != 8 * (self.end - self.begin) or digest != self._digest(data):
            raise IntegrityError("CHECKSUM", f"{self.path} is damaged; it can be made again: rm '{self.path}'")
        return np.frombuffer(data, dtype="<f8").astype(np.float64)

    def _digest(self, data: bytes) -> bytes:
        return hashlib.sha256(self.name.encode() + b"\0" + data).digest()


def _require_numbers(losses_R: Floats, rows: RowSet) -> None:
    bad = np.flatnonzero(np.isnan(losses_R))
    if len(bad):
        key = rows.keys_R[bad[0]].tobytes().hex()[:12]
        raise NumericError(
            "NONFINITE",
            f"data.curriculum: the teacher's loss on {len(bad)} rows is no number (first: {key}); look at the rows, or "
            "set teacher.dtype=float32",
        )


# --- who is asked ---
def _stored(cache: TeacherCache, rows: RowSet) -> Floats:
    """From a cache: the witness of each position, at the temperature and in the eight bits that it is stored with."""
    return np.concatenate([_mean(-next_logp(cache, tokens_of(some)), some) for some in groups(rows)])


def _mean(nll_N: Floats, rows: RowSet) -> Floats:
    counts_R = rows.n_trained
    return np.add.reduceat(nll_N, np.cumsum(counts_R) - counts_R) / counts_R


def _asked(
    teacher: LiveTeacher | EnsembleTeacher, corpus: Corpus, rows: RowSet, *, windows: int, max_length: int, device: str
) -> Floats:
    """From a model: forward passes that the rows alone make up, as those of `label` are."""
    total_R = np.zeros(len(rows))
    for item in evaluation_batches(
        corpus.store,
        rows=rows.numbers_R,
        max_length=max_length,
        micro_batch=windows,
        fingerprint=corpus.fingerprint,
        pad_id=corpus.pad_id,
        packed=corpus.packed,
    ):
        nll_N = _nll(teacher, item.batch.to(device)).double().cpu().numpy()
        total_R += np.bincount(item.row_N.numpy(), weights=nll_N, minlength=len(rows))
    return total_R / rows.n_trained


@torch.no_grad()
def _nll(teacher: LiveTeacher | EnsembleTeacher, batch: Batch) -> Tensor:
    """Minus the log-probability of each true next token, nats, shape [N], float32 or wider."""
    targets, next_ids_N = teacher.targets(batch), batch.view.next_ids_N
    parts = []
    for chunk in chunks_of(len(next_ids_N)):
        if isinstance(targets, MixtureTargets):
            logp_NV = targets.logp(chunk)
        else:
            logp_NV = log_probabilities(targets.hidden_ND[chunk], head=targets.head)
        parts.append(-logp_NV.gather(1, next_ids_N[chunk, None])[:, 0])
    return torch.cat(parts)
