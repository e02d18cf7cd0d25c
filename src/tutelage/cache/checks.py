"""The verb `cache verify`: every byte against the manifest, every row against its tokens, a sample against the teacher.

Shape legend: R rows.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage import console, reading
from tutelage.cache import manifest as manifests
from tutelage.cache.again import Asker, Compared, ask_again
from tutelage.cache.manifest import Manifest, damaged, read_manifest
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.tokens import find, groups, stored_rows, tokens_of
from tutelage.errors import ConfigError, IntegrityError
from tutelage.models.load import load_start
from tutelage.models.vocabulary import tokenizer_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What `verify` gives back when nothing is wrong; rows count held-out rows as well."""

    path: Path
    n_files: int
    n_bytes: int
    n_rows: int
    n_decoded: int  # rows whose tokens are still on this machine: decoded with them, every draw
    unlisted: tuple[str, ...]  # files that the manifest does not know: nothing reads them
    teacher: str | None
    compared: Compared | None

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        compared = self.compared
        return {
            "cache": str(self.path),
            "files": self.n_files,
            "bytes": self.n_bytes,
            "rows": self.n_rows,
            "rows_decoded": self.n_decoded,
            "unlisted": list(self.unlisted),
            "teacher": self.teacher,
            "rows_asked_again": compared.n_rows if compared else 0,
            "rows_with_the_same_bytes": compared.n_same_bytes if compared else 0,
            "rows_within_bounds": compared.n_within if compared else 0,
        }

    def __str__(self) -> str:
        lines = [
            f"cache:   {self.path}",
            f"bytes:   {self.n_files:,} files, {self.n_bytes:,} bytes: all as the manifest says",
            f"rows:    {self.n_decoded:,} of {self.n_rows:,} decoded with their tokens",
        ]
        if self.n_decoded < self.n_rows:
            lines[-1] += "; the tokens of the others are not on this machine: tutelage label RECIPE makes them again"
        if self.unlisted:
            lines.append(
                f"beside:  {len(self.unlisted)} files that belong to no cache ({', '.join(self.unlisted[:3])})"
            )
        if self.compared is not None:
            lines.append(f"teacher: {self.teacher} was asked again about {self.compared}")
        return "\n".join(lines)


def verify(path: str | Path, teacher: str | None = None, *, sample: str = "1%") -> Verified:
    """Check a cache; `teacher` (a model's name) is asked again about a `sample` of the forward passes.

    Bytes: every file of the cache and of its held-out rows has the SHA-256 of the manifest.  Rows: decoded with their
    tokens, where the stores that they came from are still on this machine.  Teacher: see `again.py`.

    Raises IntegrityError for the first thing that is not as it should be, ConfigError for a share that is none.
    """
    folder, share = Path(path), share_of(sample)
    own = read_manifest(folder)
    parts = {folder: own, **_held_out(folder, own)}
    n_files, n_bytes = _check_bytes(parts)
    _check_start(folder, own)
    caches = [TeacherCache(part) for part in parts]
    asker = Asker.of(own, teacher) if teacher is not None else None
    stored = stored_rows([cache.manifest for cache in caches])
    n_decoded = sum(_decode(cache, stored) for cache in caches)
    compared = Compared()
    for cache in caches if asker is not None else ():
        assert asker is not None
        compared += ask_again(cache, asker, stored=stored, share=share)
    if asker is not None and not compared.n_rows:
        raise ConfigError(
            "CONFIG",
            f"--teacher: the tokens of {folder} are not on this machine, so {teacher} cannot be asked about them; "
            "make them again: tutelage label RECIPE, which asks the teacher for nothing that is there",
        )
    return Verified(
        path=folder,
        n_files=n_files,
        n_bytes=n_bytes,
        n_rows=sum(cache.manifest.n_rows for cache in caches),
        n_decoded=n_decoded,
        unlisted=_unlisted(folder, parts),
        teacher=teacher,
        compared=compared if asker is not None else None,
    )


def share_of(text: str) -> float:
    """`1%` or `0.01` as a share in (0, 1]; ConfigError for anything else."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            "CONFIG", f"--sample: '{text}' is no share of the rows; expected 0.01% to 100%; type --sample 1%"
        )
    return share


def _held_out(folder: Path, own: Manifest) -> dict[Path, Manifest]:
    """The caches of held-out rows beside a cache, of a merged one those of every part; none by another teacher."""
    expected = {member.held_out: member.teacher for member in own.members if member.held_out}
    if not own.members and (folder / manifests.HELD_OUT).is_dir():
        expected = {manifests.HELD_OUT: own.asked.teacher}
    found = {folder / name: read_manifest(folder / name) for name in expected}
    for path, held_out in found.items():
        same = {name: getattr(own.asked, name) for name in ("tokenizer", "template", "n_vocabulary")}
        for name, value in {**same, "teacher": expected[path.name]}.items():
            if getattr(held_out.asked, name) != value:
                raise IntegrityError(
                    "CACHE_MISMATCH",
                    f"{path}: the held-out rows were labelled with another {name} than the training rows; "
                    f"label anew: rm -r '{folder}', then tutelage label RECIPE",
                )
    return found


# --- bytes -----------------------------------------------------------------------------------------------------------


def _listed(manifest: Manifest) -> dict[str, str]:
    """The SHA-256 of every file that a manifest knows, by its path in the cache."""
    start = {f"{manifests.START}/{name}": sha256 for name, sha256 in manifest.start.items()}
    shards = {f"{manifests.SHARDS}/{shard.name}": shard.sha256 for shard in manifest.shards}
    return {**manifest.files, **start, **shards}


def _check_bytes(parts: dict[Path, Manifest]) -> tuple[int, int]:
    """(files, bytes) of the cache and of its held-out rows, all of them right; before anything of them is parsed."""
    expected = {folder / name: sha256 for folder, own in parts.items() for name, sha256 in _listed(own).items()}
    if missing := [path for path in expected if not path.is_file()]:
        raise damaged(missing[0].parent, f"{missing[0].name} is missing")
    n_bytes = sum(path.stat().st_size for path in expected)
    with console.Progress("verifying bytes", total=n_bytes) as bar:
        for path, sha256 in expected.items():
            found = reading.sha256_file(path)
            if found != sha256:
                folder = next(part for part in reversed(parts) if path.is_relative_to(part))
                raise damaged(folder, f"{path.relative_to(folder)} sha256 {found[:12]}, expected {sha256[:12]}")
            bar.advance(path.stat().st_size)
    return len(expected) + len(parts), n_bytes + sum((part / manifests.MANIFEST).stat().st_size for part in parts)


def _check_start(folder: Path, manifest: Manifest) -> None:
    """IntegrityError[CACHE_MISMATCH] unless the tokenizer beside the shards is the one that the rows were made with."""
    if not manifest.start:
        return
    tokenizer, _ = load_start(folder / manifests.START)
    found = tokenizer_fingerprint(tokenizer)
    if found != manifest.asked.tokenizer:
        raise IntegrityError(
            "CACHE_MISMATCH",
            f"{folder}: {manifests.START} holds tokenizer {found[:8]}.., the rows were made with "
            f"{manifest.asked.tokenizer[:8]}..; label anew: rm -r '{folder}', then tutelage label RECIPE",
        )


def _unlisted(folder: Path, parts: dict[Path, Manifest]) -> tuple[str, ...]:
    known = {part / name for part, own in parts.items() for name in (*_listed(own), manifests.MANIFEST)}
    here = (path for path in folder.rglob("*") if path.is_file() and path not in known)
    return tuple(sorted(str(path.relative_to(folder)) for path in here))


# --- rows ------------------------------------------------------------------------------------------------------------


def _decode(cache: TeacherCache, stored: tuple[RowSet, ...]) -> int:
    """Rows that were decoded with their tokens, every draw; raises IntegrityError for the first that does not fit."""
    n_decoded = 0
    with console.Progress(f"decoding rows of {cache.folder.name}", total=cache.manifest.n_positions) as bar:
        for shard in cache.shards:
            rows = find(stored, shard.keys)
            for group in groups(rows) if rows is not None else ():
                tokens = tokens_of(group)
                for draw in range(cache.manifest.asked.draws):
                    cache.targets(
                        tokens.keys,
                        current_ids_N=tokens.current_ids_N,
                        next_ids_N=tokens.next_ids_N,
                        draws=[draw] * len(tokens.keys),
                    )
                n_decoded += len(group)
                bar.advance(len(tokens.next_ids_N))
    return n_decoded
