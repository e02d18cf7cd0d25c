"""Which part of a sample of real traffic the training data do not cover.

An item's figure is the mean share of its words, pairs and triples of words that stand in the training data.  It is
compared with pieces of as many words of the held-out rows, which come from where the training data come from: an item
is not covered when at most 5 % of those pieces have as low a figure,

    p = (1 + pieces with a figure as low) / (1 + pieces) <= 0.05,

the conformal p-value (Vovk et al. 2005): of traffic that is like the training data at most 5 % of the items are called
not covered, whatever the text.  It says nothing about meaning: other words for the same thing count as not covered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data import files
from tutelage.data.example import Reject
from tutelage.data.words import Words, seen_in, words_of
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.shares import Share, share

LENGTHS = (1, 2, 3)  # words of a sequence
LEAST_WORDS = 3  # of an item that is judged
LEAST_PIECES = 19  # so that 1 / (1 + pieces) can be 5 %
_COLUMNS = ("prompt", "question", "instruction", "input", "text")
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt of the traffic: where it stands and what it says."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An item with the share of its sequences that stand in the training data, and how rare that is at its length."""

    item: Item
    seen: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was found; `uncovered` worst first."""

    n_items: int
    share: Share  # of the judged items that are not covered
    uncovered: tuple[Judged, ...]

    @property
    def is_foreign(self) -> bool:
        """Whether more of it is not covered than of text like the training data would be."""
        return self.share.low > stats.ALPHA


def read(path: Path) -> list[Item]:
    """The prompts in a file: JSON lines (messages, or prompt, question, instruction, input, text), else a line each.

    Raises IntegrityError[DATA_READ] where there is none.
    """
    (path,) = files.find([str(path)])
    found = list(_of_jsonl(path) if path.suffix in (".jsonl", ".json") else _of_lines(path))
    if not found:
        raise IntegrityError(
            "DATA_READ", f"{path} holds no prompt; expected a line each, or JSON lines with {', '.join(_COLUMNS)}"
        )
    return found


def _of_lines(path: Path) -> Iterable[Item]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line.strip():
            yield Item(name=f"{path}:{number}", text=line.strip())


def _of_jsonl(path: Path) -> Iterable[Item]:
    for row in files.read_rows(path, source=str(path), ids_once=False):
        if not isinstance(row, Reject) and (text := _asked(row.content)):
            yield Item(name=row.name, text=text)


def _asked(row: object) -> str:
    """What a user wrote; "" where nothing is found."""
    if not isinstance(row, dict):
        return row if isinstance(row, str) else ""
    if isinstance(row.get("messages"), list):
        turns = [turn for turn in row["messages"] if isinstance(turn, dict) and turn.get("role") == "user"]
        return "\n".join(str(turn.get("content", "")) for turn in turns)
    return next((row[name] for name in _COLUMNS if isinstance(row.get(name), str)), "")


def judge(items: Sequence[Item], held_out: Sequence[Sequence[str]], training: Iterable[Sequence[str]]) -> Traffic:
    """Each item against the words of the held-out rows, by what of it stands in the words of the training rows.

    Raises IntegrityError[NO_SCORED_TOKENS] when fewer than 19 held-out rows can be compared with.
    """
    words = [words_of(item.text) for item in items]
    pieces = [row for row in held_out if len(row) >= LEAST_WORDS]
    if len(pieces) < LEAST_PIECES:
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            f"{len(pieces)} held-out rows of {LEAST_WORDS} words or more, {LEAST_PIECES} are needed to compare the "
            "traffic with; hold out more: data.held_out=0.05",
        )
    every = [*words, *pieces]
    flat = iter(seen_in([Words(words=one, n=n) for one in every for n in LENGTHS], training))
    seen = [[np.concatenate([[0], next(flat).cumsum()]) for _ in LENGTHS] for _ in every]
    longest = _longest(pieces)
    of_pieces = cache(lambda m: np.sort(_figures(seen[len(words) :], pieces, n_words=m)))
    judged = []
    for item, own, sums in zip(items, words, seen, strict=False):
        if len(own) < LEAST_WORDS:
            continue
        m = min(len(own), longest)
        figure, others = _figure(sums, 0, n_words=m), of_pieces(m)
        p_value = (1 + int(np.searchsorted(others, figure + 1e-12, side="right"))) / (1 + len(others))
        judged.append(Judged(item=item, seen=figure, p_value=p_value))
    uncovered = sorted((one for one in judged if one.p_value <= stats.ALPHA), key=lambda one: (one.seen, one.item.name))
    return Traffic(n_items=len(items), share=share(len(uncovered), len(judged)), uncovered=tuple(uncovered))


def _longest(pieces: Sequence[Sequence[str]]) -> int:
    """So many words that half of the held-out rows, and enough of them, have as many; of longer items the beginning."""
    lengths = sorted(map(len, pieces), reverse=True)
    return lengths[max(LEAST_PIECES, len(pieces) // 2) - 1]


def _figures(sums: Sequence[Sequence[Array]], pieces: Sequence[Sequence[str]], *, n_words: int) -> Array:
    """The figure of one piece of so many words of each row that has as many; where it begins is drawn."""
    draw = np.random.default_rng(n_words)  # of the length alone: the same sample gives the same answer
    begins = [int(draw.integers(0, max(len(row) - n_words, 0) + 1)) for row in pieces]
    return np.array(
        [
            _figure(of_row, begin, n_words=n_words)
            for of_row, row, begin in zip(sums, pieces, begins, strict=True)
            if len(row) >= n_words
        ]
    )


def _figure(sums: Sequence[Array], begin: int, *, n_words: int) -> float:
    """The mean share of the sequences of each length that were seen, in the words from `begin` on."""
    shares = [
        float(of_n[begin + n_words - n + 1] - of_n[begin]) / (n_words - n + 1)
        for n, of_n in zip(LENGTHS, sums, strict=True)
    ]
    return sum(shares) / len(shares)
