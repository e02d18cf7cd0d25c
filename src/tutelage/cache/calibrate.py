"""Before the first shard: the codec's settings and tables, chosen on a sample of the data; a probe kept in full.

Shape legend: N trained positions, R rows, D hidden size.
"""

from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage import console, io, plugins, reading, tensor_file
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import CODECS, Budget, Codec, Fitted, Positions, Sample
from tutelage.cache.job import Job
from tutelage.cache.manifest import Manifest
from tutelage.cache.rows import RowSet

SAMPLE_SHARE, SAMPLE_LEAST, SAMPLE_MOST = 0.05, 8_192, 32_768  # positions
PROBE_POSITIONS = 2_048
_LIBRARIES = ("tutelage", "torch", "transformers", "numpy")


def fitted_manifest(folder: Path, job: Job, *, rows: RowSet) -> Manifest:
    """The manifest without shards; writes tables, probe and head beside it."""
    asked = job.asked
    sample_rows = _sample_rows(rows)
    sample = _sample(job, sample_rows)
    codec: Codec = plugins.load(CODECS, asked.codec)
    budget = Budget(bytes_per_token=asked.bytes_per_token, error=asked.error, fixed=asked.fixed)
    fitted: Fitted = codec.fit(sample, budget=budget, temperature=asked.temperature)
    files = {manifests.TABLES: _write(folder / manifests.TABLES, dict(fitted.tables))}
    if job.probe:
        files[manifests.PROBE] = _write(folder / manifests.PROBE, _probe(sample, sample_rows))
    if job.probe and job.head and codec.KIND != "hidden":
        files[manifests.HEAD] = _write(folder / manifests.HEAD, _head_tensors(sample))
    return Manifest(
        format_version=manifests.FORMAT_VERSION,
        asked=asked,
        settings=dict(fitted.settings),
        why=fitted.why,
        files=files,
        start=start_files(folder),
        made_with={name: metadata.version(name) for name in _LIBRARIES},
    )


def start_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a student's start; {} where there is none (the held-out rows' cache)."""
    start = folder / manifests.START
    return {path.name: reading.sha256_file(path) for path in sorted(start.glob("*"))} if start.is_dir() else {}


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    return io.write_pieces(path, tensor_file.pieces(tensors)).sha256


def _sample_rows(rows: RowSet) -> RowSet:
    """The first rows by key, which are as good as drawn: a share of the data between two bounds."""
    n_R = rows.n_trained
    wanted = int(np.clip(SAMPLE_SHARE * int(n_R.sum()), SAMPLE_LEAST, SAMPLE_MOST))
    return rows.take(slice(0, int(np.searchsorted(np.cumsum(n_R), wanted)) + 1))


def _sample(job: Job, rows: RowSet) -> Sample:
    """The teacher's hidden states at the rows' positions, rows in the order of their keys."""
    parts: list[tuple[np.ndarray, np.ndarray, Tensor] | None] = [None] * len(rows)
    head = None
    with console.Progress("asking the teacher about a sample", total=int(rows.n_trained.sum())) as bar:
        for one in job.passes(rows):
            head, begin = one.targets.head, 0
            for place, n in zip(one.places_R.tolist(), one.positions.counts_R.tolist(), strict=True):
                here = slice(begin, begin + n)
                ids, next_ids = one.positions.current_ids_N[here], one.positions.next_ids_N[here]
                parts[place] = (ids, next_ids, one.targets.hidden_ND[here].cpu())
                begin += n
            bar.advance(begin)
    whole = [part for part in parts if part is not None]
    assert head is not None and len(whole) == len(rows), "every row is in exactly one pass"
    positions = Positions(
        current_ids_N=np.concatenate([part[0] for part in whole]),
        next_ids_N=np.concatenate([part[1] for part in whole]),
        counts_R=rows.n_trained,
        seeds_R=rows.seeds(draw=0, teacher=job.asked.teacher.weights),
    )
    return Sample(hidden_ND=torch.cat([part[2] for part in whole]), head=head, positions=positions)


def _probe(sample: Sample, rows: RowSet) -> dict[str, Tensor]:
    """The first rows of the sample in full: keys, counts, ids, hidden states as the teacher gave them."""
    ends_R = np.cumsum(sample.positions.counts_R)
    n_rows = max(1, int(np.searchsorted(ends_R, PROBE_POSITIONS, side="right")))
    n = int(ends_R[n_rows - 1])
    return {
        "keys": torch.from_numpy(rows.keys_R[:n_rows].copy()),
        "counts": torch.from_numpy(sample.positions.counts_R[:n_rows].astype(np.int32)),
        "current_ids": torch.from_numpy(sample.positions.current_ids_N[:n].astype(np.int32)),
        "next_ids": torch.from_numpy(sample.positions.next_ids_N[:n].astype(np.int32)),
        "hidden": sample.hidden_ND[:n],
    }


def _head_tensors(sample: Sample) -> dict[str, Tensor]:
    """The teacher's head, cut to the real vocabulary; `form` holds scale and soft-cap (0: none), float64."""
    head = sample.head
    tensors = {
        "weight": head.weight_VD[: head.n_vocabulary],
        "form": torch.tensor([head.scale, head.soft_cap or 0.0], dtype=torch.float64),
    }
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V[: head.n_vocabulary]
    return tensors
