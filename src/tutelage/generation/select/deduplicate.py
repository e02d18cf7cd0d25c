"""Drops answers that are there already: equal ones to the same prompt, and with `near` similar ones to any.

Similar is by the MinHash estimate of the share of word sequences that two answers have in common (Jaccard; with 128
permutations its standard error is about 0.02 at 0.8).  A short answer, such as a number, is right for many prompts: it
is compared as without `near`.
"""

import hashlib
from typing import Any

from tutelage.data.words import words_of
from tutelage.errors import ConfigError
from tutelage.generation.key_table import KeyTable
from tutelage.generation.select import Candidate, Judge, Said, Verdict, folded
from tutelage.recipe.generation import Deduplicate

N_SEQUENCE = 3  # words of one sequence
LEAST_WORDS = 20  # of answers that are compared across prompts
_PERMUTATIONS, _SEED = 128, 1
_MOST_MISSED = 1e-3  # chance that two answers of exactly the wanted similarity are not compared


def build(settings: Deduplicate) -> Judge:
    """The first of equal or similar ones stays."""
    seen = KeyTable()
    near = _Near(settings.near) if settings.near is not None else None

    def judge(candidate: Candidate) -> Said:
        digest = hashlib.sha256(
            repr([folded(text) for text in (*candidate.asked, candidate.text)]).encode()
        ).hexdigest()
        if digest in seen:
            return "equals an earlier answer"
        if near is not None and (found := near.resembled(candidate)):
            return Verdict(why="resembles an earlier answer", about=found)
        seen.add(digest)
        return ""

    return judge


class _Near:
    """The answers that were kept, by their MinHash."""

    def __init__(self, near: float) -> None:
        self._near, self._rensa = near, _imported()
        self._kept: list[tuple[str, Any]] = []  # Any: rensa has no types
        self._index = self._rensa.RMinHashLSH(threshold=near, num_perm=_PERMUTATIONS, num_bands=_bands(near))

    def resembled(self, candidate: Candidate) -> str:
        """Which kept answer it resembles most and how much, "" if none: then it is kept too."""
        words = words_of(candidate.text)
        if len(words) < LEAST_WORDS:
            return ""
        sketch = self._rensa.RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update([" ".join(words[i : i + N_SEQUENCE]) for i in range(len(words) - N_SEQUENCE + 1)])
        found = [(-sketch.jaccard(self._kept[i][1]), i) for i in self._index.query(sketch)]
        likeness, number = min(found, default=(0.0, 0))
        if -likeness >= self._near:
            return f"{self._kept[number][0]} ({-likeness:.2f})"
        self._index.insert(len(self._kept), sketch)
        self._kept.append((candidate.name, sketch))
        return ""


def _bands(near: float) -> int:
    """As few bands as find what is `near` with a chance of one in a thousand to miss it."""
    for n_rows in (16, 8, 4, 2):
        n_bands = _PERMUTATIONS // n_rows
        if (1 - near**n_rows) ** n_bands <= _MOST_MISSED:
            return n_bands
    return _PERMUTATIONS


def _imported() -> Any:  # a module without types
    try:
        import rensa
    except ImportError:
        found = "generate.select: deduplicate.near needs rensa"
        raise ConfigError("MISSING_EXTRA", f'{found}; run: pip install "tutelage[text]"') from None
    return rensa
