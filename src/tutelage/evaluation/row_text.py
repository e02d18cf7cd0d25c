"""Rows of a store as the text that they stand for."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage.data.store import Store
from tutelage.data.words import words_of

_AT_ONCE = 256


def texts_of(tokenizer: Any, store: Store, rows: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[str]:
    """The text of each row, without control tokens."""
    for begin in range(0, len(rows), _AT_ONCE):
        ids = [store.row(int(n)).ids.tolist() for n in rows[begin : begin + _AT_ONCE]]
        yield from tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True)


def words_of_rows(tokenizer: Any, store: Store, rows: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[list[str]]:
    """The words of each row."""
    for text in texts_of(tokenizer, store, rows):
        yield words_of(text)


def prompts_of(tokenizer: Any, store: Store, rows: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[str]:
    """The text before the first trained token of each row; of a row that is trained from its beginning all of it."""
    decode = tokenizer.backend_tokenizer.decode
    for n in rows:
        row = store.row(int(n))
        trained = np.flatnonzero(row.loss_mask)
        begin = int(trained[0]) if len(trained) else 0
        yield decode((row.ids[:begin] if begin > 1 else row.ids).tolist(), skip_special_tokens=True)
