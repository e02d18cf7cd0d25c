"""Which part of a sample of real traffic the training data do not cover.

An item's figure is the mean share of its words, pairs and triples of words that stand in the training data.  It is
compared with pieces of as many words of the held-out rows, which come from where the training data come from: an item
is not covered when at most 5 % of those pieces have as low a figure,

    p = (1 + pieces with a figure as low) / (1 + pieces) <= 0.05,

the conformal p-value (Vovk et al. 2005): of traffic that is like the training data at most 5 % of the items are called
not covered on average over samples of held-out rows, whatever the text.  Of one sample of n rows the share is a draw
from Beta(5 % (n + 1), 95 % (n + 1)) (Vovk, arXiv:1209.2673), which spreads far where n is small; so the number of items
that are not covered is compared with a beta-binomial, for the fewest rows that an item was compared with.

A run of words that many held-out rows begin or end with (a chat template, a system prompt) is left out of them, and of
the items that have it: it stands in the training data whatever the user asks.  Items of the same words count once.
It says nothing about meaning: other words for the same thing count as not covered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage import visible
from tutelage.data import files
from tutelage.data.example import Reject
from tutelage.data.patterns import find
from tutelage.data.words import Words, seen_in, words_of
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.shares import Share, beta_binomial_tails, share

LENGTHS = (1, 2, 3)  # words of a sequence
LEAST_WORDS = 3  # of an item that is judged
LEAST_PIECES = 19  # so that 1 / (1 + pieces) can be 5 %
SHARED = 0.25  # of the held-out rows: what so many begin or end with is not theirs
_COLUMNS = ("prompt", "question", "instruction", "input", "text")
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt of the traffic: where it stands and what it says."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The prompts of a file; `skipped`: the lines that hold none, each with why."""

    items: tuple[Item, ...]
    skipped: tuple[Reject, ...] = ()


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
    share: Share  # of the judged items, each text once, that are not covered
    uncovered: tuple[Judged, ...]
    n_rows: int  # held-out rows that the items were compared with, at least
    p_value: float  # of so many that are not covered, in traffic like the training data
    by_chance: float  # the largest share that such traffic has in 95 of 100 cases

    @property
    def is_foreign(self) -> bool:
        """Whether more of it is not covered than of text like the training data would be."""
        return self.p_value <= stats.ALPHA


def read(path: Path) -> Sample:
    """The prompts in a file: JSON lines (messages, or prompt, question, instruction, input, text), else a line each.

    Raises IntegrityError[DATA_READ] where there is none, or where the file is not UTF-8.
    """
    (path,) = find([str(path)])
    found = list(_of_jsonl(path) if path.suffix in (".jsonl", ".json") else _of_lines(path))
    items = tuple(one for one in found if isinstance(one, Item))
    skipped = tuple(one for one in found if isinstance(one, Reject))
    if not items:
        first = f" ({visible.counted(len(skipped), 'line')} left out: {skipped[0].reason})" if skipped else ""
        raise IntegrityError(
            "DATA_READ",
            f"{path} holds no prompt{first}; expected a line each, or JSON lines with {', '.join(_COLUMNS)}",
        )
    return Sample(items=items, skipped=skipped)


def _of_lines(path: Path) -> Iterable[Item]:
    for number, line in enumerate(files.whole_text(path).split("\n"), start=1):
        if line.strip():
            yield Item(name=f"{path}:{number}", text=line.strip())


def _of_jsonl(path: Path) -> Iterable[Item | Reject]:
    for row in files.read_rows(path, source=str(path)):
        if isinstance(row, Reject):
            yield row
        elif text := _asked(row.content):
            yield Item(name=row.name, text=text)
        else:
            yield Reject(source=str(path), name=row.name, reason="no prompt in it")


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

    The held-out rows must be of different documents.  Raises IntegrityError[NO_SCORED_TOKENS] when fewer than 19 of
    them can be compared with.
    """
    own = _without_shared([*held_out, *(words_of(item.text) for item in items)], n_rows=len(held_out))
    pieces = [row for row in own[: len(held_out)] if len(row) >= LEAST_WORDS]
    once = {tuple(words): item for item, words in zip(items[::-1], own[len(held_out) :][::-1], strict=True)}
    words = [(item, said) for said, item in reversed(once.items()) if len(said) >= LEAST_WORDS]
    if len(pieces) < LEAST_PIECES:
        raise IntegrityError(
            "NO_SCORED_TOKENS",
            f"{visible.counted(len(pieces), 'held-out row')} of {LEAST_WORDS} words or more, {LEAST_PIECES} are needed "
            "to compare the traffic with; hold out more: data.held_out=0.05",
        )
    every = [*(said for _, said in words), *pieces]
    flat = iter(seen_in([Words(words=one, n=n) for one in every for n in LENGTHS], training))
    seen = [[np.concatenate([[0], next(flat).cumsum()]) for _ in LENGTHS] for _ in every]
    longest, n_rows = _longest(pieces), len(pieces)
    of_pieces = cache(lambda m: np.sort(_figures(seen[len(words) :], pieces, n_words=m)))
    judged = []
    for (item, said), sums in zip(words, seen, strict=False):
        m = min(len(said), longest)
        figure, others = _figure(sums, 0, n_words=m), of_pieces(m)
        p_value = (1 + int(np.searchsorted(others, figure + 1e-12, side="right"))) / (1 + len(others))
        judged.append(Judged(item=item, seen=figure, p_value=p_value))
        n_rows = min(n_rows, len(others))
    uncovered = sorted((one for one in judged if one.p_value <= stats.ALPHA), key=lambda one: (one.seen, one.item.name))
    n, least = len(judged), stats.ALPHA * (n_rows + 1)
    tails = beta_binomial_tails(n, a=least, b=n_rows + 1 - least)
    return Traffic(
        n_items=len(items),
        share=share(len(uncovered), n),
        uncovered=tuple(uncovered),
        n_rows=n_rows,
        p_value=tails[len(uncovered)],
        by_chance=sum(tail > stats.ALPHA for tail in tails[1:]) / max(n, 1),
    )


def _without_shared(texts: Sequence[Sequence[str]], *, n_rows: int) -> list[Sequence[str]]:
    """The texts without the words that a quarter of the first `n_rows` begin with, then without those they end with."""
    for _ in range(2):  # the second time from their ends
        texts = [text[n:][::-1] for text, n in zip(texts, _n_shared(texts, n_rows=n_rows), strict=True)]
    return list(texts)


def _n_shared(texts: Sequence[Sequence[str]], *, n_rows: int) -> list[int]:
    """How many words at its beginning a text has in common with so many of the first `n_rows`."""
    least, shared = max(LEAST_WORDS, SHARED * n_rows), [0] * len(texts)
    groups, depth = [list(range(len(texts)))], 0
    while groups:
        longer: list[list[int]] = []
        for group in groups:
            by_word: dict[str, list[int]] = {}
            for i in group:
                if len(texts[i]) > depth:
                    by_word.setdefault(texts[i][depth], []).append(i)
            longer += [alike for alike in by_word.values() if sum(i < n_rows for i in alike) >= least]
        depth += 1
        for i in (i for group in longer for i in group):
            shared[i] = depth
        groups = longer
    return shared


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
