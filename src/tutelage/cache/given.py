"""A cache of targets that no model of ours computed: log-probabilities that an endpoint gave beside its answers.

Codec topk, as `label` would write it, but no hidden state, probe or head: the error of the stored numbers cannot be
measured, and no row is held out whole.  Written aside and moved into place: whole or absent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage import io, tensor_file
from tutelage.cache import calibrate
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import Positions
from tutelage.cache.codecs import _row, topk
from tutelage.cache.manifest import Asked, Manifest, Shard, TeacherRecord
from tutelage.cache.shard import Rows, write_shard
from tutelage.models.save import save_start

UNKNOWN = "unknown"
_SHARD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRow:
    """One row with its targets, N trained positions and K kept tokens; nats."""

    key: bytes
    next_ids_N: npt.NDArray[np.int64]
    ids_NK: npt.NDArray[np.int64]
    logp_NK: npt.NDArray[np.float64]
    tail_N: npt.NDArray[np.float64]
    next_logp_N: npt.NDArray[np.float64]


def endpoint_record(name: str, *, identity: str) -> TeacherRecord:
    """A teacher of whom nothing is known but a name and where it is asked (`identity`, a SHA-256)."""
    return TeacherRecord(
        name=name,
        saved_weights=identity,
        weights=identity,
        dtype=UNKNOWN,
        attention=UNKNOWN,
        parameters=0,
        parameter_bytes=0,
    )


def is_given(manifest: Manifest) -> bool:
    """Whether an endpoint gave the numbers: of such a teacher there are no weights and no whole distributions."""
    return manifest.asked.teacher.parameters == 0


def write_given(
    final: Path,
    rows: Iterable[GivenRow],
    *,
    asked: Asked,
    why: str,
    store: str,
    tokenizer: Any,
    config: Any,
) -> Manifest:
    """Write the cache, in place of one that is there; rows of equal content become one, sorted by key."""
    partial = final.with_name(f".{final.name}.partial")
    io.remove_tree(partial)
    io.make_directory(partial / manifests.SHARDS)
    k = int(str(asked.fixed["k"]))
    bits = _row.id_bits(asked.n_vocabulary)
    encoded = {row.key: _encoded(row, bits=bits) for row in rows}
    shards = tuple(_write(partial, n, part) for n, part in enumerate(_parts(sorted(encoded.items()))))
    save_start(SimpleNamespace(config=config), tokenizer, partial / manifests.START, replace=True)
    manifest = Manifest(
        format_version=manifests.FORMAT_VERSION,
        asked=asked,
        settings={"k": k, "tail": True},
        why=why,
        files={manifests.TABLES: io.write_pieces(partial / manifests.TABLES, tensor_file.pieces({})).sha256},
        start=calibrate.start_files(partial),
        made_with={name: metadata.version(name) for name in ("tutelage", "transformers", "numpy")},
        stores=(store,),
        shards=shards,
    ).signed()
    io.write_json(partial / manifests.MANIFEST, manifest.model_dump(mode="json"))
    io.commit_directory(partial, final, replace=True)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    data: bytes
    n: int
    nll_nats: float


def _encoded(row: GivenRow, *, bits: int) -> _Encoded:
    n = len(row.next_ids_N)
    positions = Positions(
        current_ids_N=np.zeros(n, np.int64),  # the codec looks at the next tokens alone
        next_ids_N=row.next_ids_N,
        counts_R=np.array([n], np.int64),
        seeds_R=np.zeros(1, np.uint64),
    )
    (data,) = topk.rows_of(
        row.ids_NK,
        row.logp_NK.astype("<f2"),
        tail_N=row.tail_N.astype("<f2"),
        next_logp_N=row.next_logp_N,
        positions=positions,
        bits=bits,
    )
    return _Encoded(data=data, n=n, nll_nats=-float(row.next_logp_N.sum()))


def _parts(rows: list[tuple[bytes, _Encoded]]) -> Iterator[list[tuple[bytes, _Encoded]]]:
    """Rows in order, about so many bytes at a time."""
    part: list[tuple[bytes, _Encoded]] = []
    size = 0
    for key, row in rows:
        part.append((key, row))
        size += len(row.data)
        if size >= _SHARD_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write(folder: Path, number: int, part: list[tuple[bytes, _Encoded]]) -> Shard:
    counts_R = np.array([row.n for _, row in part], dtype=np.int64)
    content = Rows(
        keys_R=np.frombuffer(b"".join(key for key, _ in part), dtype=np.uint8).reshape(-1, 32).copy(),
        counts_R=counts_R,
        draws=[[row.data] for _, row in part],
        witness_bytes=float(counts_R.sum()),
        nll_nats=sum(row.nll_nats for _, row in part),
    )
    return write_shard(folder, number, content)
