"""Which rows stand in which window, in which order: a pure function of lengths, keys, weights, seed and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage.randomness import derive_seed

N_OPEN = 4096  # windows that may still be filled; older ones are closed
MIN_ROW_TOKENS = 2  # less room than this is never filled

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows of whole rows: window w holds `rows[begins[w]:begins[w + 1]]`, in this order."""

    rows: Ints
    begins: Ints

    def __len__(self) -> int:
        return len(self.begins) - 1

    def window(self, number: int) -> Ints:
        """The rows of one window."""
        return self.rows[self.begins[number] : self.begins[number + 1]]

    def sums(self, values: Ints) -> Ints:
        """The sum of a value of each row (its length, say) over every window."""
        return np.diff(np.concatenate([[0], np.cumsum(values[self.rows])])[self.begins])


def epoch_order(n: int, *, seed: int, epoch: int) -> Ints:
    """A permutation of range(n) that depends on seed and epoch only.

    The raw numbers of Philox never change between versions of NumPy; those of `Generator.permutation` may.
    """
    draws = np.random.Philox(key=derive_seed(seed, "order", epoch)).random_raw(n)
    return np.argsort(draws, kind="stable").astype(np.int64)


def repeats(keys: npt.NDArray[np.uint8], weights: npt.NDArray[np.float64], *, seed: int, epoch: int) -> Ints:
    """How often each row appears in an epoch: `weight` on average, its fraction drawn by the row's key."""
    words = np.ascontiguousarray(keys[:, :8]).view("<u8").reshape(-1).astype(np.uint64)
    draws = _mixed(words ^ np.uint64(derive_seed(seed, "weight", epoch))).astype(np.float64) / 2.0**64
    whole = np.floor(weights)
    return (whole + (draws < weights - whole)).astype(np.int64)


def turns(tokens: Ints, n_wanted: int, *, seed: int, epoch: int) -> Ints:
    """How often each row of a source appears in an epoch that takes `n_wanted` of its trained tokens.

    The rows stand on a circle in an order of their own, and each epoch goes on where the one before it stopped: what it
    takes is `n_wanted` within one row, and no row comes again before every other one has come.
    """
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(tokens)), kind="stable")
    around = int(tokens.sum())
    begins = np.cumsum(tokens[order]) - tokens[order]
    first, last = epoch * n_wanted, (epoch + 1) * n_wanted
    n_times = np.empty_like(tokens)
    n_times[order] = (begins - first) // around - (begins - last) // around  # the m of first <= begin + m around < last
    return n_times


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64: every bit of the result depends on every bit of the input; wraps on purpose."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def pack(rows: Ints, lengths: Ints, *, max_length: int, packed: bool = True) -> Plan:
    """The rows in windows of at most `max_length` tokens; `lengths[r]` is the length of row r.

    Best fit: a row goes into the open window that it fills most, else it opens one.  Windows stand in the order in
    which they were opened, rows in a window in the order of `rows`.  Unpacked, every row has its own window.
    """
    assert not len(rows) or lengths[rows].max() <= max_length, "the store's windows are longer than max_length"
    if not packed:
        return Plan(rows, np.arange(len(rows) + 1))
    windows = np.array(_best_fit(lengths[rows].tolist(), max_length), dtype=np.int64)
    n_windows = int(windows.max()) + 1 if len(rows) else 0
    begins = np.concatenate([[0], np.cumsum(np.bincount(windows, minlength=n_windows))]).astype(np.int64)
    return Plan(rows[np.argsort(windows, kind="stable")], begins)


def _best_fit(lengths: Sequence[int], max_length: int) -> list[int]:
    """The window of each row.

    `open_windows[room]` is a stack of windows with that much room, and bit `room` of `rooms` says that it is not
    empty, so the tightest fit is found by one shift; about a microsecond a row.
    """
    open_windows: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = n_windows = 0
    windows = []
    for length in lengths:
        window = -1
        while window < 0 and (fitting := rooms >> length):
            room = length + (fitting & -fitting).bit_length() - 1
            candidate = open_windows[room].pop()
            if not open_windows[room]:
                rooms ^= 1 << room
            if candidate >= n_windows - N_OPEN:
                window, left = candidate, room - length
        if window < 0:
            window, left = n_windows, max_length - length
            n_windows += 1
        windows.append(window)
        if left >= MIN_ROW_TOKENS:
            open_windows[left].append(window)
            rooms |= 1 << left
    return windows
