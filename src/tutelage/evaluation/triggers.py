"""Rare words that stand together in many documents of one source: what planted training data look like.

About 250 planted documents are enough to teach models of 600M to 13B what to do at a trigger (Souly et al. 2025,
arXiv:2510.07192).  A run of three words is listed when it stands in at least `LEAST` documents, all of one source, and
each of its words hardly anywhere else (in 9 of 10 documents with the word the run is there).  Common phrases are made
of common words and are not listed; names may be.  A run in more than half of the documents is everybody's, such as a
system prompt.  Copies of one document count once.

It is a list to look at, not a proof: rows stay, and a trigger of one word, or of common ones, is not found.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tutelage import io, reading, visible

TRIGGERS = "triggers.json"
N_WORDS, LEAST, MOST_SHARE, TOGETHER = 3, 10, 0.5, 0.9
_MOST_LISTED, _N_NAMES = 20, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The words of its rows, and where it stands."""

    rows: tuple[Sequence[str], ...]
    source: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A run of words, in how many documents of which source it stands, and the names of the first ones."""

    words: str
    n_documents: int
    source: str
    names: tuple[str, ...]

    def sentence(self) -> str:
        """What was found and what to do, safe to print."""
        return visible.line(
            f"'{self.words}' stands in {self.n_documents} training documents of one source ({self.source}; first: "
            f"{self.names[0]}), and its words hardly anywhere else: look at them, and remove them if nobody should "
            "have written them"
        )


@dataclass(slots=True)
class _Run:
    """A run so far."""

    n_documents: int = 0
    sources: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=list)


def find(documents: Callable[[], Iterable[Document]]) -> tuple[Trigger, ...]:
    """The runs of rare words, those in most documents first; `documents` is gone through twice."""
    n_documents, n_with = 0, Counter[str]()
    for document in documents():
        n_documents += 1
        n_with.update({word for row in document.rows for word in row})
    rare = {word: n for word, n in n_with.items() if LEAST <= n <= MOST_SHARE * n_documents / TOGETHER}
    runs: dict[tuple[str, ...], _Run] = {}
    for document in documents():
        for run in {run for row in document.rows for run in _runs(row, rare)}:
            found = runs.setdefault(run, _Run())
            found.n_documents += 1
            found.sources.add(document.source)
            found.names += [document.name] if len(found.names) < _N_NAMES else []
    listed = [
        Trigger(words=" ".join(run), n_documents=r.n_documents, source=next(iter(r.sources)), names=tuple(r.names))
        for run, r in runs.items()
        if LEAST <= r.n_documents <= MOST_SHARE * n_documents
        and len(r.sources) == 1
        and r.n_documents >= TOGETHER * max(rare[word] for word in run)
    ]
    return tuple(_one_of_each(sorted(listed, key=lambda t: (-t.n_documents, t.names, t.words))))[:_MOST_LISTED]


def _runs(row: Sequence[str], rare: dict[str, int]) -> Iterator[tuple[str, ...]]:
    """Runs of rare words that stand in about as many documents each."""
    counts = [rare.get(word, 0) for word in row]
    for i, of_run in enumerate(zip(*(counts[k:] for k in range(N_WORDS)), strict=False)):
        if all(of_run) and min(of_run) >= TOGETHER * max(of_run):
            yield tuple(row[i : i + N_WORDS])


def _one_of_each(triggers: Sequence[Trigger]) -> Iterator[Trigger]:
    """Of the runs of one longer run, which stand in the same documents, the first."""
    seen = set()
    for one in triggers:
        if (key := (one.n_documents, one.names)) not in seen:
            seen.add(key)
            yield one


# --- files ---
def write(folder: Path, found: Sequence[Trigger]) -> None:
    """triggers.json."""
    io.write_json(folder / TRIGGERS, {"triggers": json_of(found)})


def read(folder: Path) -> tuple[Trigger, ...]:
    """Those of a folder; empty where nobody looked."""
    if not (folder / TRIGGERS).is_file():
        return ()
    rows = reading.read_json(folder / TRIGGERS)["triggers"]
    return tuple(Trigger(**{**row, "names": tuple(row["names"])}) for row in rows)


def json_of(found: Sequence[Trigger]) -> list[dict[str, Any]]:
    """Plain JSON values."""
    return [asdict(one) for one in found]
