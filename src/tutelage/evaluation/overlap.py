"""Measured rows that stand in the training data, and what the transfer is without them.

Rows are compared by their words: case, punctuation and white space make no difference.  A word of a row is copied when
it stands in `N_WORDS` words in a row (of a shorter row: in all of it) that the training data have too; a row overlaps
when at least `LEAST_SHARE` of its words are copied: a whole copy, or a chunk of one.  Both limits are those under which
Llama 2 calls a sample "not clean" (arXiv:2307.09288, A.6) with the 13 words of GPT-3 (arXiv:2005.14165, C).  Rows of
less than `LEAST_WORDS` words say too little and are not compared.

What the split of the held-out rows drops from the training data (equal documents, but for case and white space) is no
longer in it, and not found here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage import io, reading
from tutelage.data.words import Words, seen_in, sequence_hashes
from tutelage.errors import TutelageError
from tutelage.evaluation import records
from tutelage.evaluation.transfer import Transfer

OVERLAP = "overlap.json"
N_WORDS, LEAST_WORDS, LEAST_SHARE = 13, 5, 0.2
MOST_ROWS, MOST_SHARE = 2, 0.05  # of a set: a sequence in more rows than both is everybody's


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOverlap:
    """One row: its place in the set, the share of its words that are copied, its name, the first copied words."""

    row: int
    share: float
    name: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOverlap:
    """One set: all rows, those long enough to compare, and those that overlap."""

    n_rows: int
    n_compared: int
    rows: tuple[RowOverlap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """By set; `without` is the transfer of the other rows, None where none overlaps or no other is left."""

    sets: dict[str, SetOverlap]
    without: Transfer | None = None

    def json(self) -> dict[str, Any]:
        """Plain JSON values."""
        sets = {name: asdict(found) for name, found in self.sets.items()}
        return {
            "n_words": N_WORDS,
            "least_share": LEAST_SHARE,
            "sets": sets,
            "without": self.without.json()["sets"] if self.without is not None else None,
        }

    @property
    def found(self) -> dict[str, SetOverlap]:
        """The sets of which rows overlap."""
        return {name: one for name, one in self.sets.items() if one.rows}


def find(
    sets: Mapping[str, Sequence[tuple[str, Sequence[str]]]], training: Iterable[Sequence[str]]
) -> dict[str, SetOverlap]:
    """By set: the rows that stand in the training rows.  A set is (where it stands, its words) of each row."""
    texts = [Words(words=words, n=_length(words)) for rows in sets.values() for _, words in rows]
    seen = iter(seen_in(texts, training))
    return {
        name: _set_overlap(rows, _without_the_shared(rows, [next(seen) for _ in rows])) for name, rows in sets.items()
    }


def _without_the_shared(
    rows: Sequence[tuple[str, Sequence[str]]], seen: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.bool_]]:
    """Leaves out the sequences that many rows of the set have: a system prompt or a template is nobody's copy."""
    hashes = [sequence_hashes(words, _length(words)) for _, words in rows]
    each, counts = np.unique(np.concatenate([np.unique(h) for h in hashes] or [np.zeros(0, np.uint64)]),
                             return_counts=True)  # fmt: skip
    shared = each[counts > max(MOST_ROWS, MOST_SHARE * len(rows))]
    return [starts & ~np.isin(of_row, shared) for starts, of_row in zip(seen, hashes, strict=True)]


def _length(words: Sequence[str]) -> int:
    return max(LEAST_WORDS, min(N_WORDS, len(words)))


def _set_overlap(rows: Sequence[tuple[str, Sequence[str]]], seen: Sequence[NDArray[np.bool_]]) -> SetOverlap:
    found = []
    for place, ((name, words), starts) in enumerate(zip(rows, seen, strict=True)):
        copied = _copied(starts, n_words=len(words))
        if len(starts) and copied.mean() >= LEAST_SHARE:
            first = int(np.argmax(starts))
            shown = " ".join(words[first : first + N_WORDS])
            found.append(RowOverlap(row=place, share=float(copied.mean()), name=name, words=shown))
    n_compared = sum(len(starts) > 0 for starts in seen)
    return SetOverlap(n_rows=len(rows), n_compared=n_compared, rows=tuple(found))


def _copied(starts: NDArray[np.bool_], *, n_words: int) -> NDArray[np.bool_]:
    """Which words lie in a sequence that was seen; `starts` says it of the sequence that begins with each word."""
    n = n_words - len(starts) + 1
    covered = np.zeros(n_words + 1, dtype=np.int64)
    if len(starts):
        np.add.at(covered, np.flatnonzero(starts), 1)
        np.add.at(covered, np.flatnonzero(starts) + n, -1)
    copied: NDArray[np.bool_] = covered.cumsum()[:-1] > 0
    return copied


# --- files ---
def write(folder: Path, sets: dict[str, SetOverlap]) -> Overlap:
    """Writes overlap.json, from which rows of records.jsonl are left out."""
    result = Overlap(sets=sets, without=_without(folder, sets))
    io.write_json(folder / OVERLAP, result.json())
    return result


def read(folder: Path) -> Overlap | None:
    """The overlap of a folder, the transfer without it computed again from the records; None where nobody looked."""
    if not (folder / OVERLAP).is_file():
        return None
    stored = reading.read_json(folder / OVERLAP)
    sets = {
        name: SetOverlap(
            n_rows=one["n_rows"], n_compared=one["n_compared"], rows=tuple(RowOverlap(**row) for row in one["rows"])
        )
        for name, one in stored["sets"].items()
    }
    return Overlap(sets=sets, without=_without(folder, sets))


def _without(folder: Path, sets: Mapping[str, SetOverlap]) -> Transfer | None:
    """The transfer without the overlapping rows, from the records; None where none overlaps or none is left."""
    dropped = {(name, row.row) for name, one in sets.items() for row in one.rows}
    if not dropped:
        return None
    with (folder / records.RECORDS).open(encoding="utf-8") as file:
        head, *lines = file
    kept = [line for line in lines if _place(line) not in dropped]
    try:
        return records.recompute([head, *kept]) if kept else None
    except TutelageError as error:
        if error.code != "NO_SCORED_TOKENS":
            raise
        return None


def _place(line: str) -> tuple[str, int | None]:
    """(set, row) of a line; None for the row of a line that is about all rows of its set."""
    record = json.loads(line)
    return record["set"], record.get("row")
