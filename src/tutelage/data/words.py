"""The words of a text as two texts are compared by them: whatever case, punctuation, white space and Unicode form.

`seen_in` says which sequences of words of some texts stand in other text.  What is kept is a hash of 64 bits for each
sequence of the texts; the other text streams by, so it may be of any size.

Shape legend: W words of a text, H hashes of sequences, sorted.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_AT_ONCE = 200_000  # words of the stream that are looked up together
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a sequence is lost from its hash

_APOSTROPHES = re.compile("['\u2019\u02bc`]")
# A run of letters and digits; of the scripts that put no space between words, each character.
_WORD = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|"
                   "(?:(?![\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])[^\\W_])+")  # fmt: skip


def words_of(text: str) -> list[str]:
    """`It's  "ＴＷＯ"-fold` is its, two, fold."""
    return _WORD.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A text by its words, and how many in a row make a sequence of it."""

    words: Sequence[str]
    n: int


def seen_in(texts: Sequence[Words], stream: Iterable[Sequence[str]]) -> list[npt.NDArray[np.bool_]]:
    """For each text, which of its W - n + 1 sequences stand in a text of the stream; of a shorter one nothing."""
    hashes = [(text.n, _sequences(_ids(text.words), text.n)) for text in texts]
    known = {n: np.unique(np.concatenate([h for m, h in hashes if m == n])) for n in {n for n, _ in hashes}}
    found = {n: np.zeros(len(known_H), dtype=np.bool_) for n, known_H in known.items()}
    for ids_W, ends_W in _together(stream):
        for n, known_H in known.items():
            _mark(found[n], known_H, _within_texts(ids_W, ends_W, n=n))
    return [found[n][np.searchsorted(known[n], of_text)] for n, of_text in hashes]


def sequence_hashes(words: Sequence[str], n: int) -> npt.NDArray[np.uint64]:
    """A hash of each n words in a row of a text, shape [W - n + 1]; the same within one process."""
    return _sequences(_ids(words), n)


def _mark(found_H: npt.NDArray[np.bool_], known_H: npt.NDArray[np.uint64], hashes: npt.NDArray[np.uint64]) -> None:
    if len(known_H):
        place = np.minimum(np.searchsorted(known_H, hashes), len(known_H) - 1)
        found_H[place[known_H[place] == hashes]] = True


def _together(
    stream: Iterable[Sequence[str]],
) -> Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
    """Texts of the stream joined to long ones: the words' numbers, and for each where its text ends."""
    parts: list[npt.NDArray[np.uint64]] = []
    n_words = 0
    for words in stream:
        parts.append(_ids(words))
        n_words += len(words)
        if n_words >= _AT_ONCE:
            yield _joined(parts)
            parts, n_words = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[npt.NDArray[np.uint64]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    lengths = [len(part) for part in parts]
    return np.concatenate(parts), np.repeat(np.cumsum(lengths), lengths)


def _within_texts(ids_W: npt.NDArray[np.uint64], ends_W: npt.NDArray[np.int64], *, n: int) -> npt.NDArray[np.uint64]:
    """The hashes of the sequences that lie in one text."""
    hashes = _sequences(ids_W, n)
    begins = np.arange(len(hashes))
    within: npt.NDArray[np.uint64] = hashes[begins + n <= ends_W[: len(hashes)]]
    return within


def _ids(words: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter((hash(word) & 0xFFFFFFFFFFFFFFFF for word in words), dtype=np.uint64, count=len(words))


def _sequences(ids_W: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """A hash of each n words in a row, shape [W - n + 1]."""
    n_sequences = max(len(ids_W) - n + 1, 0)
    hashes = np.zeros(n_sequences, dtype=np.uint64)
    for i in range(n):
        hashes = (hashes ^ (hashes >> np.uint64(29))) * _FACTOR + ids_W[i : i + n_sequences]
    return hashes
