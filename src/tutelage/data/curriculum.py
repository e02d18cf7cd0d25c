"""Easy rows first: the epochs of the first part of a run are made of a pool that grows from the easiest rows to all.

Competence-based curriculum learning (Platanios et al., arXiv:1903.09848) with its square root, but without replacement.

Shape legend: R training rows.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tutelage.data import pack
from tutelage.data.pack import Ints, Plan
from tutelage.randomness import derive_seed

N_STAGES = 64  # in which the pool grows, where the curriculum has as many steps
_SPARE_WINDOWS = 256  # packed beyond those that a stage shows: its last windows are then as full as its first


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """In which order rows come into the pool, and how fast."""

    ranks_R: Ints  # of each training row: 0 for the easiest, every number once
    start: float  # share of the rows that are in the pool from the first step on
    n_steps: int  # optimizer steps until all of them are

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the order in which rows come into the pool."""
        return hashlib.sha256(self.ranks_R.astype("<i8").tobytes()).hexdigest()

    def pool(self, step: int) -> int:
        """How many rows are in the pool at an optimizer step: sqrt(t (1 - c0^2) / T + c0^2) of all."""
        if step >= self.n_steps:
            return len(self.ranks_R)
        share = math.sqrt(step * (1.0 - self.start**2) / self.n_steps + self.start**2)
        return max(1, math.ceil(share * len(self.ranks_R)))

    def shown(self, first: int, n_steps: int) -> int:
        """How many rows a stage draws from: its pool at the beginning; in the last one all, else the hardest of them
        would not come before the curriculum ends, and with it perhaps the run."""
        return self.pool(self.n_steps if first + n_steps >= self.n_steps else first)

    def stages(self) -> Iterator[tuple[int, int]]:
        """(first step, steps) of each stage; the pool grows at its beginning."""
        each = math.ceil(self.n_steps / N_STAGES)
        return ((first, min(each, self.n_steps - first)) for first in range(0, self.n_steps, each))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """The windows before the first ordinary epoch, which is number `first_epoch`, and the epoch of each window."""

    plan: Plan
    epochs: Ints
    first_epoch: int


def lead(
    curriculum: Curriculum,
    *,
    rows_R: Ints,
    lengths: Ints,
    n_times: Callable[[int], Ints],
    rows_per_step: int,
    max_length: int,
    packed: bool,
    seed: int,
) -> Lead:
    """The windows of the curriculum's steps, and what is left of its last epoch, which ends with every row.

    An epoch ends when each row of the pool has come as often as `n_times(epoch)`, shape [R], says: the first ones are
    short.  What has not come yet is drawn from in an order of its own at every stage.  `lengths` are the store's.
    """
    windows, epochs = list[Ints](), list[int]()
    epoch, left_R = 0, n_times(0).copy()
    for number, (first, n_steps) in enumerate(curriculum.stages()):
        in_pool_R, room = curriculum.ranks_R < curriculum.shown(first, n_steps), n_steps * rows_per_step
        while room:
            waiting = np.repeat(np.arange(len(rows_R)), np.where(in_pool_R, left_R, 0))
            if not len(waiting):
                epoch, left_R = epoch + 1, n_times(epoch + 1).copy()
                continue
            draws = np.random.Philox(key=derive_seed(seed, "curriculum", epoch, number)).random_raw(len(waiting))
            drawn = waiting[np.argsort(draws, kind="stable")]
            shown = _windows(drawn, lengths[rows_R], room=room, max_length=max_length, packed=packed)
            left_R -= np.bincount(np.concatenate(shown), minlength=len(rows_R))
            windows += shown
            epochs += [epoch] * len(shown)
            room -= len(shown)
    rest = np.repeat(np.arange(len(rows_R)), left_R)
    order = pack.epoch_order(len(rest), seed=seed, epoch=epoch)
    remaining = pack.pack(rest[order], lengths[rows_R], max_length=max_length, packed=packed)
    windows += [remaining.window(n) for n in range(len(remaining))]
    epochs += [epoch] * len(remaining)
    begins = np.concatenate([[0], np.cumsum([len(window) for window in windows])]).astype(np.int64)
    return Lead(
        plan=Plan(rows_R[np.concatenate(windows)], begins),
        epochs=np.array(epochs, dtype=np.int64),
        first_epoch=epoch + 1,
    )


def _windows(drawn: Ints, lengths_R: Ints, *, room: int, max_length: int, packed: bool) -> list[Ints]:
    """The first windows of some rows, at most `room`: fewer only where all of the rows are in them."""
    enough = (room + room // 8 + _SPARE_WINDOWS) * max_length if packed else room
    tokens = np.cumsum(lengths_R[drawn] if packed else np.ones_like(drawn))
    some = drawn[: int(np.searchsorted(tokens, enough)) + 1]
    plan = pack.pack(some, lengths_R, max_length=max_length, packed=packed)
    return [plan.window(n) for n in range(min(room, len(plan)))]
