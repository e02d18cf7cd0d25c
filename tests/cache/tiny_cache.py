"""Tiny caches in a second: a float64 Llama as teacher, a store of random rows, a job that labels them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import tiny
from tutelage.cache.job import Job
from tutelage.cache.manifest import Asked, TeacherRecord
from tutelage.cache.rows import RowSet
from tutelage.data.tokenize import TokenRow
from tutelage.teachers.live import LiveTeacher

V = 48
MAX_LENGTH = 16


class Rows:
    """A store's face: rows of random ids, some of them not trained."""

    def __init__(self, n: int, *, seed: int = 0, vocabulary: int = V) -> None:
        draw = np.random.default_rng(seed)
        self.path = Path(f"store-{seed}-{n}")
        self._rows = []
        for _ in range(n):
            length = int(draw.integers(2, MAX_LENGTH + 1))
            mask = draw.random(length) < 0.8
            mask[1] = True
            self._rows.append(TokenRow(draw.integers(2, vocabulary, length).astype("<u4"), mask))
        self.lengths = np.array([len(row.ids) for row in self._rows], dtype=np.int64)
        self.n_trained = np.array([int(row.loss_mask[1:].sum()) for row in self._rows], dtype=np.int64)
        keys = [hashlib.sha256(row.ids.tobytes() + row.loss_mask.tobytes()).digest() for row in self._rows]
        self.keys = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)

    def row(self, number: int) -> TokenRow:
        """One row."""
        return self._rows[number]


def teacher(seed: int = 0, *, vocabulary: int = V) -> LiveTeacher:
    """A tiny float64 Llama."""
    return LiveTeacher(tiny.llama(seed=seed, vocabulary=vocabulary), n_vocabulary=vocabulary)


def job(
    rows: Sequence[tuple[Rows, Any]] | Rows,
    *,
    codec: str = "topk",
    asked_teacher: LiveTeacher | None = None,
    **more: Any,
) -> Job:
    """Labels rows with a codec; `more` are fields of Asked, or `fixed` settings of the codec."""
    parts = [(rows, np.arange(len(rows.lengths)))] if isinstance(rows, Rows) else rows
    live = asked_teacher or teacher()
    fixed = more.pop("fixed", {"topk": {"k": 5}, "dense": {"dtype": "float64"}}.get(codec, {}))
    record = TeacherRecord(
        name="tiny", saved_weights=live.fingerprint, weights=live.fingerprint, dtype="float64", attention="sdpa",
        parameters=1, parameter_bytes=8,
    )  # fmt: skip
    fields = {
        "codec": codec, "temperature": 1.0, "draws": 1, "fixed": fixed, "max_length": MAX_LENGTH, "n_vocabulary": V,
        "tokenizer": "t" * 64, "template": "", "teacher": record,
    }  # fmt: skip
    asked = Asked(**{**fields, **more})
    return Job(
        rows=RowSet.of(parts), asked=asked, teacher=live, windows=2, fingerprint="tiny", pad_id=1, shard_positions=60
    )


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def row_targets(cache: Any, rows: Rows, numbers: Sequence[int], *, draws: Sequence[int] | None = None) -> Any:
    """What a cache gives for some rows, asked as a batch would."""
    current, following = [], []
    for n in numbers:
        row = rows.row(n)
        trained = np.flatnonzero(row.loss_mask[1:])
        current.append(row.ids[trained])
        following.append(row.ids[trained + 1])
    return cache.targets(
        [rows.keys[n].tobytes() for n in numbers],
        current_ids_N=np.concatenate(current).astype(np.int64),
        next_ids_N=np.concatenate(following).astype(np.int64),
        draws=draws or [0] * len(numbers),
    )


def trained_logp(live: LiveTeacher, rows: Rows, number: int) -> torch.Tensor:
    """The teacher's log-probabilities [n, V] at the trained positions of one row, asked alone."""
    row = rows.row(number)
    with torch.no_grad():
        logits = live.model(torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0]
    return torch.log_softmax(logits, -1)[np.flatnonzero(row.loss_mask[1:])]
