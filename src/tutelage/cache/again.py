"""Asking the teacher again about rows of a cache, in the forward passes that they were labelled in.

A share of the passes is made again: the first one of the cache, and every so-many-th after it, from a place that the
manifest's checksum draws.  The same machine, threads and libraries give the same bytes for a row: then it is right.
Where the bytes differ, the stored numbers are compared with the teacher's, position by position; with r the rounding
that another machine or batch may bring (nats: float64 1e-6, float32 0.02, float16 0.1, bfloat16 0.5):

    top_k     each kept log-probability within r + 2e-3 + 2**-10 of its magnitude, no other token likelier than the
              last kept one by more than that, the tail's probability within r + 2e-3 of its own
    hidden    KL(teacher || stored) <= (2 r + tolerance)**2 / 8, the bound for log-probabilities that are off by as much
    logits    the same with the rounding of float16, 2**-11 of the least likely token's magnitude
    sample    |weight - p| <= threshold and one step of it + (e**r - 1) p for every token: a token above the threshold
              is kept exactly, one below weighs the threshold or nothing

Shape legend: N positions of a row, R rows, C positions of a chunk, V vocabulary, K kept ids, D hidden size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tutelage import console
from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.cache.given import is_given
from tutelage.cache.job import Job, Pass, windows_of_pass
from tutelage.cache.manifest import Manifest
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.tokens import find
from tutelage.errors import ConfigError, IntegrityError
from tutelage.models import load
from tutelage.models.cast import cast
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import (
    Batch,
    CachedTargets,
    CausalLM,
    DenseTargets,
    Head,
    LogitTargets,
    SampledTargets,
    TopKTargets,
)

ROUNDING_NATS = {"float64": 1e-6, "float32": 0.02, "float16": 0.1, "bfloat16": 0.5}
_STORED_ROUNDING = 2e-3  # float16 of a probability near 1, and its normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Rows that the teacher was asked about again, and how they agreed."""

    n_rows: int = 0
    n_same_bytes: int = 0

    @property
    def n_within(self) -> int:
        """Rows whose bytes differ and whose numbers are within their bounds."""
        return self.n_rows - self.n_same_bytes

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(n_rows=self.n_rows + other.n_rows, n_same_bytes=self.n_same_bytes + other.n_same_bytes)

    def __str__(self) -> str:
        within = f", {self.n_within:,} within the bounds of rounding" if self.n_within else ""
        return f"{self.n_rows:,} rows: {self.n_same_bytes:,} the same bytes{within}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The model that a cache was made by, as it ran then."""

    model: CausalLM
    n_vocabulary: int
    device: str

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> "Asker":
        """Raises IntegrityError[CACHE_MISMATCH] when the model has other weights than the cache was made by."""
        if is_given(manifest):
            raise ConfigError(
                "CONFIG",
                f"--teacher: an endpoint gave this cache's numbers ({manifest.asked.teacher.name}); leave it out",
            )
        model = load.load_model(name, dtype="auto", device="cpu")
        found, record = weights_fingerprint(model), manifest.asked.teacher
        if found != record.saved_weights:
            raise IntegrityError(
                "CACHE_MISMATCH",
                f"the cache was made by {record.name} ({record.saved_weights[:8]}..), {name} is another model "
                f"({found[:8]}..); name the one it was made by, or label anew",
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted: torch.dtype = getattr(torch, record.dtype)
        return cls(model=cast(model, wanted, device=device), n_vocabulary=manifest.asked.n_vocabulary, device=device)

    @torch.no_grad()
    def targets(self, batch: Batch) -> DenseTargets:
        """Hidden states at the batch's trained positions, and the head."""
        hidden_ND = trained_hidden(self.model, batch.to(self.device).view)
        return DenseTargets(hidden_ND=hidden_ND, head=head_of(self.model, n_vocabulary=self.n_vocabulary))


def ask_again(cache: TeacherCache, asker: Asker, *, stored: Sequence[RowSet], share: float) -> Compared:
    """Compare the rows of a share of the forward passes; IntegrityError[CACHE_MISMATCH] for the first that differs."""
    manifest, wanted = cache.manifest, _every_so_many(share, seed=cache.manifest.sha256_of_this)
    found = Compared()
    with console.Progress(f"asking the teacher again ({cache.folder.name})", total=len(cache.shards)) as bar:
        for number, shard in enumerate(cache.shards):
            rows = find(stored, shard.keys)
            if rows is not None:
                job = Job(
                    rows=rows,
                    asked=manifest.asked,
                    teacher=asker,
                    windows=windows_of_pass(manifest.asked.max_length, device=asker.device),
                    fingerprint=manifest.asked.tokenizer,
                    pad_id=0,
                )
                for one in job.passes(rows, wanted=wanted):
                    found += _compare(cache, number, one, rows=rows.take(one.places_R))
            bar.advance()
    return found


def _every_so_many(share: float, *, seed: str) -> Callable[[], bool]:
    """True for the first call, and for a share of those after it, evenly spread."""
    begin = int(seed[:8] or "0", 16) / 2**32

    def answers() -> Iterator[bool]:
        yield True
        n = 1
        while True:
            yield math.floor(begin + n * share) > math.floor(begin + (n - 1) * share)
            n += 1

    stream = answers()
    return lambda: next(stream)


def _compare(cache: TeacherCache, shard: int, one: Pass, *, rows: RowSet) -> Compared:
    """The rows of one pass, every draw; `rows` are they, in its order."""
    asked = cache.manifest.asked
    file = cache.shards[shard]
    places = {key.tobytes(): n for n, key in enumerate(file.keys)}
    here = [places[key.tobytes()] for key in rows.keys_R]
    differ: set[int] = set()
    for draw in range(asked.draws):
        encoded = cache.codec.encode(
            one.targets.hidden_ND,
            head=one.targets.head,
            positions=replace(one.positions, seeds_R=rows.seeds(draw=draw, teacher=asked.teacher.weights)),
            temperature=asked.temperature,
            settings=cache.manifest.settings,
            tables=cache.tables,
        )
        for n, (place, data) in enumerate(zip(here, encoded.rows, strict=True)):
            if file.row(place, draw=draw).tobytes() != data:
                differ.add(n)
                _require_bounds(cache, one, n, draw=draw, rows=rows, where=f"{file.record.name} row {place}")
    return Compared(n_rows=len(here), n_same_bytes=len(here) - len(differ))


def _require_bounds(cache: TeacherCache, one: Pass, n: int, *, draw: int, rows: RowSet, where: str) -> None:
    end = int(one.positions.counts_R[: n + 1].sum())
    place = slice(end - int(one.positions.counts_R[n]), end)
    stored = cache.targets(
        [rows.keys_R[n].tobytes()],
        current_ids_N=one.positions.current_ids_N[place],
        next_ids_N=one.positions.next_ids_N[place],
        draws=[draw],
    )
    hidden_ND = one.targets.hidden_ND[place]
    for chunk in chunks_of(len(hidden_ND)):
        excess_C = _excess(_part(stored, chunk), hidden_ND[chunk], head=one.targets.head, manifest=cache.manifest)
        if not bool((excess_C <= 1.0).all()):  # NaN is no agreement
            position = int((~(excess_C <= 1.0)).int().argmax())
            raise IntegrityError(
                "CACHE_MISMATCH",
                f"{cache.folder}: {where}, position {chunk.start + position} differs from what "
                f"{cache.manifest.asked.teacher.name} says by {float(excess_C[position]):.3g} times what rounding "
                f"can do; label anew: rm -r '{cache.folder}', then tutelage label RECIPE",
            )


# --- bounds: how far stored targets are from the teacher's, at most 1 being what rounding can do, shape [C] -----------


def _excess(stored: CachedTargets, hidden_CD: Tensor, *, head: Head, manifest: Manifest) -> Tensor:
    asked, settings = manifest.asked, manifest.settings
    rounding = ROUNDING_NATS.get(asked.teacher.dtype, max(ROUNDING_NATS.values()))
    whole = isinstance(stored, DenseTargets | LogitTargets)
    logp_CV = log_probabilities(hidden_CD, head=head, temperature=1.0 if whole else asked.temperature).double().cpu()
    if isinstance(stored, TopKTargets):
        return _excess_of_top_k(stored, logp_CV, rounding=rounding)
    if isinstance(stored, SampledTargets):
        return _excess_of_sample(stored, logp_CV, rounding=rounding, threshold=_threshold(settings))
    if isinstance(stored, DenseTargets):
        found_CV = log_probabilities(stored.hidden_ND, head=stored.head).double()
        return _kl(logp_CV, found_CV) / ((2 * rounding + float(settings["tolerance_nats"])) ** 2 / 8)
    found_CV = torch.log_softmax(stored.logits_NV.double(), -1)
    least_C = -logp_CV.clamp_min(-65504.0).amin(-1)  # float16 ends there
    return _kl(logp_CV, found_CV) / ((2 * (rounding + 2**-11 * least_C)) ** 2 / 8)


def _excess_of_top_k(stored: TopKTargets, logp_CV: Tensor, *, rounding: float) -> Tensor:
    kept_CK, found_CK = logp_CV.gather(-1, stored.ids_NK), stored.logp_NK.double()
    others_CV = logp_CV.scatter(-1, stored.ids_NK, -math.inf)
    has_tail = bool(stored.tail_logp_N.isfinite().any())
    if not has_tail:
        kept_CK = torch.log_softmax(kept_CK, -1)
    nats = rounding + _STORED_ROUNDING
    of_kept_C = ((found_CK - kept_CK).abs() / (nats + 2**-10 * kept_CK.abs())).nan_to_num(nan=0.0).amax(-1)
    last_C, next_C = kept_CK[:, -1], others_CV.amax(-1)
    of_order_C = ((next_C - last_C) / (2 * nats)).clamp_min(0.0) if has_tail else torch.zeros_like(of_kept_C)
    tail_C = others_CV.logsumexp(-1).exp()
    of_tail_C = (stored.tail_logp_N.double().exp() - tail_C).abs() / nats if has_tail else torch.zeros_like(tail_C)
    return torch.stack([of_kept_C, of_order_C.nan_to_num(nan=0.0), of_tail_C]).amax(0)


def _excess_of_sample(stored: SampledTargets, logp_CV: Tensor, *, rounding: float, threshold: float) -> Tensor:
    p_CV = logp_CV.exp()
    counts_C = stored.offsets.diff()
    weights_CV = torch.zeros_like(p_CV)
    weights_CV[torch.repeat_interleave(torch.arange(len(p_CV)), counts_C), stored.ids_M] = stored.weights_M.double()
    return ((weights_CV - p_CV).abs() / (threshold + math.expm1(rounding) * p_CV + 1e-6)).amax(-1)


def _kl(logp_CV: Tensor, found_CV: Tensor) -> Tensor:
    p_CV = logp_CV.exp()
    return torch.where(p_CV > 0, p_CV * (logp_CV - found_CV), 0.0).sum(-1).clamp_min(0.0)


def _threshold(settings: Mapping[str, Any]) -> float:  # JSON
    """The largest weight of a token below the threshold, and one step of the weights."""
    return (1.0 + 1.0 / int(settings["grains"])) / int(settings["m"])


def _part(stored: CachedTargets, place: slice) -> CachedTargets:
    """The targets of some of the positions."""
    if isinstance(stored, DenseTargets):
        return DenseTargets(hidden_ND=stored.hidden_ND[place], head=stored.head)
    if isinstance(stored, LogitTargets):
        return LogitTargets(logits_NV=stored.logits_NV[place])
    if isinstance(stored, TopKTargets):
        return replace(
            stored,
            ids_NK=stored.ids_NK[place],
            logp_NK=stored.logp_NK[place],
            tail_logp_N=stored.tail_logp_N[place],
        )
    offsets = stored.offsets[place.start : place.stop + 1]
    entries = slice(int(offsets[0]), int(offsets[-1]))
    return replace(
        stored, ids_M=stored.ids_M[entries], weights_M=stored.weights_M[entries], offsets=offsets - offsets[0]
    )
