"""The verb `cache merge`: several teachers' caches as one, averaged in probability, without loading any teacher.

Samples (threshold) are averaged position by position and thresholded again, with a draw that belongs to the row and to
merging alone: the expectation of the result is the weighted average of the teachers.  Top-k caches are averaged on the
ids that any of them kept, which is coarse.  The held-out rows of all parts are kept side by side (`ensemble.py`).

Shape legend: N positions, R rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tutelage import console, io, tensor_file
from tutelage.cache import calibrate
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import Encoded, Fitted, Positions, Settings, Tables
from tutelage.cache.manifest import Asked, Manifest, Member, Shard
from tutelage.cache.mergeable import ensemble_of, keys_of, require_mergeable, weights_of
from tutelage.cache.mixture import Mixture, joined, mixed
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.shard import Rows, write_shard
from tutelage.cache.tokens import Tokens, find, groups, stored_rows, tokens_of
from tutelage.cache.witness import next_logp
from tutelage.cache.writer import SHARD_LEAST, SHARD_MOST, SHARDS_PLANNED
from tutelage.errors import ConfigError
from tutelage.locks import exclusive, lock_path

_COPY_BYTES = 16 << 20


class Mixer(Protocol):
    """`codecs/_NAME_mixture.py`: a codec's way to store averages."""

    def fit(
        self,
        sample: Mixture,
        *,
        positions: Positions,
        parts: Sequence[Settings],
        bytes_per_token: float | None,
        n_vocabulary: int,
    ) -> Fitted:
        """Settings and tables for a budget."""
        ...

    def encode(
        self, mixture: Mixture, *, positions: Positions, settings: Settings, tables: Tables, n_vocabulary: int
    ) -> Encoded:
        """Whole rows as bytes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What `merge` gives back."""

    path: Path
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "cache": str(self.path),
            "codec": self.manifest.asked.codec,
            "settings": self.manifest.settings,
            "rows": self.manifest.n_rows,
            "positions": self.manifest.n_positions,
            "bytes_per_token": self.manifest.bytes_per_token,
            "teachers": [
                {"name": member.teacher.name, "weight": member.weight, "held_out": member.held_out}
                for member in self.manifest.members
            ],
        }

    def __str__(self) -> str:
        members = self.manifest.members
        lines = [
            f"cache:   {self.path}  ({self.manifest.n_rows:,} rows, {self.manifest.n_positions:,} positions, "
            f"{self.manifest.bytes_per_token:.2f} bytes a token)",
            "average: " + ", ".join(f"{member.weight:.3g} {member.teacher.name}" for member in members),
            f"codec:   {self.manifest.asked.codec}; {self.manifest.why}",
        ]
        if not all(member.held_out for member in members):
            lines.append("held out: not every part has held-out rows, so KL to the ensemble cannot be measured")
        return "\n".join([*lines, f"next:    tutelage cache inspect {self.path}, then tutelage train RECIPE"])


def merge(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    weights: str | Sequence[float] = "",
    bytes_per_token: float | None = None,
) -> Merged:
    """Write the weighted average of caches of the same rows to `output`; by default at the largest budget of the parts.

    The tokens of the rows must be on this machine.  Killed anywhere, it leaves no cache and no half one.  Raises
    ConfigError or IntegrityError for caches that cannot be averaged.
    """
    final = Path(output)
    _require_absent(final)
    caches = [TeacherCache(path) for path in paths]
    require_mergeable(caches)
    work = _Work.of(caches, weights=weights_of(weights, n=len(caches)), bytes_per_token=bytes_per_token)
    partial = final.with_name(f"{final.name}.partial")
    with exclusive(lock_path(final, "merge"), what=f"{final}"):
        _require_absent(final)  # another process may have made it meanwhile
        io.remove_tree(partial)
        io.make_directory(partial / manifests.SHARDS)
        manifest = work.write(partial)
        io.commit_directory(partial, final)
    return Merged(path=final, manifest=manifest)


def _require_absent(final: Path) -> None:
    if final.exists():
        raise ConfigError("EXISTS", f"{final} is already there; give another --output, or rm -r '{final}'")


# --- the work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The caches, their weights, all rows with their tokens, and who stores averages."""

    caches: tuple[TeacherCache, ...]
    weights: tuple[float, ...]
    rows: RowSet
    bytes_per_token: float | None
    mixer: Mixer

    @classmethod
    def of(
        cls, caches: Sequence[TeacherCache], *, weights: tuple[float, ...], bytes_per_token: float | None
    ) -> "_Work":
        keys_R = keys_of(caches[0])
        rows = find(stored_rows([cache.manifest for cache in caches]), keys_R)
        n_missing = len(keys_R) - (len(rows) if rows is not None else 0)
        if rows is None or n_missing:
            raise ConfigError(
                "CONFIG",
                f"the tokens of {n_missing} of {len(keys_R)} rows are not on this machine, and rows decode with their "
                "tokens alone; make them again: tutelage label RECIPE, which asks the teacher for nothing that is "
                "there",
            )
        codec = caches[0].manifest.asked.codec
        mixer: Mixer = import_module(f"tutelage.cache.codecs._{codec}_mixture")
        budget = bytes_per_token
        if budget is None and codec == "threshold":
            budget = max(_budget(cache.manifest) for cache in caches)
        return cls(caches=tuple(caches), weights=weights, rows=rows, bytes_per_token=budget, mixer=mixer)

    @property
    def asked(self) -> Asked:
        """What the merged cache says that it was asked for: no label can have asked the same."""
        first = self.caches[0].manifest.asked
        return first.model_copy(
            update={
                "draws": max(cache.manifest.asked.draws for cache in self.caches),
                "bytes_per_token": self.bytes_per_token,
                "error": None,
                "fixed": {},
                "teacher": ensemble_of([cache.manifest.asked.teacher for cache in self.caches], self.weights),
            }
        )

    def mixture(self, rows: RowSet, *, draw: int) -> tuple[Mixture, Tokens]:
        """The average at the positions of some rows; parts with fewer draws are counted round."""
        tokens = tokens_of(rows)
        targets, witnesses = [], []
        for cache in self.caches:
            own = draw % cache.manifest.asked.draws
            targets.append(
                cache.targets(
                    tokens.keys,
                    current_ids_N=tokens.current_ids_N,
                    next_ids_N=tokens.next_ids_N,
                    draws=[own] * len(tokens.keys),
                )
            )
            witnesses.append(next_logp(cache, tokens, draw=own))
        n_vocabulary = self.caches[0].manifest.asked.n_vocabulary
        return mixed(targets, weights=self.weights, next_logp=witnesses, n_vocabulary=n_vocabulary), tokens

    def fitted(self) -> Fitted:
        """Settings and tables from the first rows by key, which are as good as drawn."""
        n_R = self.rows.n_trained
        wanted = int(np.clip(calibrate.SAMPLE_SHARE * int(n_R.sum()), calibrate.SAMPLE_LEAST, calibrate.SAMPLE_MOST))
        some = self.rows.take(slice(0, int(np.searchsorted(np.cumsum(n_R), wanted)) + 1))
        parts = [self.mixture(group, draw=0)[0] for group in groups(some)]
        return self.mixer.fit(
            joined(parts),
            positions=_positions(tokens_of(some), draw=0),
            parts=[cache.manifest.settings for cache in self.caches],
            bytes_per_token=self.bytes_per_token,
            n_vocabulary=self.caches[0].manifest.asked.n_vocabulary,
        )

    def write(self, folder: Path) -> Manifest:
        """The whole cache; its manifest last."""
        members = tuple(_copy_member(cache, folder, n=n, weight=w) for n, (cache, w) in enumerate(self._weighted()))
        start = self.caches[0].folder / manifests.START
        if start.is_dir():
            _copy(start, folder / manifests.START)
        fitted = self.fitted()
        files = {manifests.TABLES: io.write_pieces(folder / manifests.TABLES, tensor_file.pieces(dict(fitted.tables)))}
        for n, cache in enumerate(self.caches):
            files |= _copy_probe(cache, folder, n=n)
        manifest = Manifest(
            format_version=manifests.FORMAT_VERSION,
            asked=self.asked,
            settings=dict(fitted.settings),
            why=fitted.why,
            files={name: digest.sha256 for name, digest in files.items()},
            start=calibrate.start_files(folder),
            members=members,
            made_with=self.caches[0].manifest.made_with,
            stores=tuple(dict.fromkeys(name for cache in self.caches for name in cache.manifest.stores)),
        )
        shards = tuple(self._shards(folder, fitted=fitted, draws=manifest.asked.draws))
        manifest = manifest.model_copy(update={"shards": shards}).signed()
        io.write_json(folder / manifests.MANIFEST, manifest.model_dump(mode="json"))
        return manifest

    def _weighted(self) -> Iterator[tuple[TeacherCache, float]]:
        return zip(self.caches, self.weights, strict=True)

    def _shards(self, folder: Path, *, fitted: Fitted, draws: int) -> Iterator[Shard]:
        n_R = self.rows.n_trained
        most = int(np.clip(n_R.sum() // SHARDS_PLANNED, SHARD_LEAST, SHARD_MOST))
        shard_R = (np.cumsum(n_R) - n_R) // most
        with console.Progress("averaging", total=int(n_R.sum())) as bar:
            for number, n in enumerate(np.unique(shard_R)):
                yield self._shard(folder, number, self.rows.take(shard_R == n), fitted=fitted, draws=draws, bar=bar)

    def _shard(
        self, folder: Path, number: int, rows: RowSet, *, fitted: Fitted, draws: int, bar: console.Progress
    ) -> Shard:
        data: list[list[bytes]] = []
        witness_bytes = nll_nats = 0.0
        for group in groups(rows):
            of_rows: list[list[bytes]] = [[] for _ in range(len(group))]
            for draw in range(draws):
                mixture, tokens = self.mixture(group, draw=draw)
                encoded = self.mixer.encode(
                    mixture,
                    positions=_positions(tokens, draw=draw),
                    settings=fitted.settings,
                    tables=fitted.tables,
                    n_vocabulary=self.caches[0].manifest.asked.n_vocabulary,
                )
                witness_bytes += encoded.witness_bytes
                for row, found in zip(of_rows, encoded.rows, strict=True):
                    row.append(found)
            nll_nats -= float(mixture.next_logp_N.sum())
            data += of_rows
            bar.advance(len(mixture))
        content = Rows(
            keys_R=rows.keys_R, counts_R=rows.n_trained, draws=data, witness_bytes=witness_bytes, nll_nats=nll_nats
        )
        return write_shard(folder, number, content)


def merge_seeds(keys: Sequence[bytes], *, draw: int) -> npt.NDArray[np.uint64]:
    """The seed of the draw of each row: of its content and of merging, so that it is none of the parts' draws."""
    digests = (hashlib.sha256(f"tutelage cache merge {draw}".encode() + key).digest() for key in keys)
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)


def _positions(tokens: Tokens, *, draw: int) -> Positions:
    return Positions(
        current_ids_N=tokens.current_ids_N,
        next_ids_N=tokens.next_ids_N,
        counts_R=tokens.counts_R,
        seeds_R=merge_seeds(tokens.keys, draw=draw),
    )


def _budget(manifest: Manifest) -> float:
    """Bytes a token that a part was asked for, or that its rows have."""
    n = max(1, manifest.n_positions * manifest.asked.draws)
    return manifest.asked.bytes_per_token or sum(shard.row_bytes for shard in manifest.shards) / n


def _copy_member(cache: TeacherCache, folder: Path, *, n: int, weight: float) -> Member:
    name = f"{manifests.HELD_OUT}-{n}" if cache.held_out is not None else ""
    if name:
        _copy(cache.folder / manifests.HELD_OUT, folder / name)
    manifest = cache.manifest
    return Member(weight=weight, identity=manifest.identity(), teacher=manifest.asked.teacher, held_out=name)


def _copy_probe(cache: TeacherCache, folder: Path, *, n: int) -> dict[str, io.Digest]:
    """The positions that a part kept in full, and its head where it lies beside them: to measure the average by."""
    kept = [name for name in (manifests.PROBE, manifests.HEAD) if name in cache.manifest.files]
    targets = {name: manifests.of_part(name, n) for name in kept}
    return {target: io.write_pieces(folder / target, _pieces(cache.folder / name)) for name, target in targets.items()}


def _copy(source: Path, target: Path) -> None:
    """Every file of a folder."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        io.write_pieces(target / path.relative_to(source), _pieces(path))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_COPY_BYTES):
            yield piece
