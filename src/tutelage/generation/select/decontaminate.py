"""Drops answers that share text with evaluation sets, in the prompt or in the answer.

Texts are compared by their words (see data/words.py).  Two texts of at least `ngram` words overlap when they have that
many words in a row in common; a shorter one when the other holds all of it.  Texts of less than `LEAST` words ("Paris",
"B") say nothing about an answer: a prompt overlaps such a text only if it is the same.

What is kept is an index of the evaluation sets; nothing grows with the answers.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.data import files
from tutelage.data.example import Reject
from tutelage.data.patterns import find
from tutelage.data.words import words_of
from tutelage.errors import ConfigError, IntegrityError
from tutelage.generation.select import Candidate, Said, Step, Verdict, each
from tutelage.generation.templates import LacksColumnError
from tutelage.recipe.generation import Decontaminate

LEAST = 5
Words = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """One text of an evaluation set."""

    file: str
    line: int
    words: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Sets:
    """All texts, and for each length that is asked for where its sequences stand."""

    texts: list[_Text]
    n: int
    whole: dict[int, dict[int, int]] = field(default_factory=dict)  # length of a short text -> hash -> its text
    parts: dict[int, dict[int, int]] = field(default_factory=dict)  # length of a sequence -> hash -> the first text

    def __post_init__(self) -> None:
        for number, text in enumerate(self.texts):
            if len(text.words) < self.n:
                self.whole.setdefault(len(text.words), {}).setdefault(hash(text.words), number)

    def overlap(self, words: Words, *, is_prompt: bool) -> tuple[_Text, tuple[str, ...]] | None:
        """The text that these words share a sequence with, and the sequence."""
        least = min(LEAST, self.n)
        if len(words) < least:
            return self._held(words, len(words), self.whole.get(len(words), {})) if is_prompt else None
        n = min(self.n, len(words))
        found = self._held(words, n, self._parts_of(n))
        for length in sorted(self.whole):
            if found is None and least <= length < n:
                found = self._held(words, length, self.whole[length])
        return found

    def _held(self, words: Words, n: int, index: dict[int, int]) -> tuple[_Text, tuple[str, ...]] | None:
        for i in range(len(words) - n + 1) if index else ():
            sequence = tuple(words[i : i + n])
            if (number := index.get(hash(sequence))) is not None and _holds(self.texts[number].words, sequence):
                return self.texts[number], sequence
        return None

    def _parts_of(self, n: int) -> dict[int, int]:
        """Made when a length is first asked for; most answers are longer than `ngram` and need only that one."""
        if n not in self.parts:
            index = self.parts[n] = {}
            for number, text in enumerate(self.texts):
                for i in range(len(text.words) - n + 1):
                    index.setdefault(hash(text.words[i : i + n]), number)
        return self.parts[n]


def _holds(words: tuple[str, ...], sequence: tuple[str, ...]) -> bool:
    """Not only its hash."""
    n = len(sequence)
    return any(words[i : i + n] == sequence for i in range(len(words) - n + 1))


def build(settings: Decontaminate) -> Step:
    """ConfigError or IntegrityError for a set that cannot be read, or lacks a column."""
    names = _names_of(find(settings.against))
    texts = [text for path, name in names.items() for text in _texts_of(path, settings.columns, name=name)]
    sets = _Sets(texts=texts, n=settings.ngram)
    of_last: tuple[tuple[str, ...], Said] = ((), "")

    def judge(candidate: Candidate) -> Said:
        nonlocal of_last
        if candidate.asked != of_last[0]:  # the samples of a prompt follow each other
            of_last = (candidate.asked, _said(sets, candidate.asked, where="prompt"))
        return of_last[1] or _said(sets, (candidate.text,), where="answer")

    return Step(judge=each(judge), files={name: _sha256(path) for path, name in names.items()})


def _names_of(paths: Iterable[Path]) -> dict[Path, str]:
    """The names of files; where two have the same one, with their folders' as well."""
    paths = list(paths)
    n_of_name = Counter(path.name for path in paths)
    return {path: path.name if n_of_name[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths}


def _said(sets: _Sets, texts: Iterable[str], *, where: str) -> Said:
    for text in texts:
        if (found := sets.overlap(words_of(text), is_prompt=where == "prompt")) is not None:
            other, words = found
            return Verdict(why=f"overlaps {other.file}", about=f"line {other.line}, {where}: {' '.join(words)}")
    return ""


def _texts_of(path: Path, columns: Sequence[str] | None, *, name: str) -> Iterator[_Text]:
    n_texts, lacking = 0, None
    for row in files.read_rows(path, source=name):
        if isinstance(row, Reject):
            found = f"generate.select: decontaminate.against: {row.name}: {row.reason}"
            raise IntegrityError("DATA_READ", f"{found}; repair it: what is not read is not compared")
        content = row.content if isinstance(row.content, dict) else {"": row.content}
        for column in columns or content:
            if column not in content:
                lacking = lacking or f"{row.name} has {LacksColumnError(column, content)}"
                continue
            for text in _strings(content[column]):
                if words := tuple(words_of(text)):
                    n_texts += 1
                    yield _Text(file=name, line=int(row.name.rpartition(":")[2]), words=words)
    if not n_texts:
        why = lacking or f"{path} holds no text"
        raise ConfigError("CONFIG", f"generate.select: decontaminate: {why}; name its columns, such as [question]")


def _strings(value: object) -> Iterator[str]:
    """Every string in a value, however deep: choices and messages are lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
