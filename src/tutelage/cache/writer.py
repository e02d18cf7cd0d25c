"""Writing a cache: the missing rows become shards, each whole or absent, by one process or several at once.

The plan (which row stands in which shard) depends on the rows' content alone, and a shard's forward passes on its rows
alone.  So whoever computes a shard, and however often it was begun, its bytes are the same; `plan.json` exists while
shards are missing, `manifest.json` when none is.

Shape legend: R rows.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import console, io, plugins, reading
from tutelage.cache import manifest as manifests
from tutelage.cache.calibrate import fitted_manifest
from tutelage.cache.codec import CODECS, Codec, Encoded, Tables
from tutelage.cache.job import Job, Pass
from tutelage.cache.manifest import Manifest, Plan, Shard
from tutelage.cache.reader import KeyIndex, read_tables
from tutelage.cache.rows import RowSet
from tutelage.cache.shard import Rows, shard_name, write_shard
from tutelage.errors import ConfigError, IntegrityError
from tutelage.locks import exclusive, lock_path

SHARDS_PLANNED, SHARD_LEAST, SHARD_MOST = 64, 8_192, 1 << 20  # positions of a shard lie between least and most
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a call of `write` did: `n_positions` and `n_shards` are this process's own."""

    manifest: Manifest
    n_positions: int
    n_shards: int
    seconds: float


def write(folder: Path, job: Job) -> Written:
    """Label every row that the cache in `folder` lacks; an unfinished cache goes on, a finished one grows.

    Raises ConfigError[CACHE_MISMATCH] when what is there was asked for otherwise.
    """
    started = time.perf_counter()
    with exclusive(lock_path(folder, "plan"), what=f"the plan of {folder}"):
        plan = _plan(folder, job)
    own: list[Shard] = []
    if plan is not None:
        own = _write_shards(folder, job, plan=plan)
        with exclusive(lock_path(folder, "plan"), what=f"the plan of {folder}"):
            _finish(folder, plan)
    return Written(
        manifest=manifests.read_manifest(folder),
        n_positions=sum(shard.n_positions for shard in own),
        n_shards=len(own),
        seconds=time.perf_counter() - started,
    )


# --- plan ---
def _plan(folder: Path, job: Job) -> Plan | None:
    """The plan that is under way, or a new one; None when no row is missing."""
    plan = manifests.read_plan(folder)
    finished = manifests.read_manifest(folder) if (folder / manifests.MANIFEST).is_file() else None
    if plan is not None and _is_finished(folder, plan):
        _remove_plan(folder, plan)  # killed after the manifest was written
        plan = None
    before = plan.manifest if plan is not None else finished
    if before is not None and (found := manifests.differences(before.asked, job.asked)):
        raise ConfigError(
            "CACHE_MISMATCH",
            f"{folder} was made otherwise: {', '.join(found)}; ask the same, give teacher.cache another folder, "
            "or write it anew with --force",
        )
    rows = missing_rows(folder, job.rows, before)
    if plan is None and len(rows):
        plan = _new_plan(folder, job, rows=rows, before=before)
        io.write_json(folder / manifests.PLAN, plan.model_dump(mode="json"))
    elif plan is not None:
        _require_same_rows(folder, plan, rows=rows)
    return plan


def _require_same_rows(folder: Path, plan: Plan, *, rows: RowSet) -> None:
    if rows.sha256() != plan.rows_sha256:
        raise ConfigError(
            "CACHE_MISMATCH",
            f"{folder} is unfinished and was begun with other data; finish it with the data of then, "
            "or write it anew with --force",
        )
    n_kept = sum(_record_path(folder, plan.first_shard + n).is_file() for n in range(plan.n_shards))
    if n_kept:
        console.note("CAPTURE_RESUMED", f"{folder}: {n_kept} of {plan.n_shards} shards kept")


def missing_rows(folder: Path, rows: RowSet, manifest: Manifest | None) -> RowSet:
    """The rows that no shard of the manifest holds."""
    if manifest is None or not manifest.shards:
        return rows
    return rows.take(~KeyIndex.of(folder, manifest.shards).has(rows.keys_R))


def _new_plan(folder: Path, job: Job, *, rows: RowSet, before: Manifest | None) -> Plan:
    n_R = rows.n_trained
    io.make_directory(folder / manifests.SHARDS)
    base = before or fitted_manifest(folder, job, rows=rows)
    stores = sorted({*base.stores, *(store.path.name for store in rows.stores)})
    base = base.model_copy(update={"stores": tuple(stores)})
    most = job.shard_positions or int(np.clip(n_R.sum() // SHARDS_PLANNED, SHARD_LEAST, SHARD_MOST))
    shard_R = (np.cumsum(n_R) - n_R) // most
    edges = [0, *(np.flatnonzero(np.diff(shard_R)) + 1).tolist(), len(rows)]
    return Plan(manifest=base, rows_sha256=rows.sha256(), edges=tuple(edges), first_shard=len(base.shards))


# --- shards ---
def _write_shards(folder: Path, job: Job, *, plan: Plan) -> list[Shard]:
    """Compute every shard that nobody else has or is at; returns when all are there."""
    rows = missing_rows(folder, job.rows, plan.manifest)
    own: list[Shard] = []
    left = set(range(plan.n_shards))
    with _Ticker(f"labelling for {folder}", total=int(rows.n_trained.sum())) as ticker:
        while left:
            before = len(left)
            for n in sorted(left):
                number = plan.first_shard + n
                part = rows.take(slice(plan.edges[n], plan.edges[n + 1]))
                if not _is_there(folder, plan, number):
                    if (handle := io.take_lock(lock_path(folder, str(number)))) is None:
                        continue
                    try:
                        if not _is_there(folder, plan, number):
                            own.append(_write_one(folder, job, plan=plan, number=number, rows=part, ticker=ticker))
                            _require_room(folder, own[-1], rows=rows)
                    finally:
                        os.close(handle)
                left.discard(n)
                ticker.reach(part)
            if len(left) == before:
                time.sleep(_POLL_S)  # the rest is in the hands of other processes; if one dies, its lock is free
    return own


def _require_room(folder: Path, last: Shard, *, rows: RowSet) -> None:
    """ResourceError[DISK_FULL] before the disk is full: what is missing will take as much a token as the last shard."""
    n_done = sum(path.stat().st_size for path in (folder / manifests.SHARDS).glob("*.safetensors"))
    n_bytes = last.file_bytes * int(rows.n_trained.sum()) // max(1, last.n_positions)
    io.require_free_space(folder, max(0, n_bytes - n_done))


def _write_one(folder: Path, job: Job, *, plan: Plan, number: int, rows: RowSet, ticker: "_Ticker") -> Shard:
    """One shard and, after it, its record: what has a record is whole."""
    codec: Codec = plugins.load(CODECS, job.asked.codec)
    tables = read_tables(folder, plan.manifest)
    draws: list[list[bytes]] = [[] for _ in range(len(rows))]
    witness_bytes = nll_nats = 0.0
    for one in job.passes(rows):
        for draw in range(job.asked.draws):
            encoded = _encode(codec, one, rows=rows, draw=draw, plan=plan, tables=tables)
            for place, data in zip(one.places_R.tolist(), encoded.rows, strict=True):
                draws[place].append(data)
            witness_bytes += encoded.witness_bytes
        nll_nats -= float(encoded.next_logp_N.sum())
        ticker.tick(len(one.positions), sum(map(len, encoded.rows)) * job.asked.draws)
    _require_finite(nll_nats, folder=folder, number=number)
    content = Rows(
        keys_R=rows.keys_R, counts_R=rows.n_trained, draws=draws, witness_bytes=witness_bytes, nll_nats=nll_nats
    )
    shard = write_shard(folder, number, content)
    io.write_json(_record_path(folder, number), shard.model_dump(mode="json"))
    return shard


def _encode(codec: Codec, one: Pass, *, rows: RowSet, draw: int, plan: Plan, tables: Tables) -> Encoded:
    positions = one.positions
    if draw:
        positions = replace(
            positions, seeds_R=rows.take(one.places_R).seeds(draw=draw, teacher=plan.manifest.asked.teacher.weights)
        )
    return codec.encode(
        one.targets.hidden_ND,
        head=one.targets.head,
        positions=positions,
        temperature=plan.manifest.asked.temperature,
        settings=plan.manifest.settings,
        tables=tables,
    )


def _require_finite(nll_nats: float, *, folder: Path, number: int) -> None:
    if not abs(nll_nats) < float("inf"):
        raise IntegrityError(
            "NONFINITE",
            f"the teacher's loss on {shard_name(number)} of {folder} is {nll_nats}; nothing of it was written; look at "
            "the teacher, or set teacher.dtype=float32",
        )


class _Ticker:
    """Progress in positions: this process's own speed and bytes a token, and what the others have finished."""

    def __init__(self, title: str, *, total: int) -> None:
        self._bar = console.Progress(title, total=total)
        self._reached = self._own = self._own_bytes = self._in_shard = 0
        self._seconds, self._since_s = 0.0, time.perf_counter()

    def __enter__(self) -> "_Ticker":
        self._bar.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:  # what `with` hands on
        self._bar.__exit__(*reason)

    def tick(self, n_positions: int, n_bytes: int) -> None:
        """A forward pass of this process is encoded."""
        now_s = time.perf_counter()
        self._seconds, self._since_s = self._seconds + now_s - self._since_s, now_s
        self._own, self._own_bytes = self._own + n_positions, self._own_bytes + n_bytes
        self._in_shard += n_positions
        rate = self._own / self._seconds
        text = f"{rate:,.0f} tok/s  {self._own_bytes / self._own:.2f} bytes/token"
        self._bar.update(self._reached + self._in_shard, text)

    def reach(self, rows: RowSet) -> None:
        """A shard is there, whoever has written it."""
        self._reached, self._in_shard = self._reached + int(rows.n_trained.sum()), 0
        self._since_s = time.perf_counter()
        self._bar.update(self._reached, self._bar.text)


# --- the end ---
def _finish(folder: Path, plan: Plan) -> None:
    """Write the manifest and clear away what only the work needed; harmless when another process has done it."""
    if _is_finished(folder, plan):
        return
    paths = [_record_path(folder, plan.first_shard + n) for n in range(plan.n_shards)]
    shards = tuple(Shard.model_validate(reading.read_json(path)) for path in paths)
    manifest = plan.manifest.model_copy(update={"shards": (*plan.manifest.shards, *shards)}).signed()
    io.write_json(folder / manifests.MANIFEST, manifest.model_dump(mode="json"))
    _remove_plan(folder, plan)


def _remove_plan(folder: Path, plan: Plan) -> None:
    """The plan goes last: while it is there, a killed call is followed by one that clears the rest away."""
    for n in range(plan.n_shards):
        io.remove_file(_record_path(folder, plan.first_shard + n))
    io.remove_leftovers(folder)
    io.remove_leftovers(folder / manifests.SHARDS)
    io.remove_file(folder / manifests.PLAN)


def _is_finished(folder: Path, plan: Plan) -> bool:
    """Whether the manifest holds the plan's shards already."""
    if not (folder / manifests.MANIFEST).is_file():
        return False
    return len(manifests.read_manifest(folder).shards) >= plan.first_shard + plan.n_shards


def _is_there(folder: Path, plan: Plan, number: int) -> bool:
    """Whether a shard is whole: it has its record, or the manifest has taken all records in."""
    return _record_path(folder, number).is_file() or _is_finished(folder, plan)


def _record_path(folder: Path, number: int) -> Path:
    """The line of the manifest that a shard will be, written after it."""
    return (folder / manifests.SHARDS / shard_name(number)).with_suffix(".json")
