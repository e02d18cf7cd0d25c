"""What an evaluation knows beside the models: the rows' sources, lengths and texts, the tokens' bytes and rarity.

Shape legend: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any  # a tokenizer

import numpy as np
from numpy.typing import NDArray

from tutelage.data.store import Store
from tutelage.errors import ConfigError
from tutelage.evaluation.cells import TokenFacts, rarity_classes
from tutelage.models import vocabulary
from tutelage.models.token_bytes import token_bytes

_COUNTED_TOKENS = 20_000_000  # of the training data at most, so that counting takes seconds
_GROUP = 1024  # rows
_BEFORE, _BEHIND = 48, 12  # tokens of an excerpt around the one that is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A few words around one token of a row, which stands in ⟦ ⟧; raw text: pass it through `visible`."""

    row: int
    position: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """The rows of an evaluation set, in its order; `source` points into `sources`."""

    sources: tuple[str, ...]
    source: tuple[int, ...]
    length: tuple[int, ...]  # tokens, trained or not
    excerpts: tuple[Excerpt, ...] = ()

    def text(self, row: int | None, position: int | None) -> str:
        """The excerpt at a place; "" where none was kept."""
        return next((e.text for e in self.excerpts if (e.row, e.position) == (row, position)), "")


def set_facts(store: Store, rows: NDArray[np.int64]) -> SetFacts:
    """Of the rows of a store, in this order."""
    return SetFacts(
        sources=tuple(store.source_names),
        source=tuple(store.sources[rows].tolist()),
        length=tuple(store.lengths[rows].tolist()),
    )


def with_excerpts(
    facts: SetFacts, places: Sequence[tuple[int, int]], *, store: Store, rows: NDArray[np.int64], tokenizer: Any
) -> SetFacts:
    """The same with the texts at these (row, position) places."""
    return replace(
        facts,
        excerpts=tuple(
            Excerpt(
                row=row, position=position, text=excerpt(tokenizer, store.row(int(rows[row])).ids.tolist(), position)
            )
            for row, position in dict.fromkeys(places)
        ),
    )


def excerpt(tokenizer: Any, ids: Sequence[int], position: int) -> str:
    """The text around one token, which stands in ⟦ ⟧."""
    before, behind = list(ids[max(0, position - _BEFORE) : position]), list(ids[position + 1 : position + 1 + _BEHIND])
    head = vocabulary.decoded(tokenizer, before)
    both = vocabulary.decoded(tokenizer, [*before, ids[position]])
    token = both[len(head) :] if both.startswith(head) else vocabulary.decoded(tokenizer, [ids[position]])
    tail = vocabulary.decoded(tokenizer, behind) if behind else ""
    cut = ("… " if position > _BEFORE else "", " …" if position + 1 + _BEHIND < len(ids) else "")
    return f"{cut[0]}{head}⟦{token}⟧{tail}{cut[1]}"


def token_facts(tokenizer: Any, store: Store, *, training_rows: NDArray[np.int64], n_vocabulary: int) -> TokenFacts:
    """Bytes and rarity of each token; rarity by the training rows' tokens, of large data their first 20 million."""
    n_seen_V = np.zeros(n_vocabulary, dtype=np.int64)
    ends = np.cumsum(store.lengths[training_rows])
    counted = training_rows[: int(np.searchsorted(ends, _COUNTED_TOKENS)) + 1]
    for begin in range(0, len(counted), _GROUP):  # a group at a time: each count of ids goes over the vocabulary
        ids = [store.row(int(number)).ids for number in counted[begin : begin + _GROUP]]
        n_seen_V += np.bincount(np.concatenate(ids), minlength=n_vocabulary)
    return TokenFacts(
        n_bytes_V=bytes_of_tokens(tokenizer, n_vocabulary=n_vocabulary), rarity_V=rarity_classes(n_seen_V)
    )


def bytes_of_tokens(tokenizer: Any, *, n_vocabulary: int) -> NDArray[np.int64] | None:
    """How many bytes each token stands for, [V]; None for a tokenizer that spells them in no way that is known."""
    try:
        spelled = token_bytes(tokenizer)
    except ConfigError:
        return None
    return np.array([len(spelled.get(i, b"")) for i in range(n_vocabulary)], dtype=np.int64)
