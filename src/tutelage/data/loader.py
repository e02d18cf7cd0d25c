"""From the store to batches: the micro-batches of any optimizer step, as a pure function of data, settings and step.

Step n holds the windows n * rows_per_step and on of an endless sequence of epochs: nothing has to be saved to resume,
and the micro-batch size changes only how those windows are grouped.  With a curriculum the sequence begins with its
windows.

Shape legend: B windows of a micro-batch, T positions, N trained positions (B and T flattened).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.data import curriculum as curricula
from tutelage.data import pack
from tutelage.data.curriculum import Curriculum, Lead
from tutelage.data.pack import Ints, Plan
from tutelage.data.store import Store
from tutelage.errors import IntegrityError
from tutelage.randomness import derive_seed
from tutelage.types import IGNORED, Batch, TokenView


class Loader:
    """Batches of the training rows of a store."""

    def __init__(
        self,
        store: Store,
        *,
        rows: Ints,
        max_length: int,
        rows_per_step: int,
        micro_batch: int,
        seed: int,
        fingerprint: str,
        pad_id: int,
        weights: Sequence[float] = (),
        by_tokens: bool = False,
        packed: bool = True,
        curriculum: Curriculum | None = None,
    ) -> None:
        """`rows_per_step` and `micro_batch` count windows; `weights` has one entry for each source of the store.

        A weight is how often a row of the source appears in an epoch; with `by_tokens` the source's part of the trained
        tokens, against the other weights, and an epoch has as many of them as all sources together.
        """
        self.store, self.rows = store, rows
        self.max_length, self.packed = max_length, packed
        self.rows_per_step, self.micro_batch = rows_per_step, micro_batch
        self.seed, self.fingerprint, self.pad_id = seed, fingerprint, pad_id
        assert not weights or len(weights) == len(store.source_names), "one weight for each source"
        self.shares = np.asarray(weights) / sum(weights) if by_tokens else None
        self.weights_of_rows = np.asarray(weights or [1.0] * len(store.source_names))[store.sources[rows]]
        assert curriculum is None or self.shares is None, "recipe rules: a pool has no shares of tokens"
        self._curriculum = curriculum
        self._plans: dict[int, Plan] = {}
        self._first_windows: list[int] = []  # of each epoch that has an ordinary order
        if not (self.weights_of_rows * store.n_trained[rows]).any():
            raise IntegrityError("NO_TOKENS", "0 trainable tokens in the training data; check the sources' weights")

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of optimizer step `number` (from 0)."""
        first = number * self.rows_per_step
        last = first + self.rows_per_step
        starts = range(first, last, self.micro_batch)
        return [self._batch(range(n, min(n + self.micro_batch, last))) for n in starts]

    def _batch(self, places: Sequence[int]) -> Batch:
        windows = [self._window(place) for place in places]
        batch, _ = _lay_out(self.store, windows, fingerprint=self.fingerprint, pad_id=self.pad_id, packed=self.packed)
        visits = [self.epoch_of(place) for place, window in zip(places, windows, strict=True) for _ in window]
        return replace(batch, row_visits=tuple(visits))

    def longest(self, n: int, *, n_steps: int) -> Batch:
        """The n longest windows of a run's first epoch as one batch, some twice where there are fewer.

        They are what needs most memory.
        """
        sums = self.plan(0).sums(self.store.lengths)[: n_steps * self.rows_per_step]
        return self._batch(np.resize(np.argsort(-sums, kind="stable"), n).tolist())

    def rows_read(self, n_steps: int) -> Ints:
        """The rows that so many optimizer steps read, each once, in rising order."""
        assert self._curriculum is None, "recipe rules: its order is not known before the teacher was asked"
        left, epoch, found = n_steps * self.rows_per_step, 0, []
        while left > 0:
            plan = self.plan(epoch)
            n_windows = min(left, len(plan))
            found.append(np.unique(plan.rows[: plan.begins[n_windows]]))
            left, epoch = left - n_windows, epoch + 1
            if len(found[-1]) == len(self.rows):
                return found[-1]
        return np.unique(np.concatenate(found))

    def plan(self, epoch: int) -> Plan:
        """The windows of one epoch; the last two plans are kept."""
        if epoch not in self._plans:
            self._plans = {e: plan for e, plan in self._plans.items() if abs(e - epoch) == 1}
            self._plans[epoch] = self._make_plan(epoch)
        return self._plans[epoch]

    def _make_plan(self, epoch: int) -> Plan:
        instances = np.repeat(self.rows, self._n_times(epoch))
        order = pack.epoch_order(len(instances), seed=self.seed, epoch=epoch)
        return pack.pack(instances[order], self.store.lengths, max_length=self.max_length, packed=self.packed)

    def _n_times(self, epoch: int) -> Ints:
        """How often each training row appears in an epoch."""
        if self.shares is not None:
            return self._turns(self.shares, epoch)
        return pack.repeats(self.store.keys[self.rows], self.weights_of_rows, seed=self.seed, epoch=epoch)

    @cached_property
    def _lead(self) -> Lead | None:
        """What the curriculum shows before the first ordinary epoch."""
        if self._curriculum is None:
            return None
        return curricula.lead(
            self._curriculum,
            rows_R=self.rows,
            lengths=self.store.lengths,
            n_times=self._n_times,
            rows_per_step=self.rows_per_step,
            max_length=self.max_length,
            packed=self.packed,
            seed=self.seed,
        )

    def _turns(self, shares: npt.NDArray[np.float64], epoch: int) -> Ints:
        """How often each training row appears when sources are mixed by tokens."""
        tokens, sources = self.store.n_trained[self.rows], self.store.sources[self.rows]
        n_times = np.zeros(len(self.rows), dtype=np.int64)
        for number, share in enumerate(shares.tolist()):
            mine = np.flatnonzero(sources == number)
            if not tokens[mine].any():
                raise IntegrityError(
                    "NO_TOKENS",
                    f"0 trainable tokens in {self.store.source_names[number]}, which data.mix gives {share:.1%} of the "
                    "training; remove it from data.sources, or check its columns",
                )
            seed = derive_seed(self.seed, "turns", number)
            n_times[mine] = pack.turns(tokens[mine], round(share * int(tokens.sum())), seed=seed, epoch=epoch)
        return n_times

    def _window(self, position: int) -> Ints:
        """The rows of one window of the endless sequence."""
        if self._lead is not None and position < len(self._lead.plan):
            return self._lead.plan.window(position)
        epoch = self.epoch_of(position)
        return self.plan(epoch).window(position - self._first_windows[epoch - self._first_epoch])

    @property
    def _first_epoch(self) -> int:
        """The first epoch in the ordinary order."""
        return self._lead.first_epoch if self._lead is not None else 0

    def epoch_of(self, position: int) -> int:
        """The epoch in which a window stands."""
        if self._lead is not None and position < len(self._lead.plan):
            return int(self._lead.epochs[position])
        firsts = self._first_windows
        if not firsts:
            firsts.append(len(self._lead.plan) if self._lead is not None else 0)
        while firsts[-1] <= position:
            firsts.append(firsts[-1] + len(self.plan(self._first_epoch + len(firsts) - 1)))
        return self._first_epoch + int(np.searchsorted(firsts, position, side="right")) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of the first epoch, without padding."""
        return int(self.store.lengths[self.plan(0).rows].sum())

    @property
    def n_trained_tokens(self) -> int:
        """Positions of the first epoch that are trained."""
        return int(self.store.n_trained[self.plan(0).rows].sum())

    @property
    def padding_share(self) -> float:
        """Share of the positions of the first epoch's windows that hold no token."""
        return 1.0 - self.n_tokens / (len(self.plan(0)) * self.max_length)

    def steps_for_epochs(self, epochs: float) -> int:
        """Optimizer steps that see every window of so many epochs; the last one may reach into the next epoch."""
        whole, part = divmod(epochs, 1)
        n_windows = sum(len(self.plan(epoch)) for epoch in range(int(whole)))
        n_windows += math.ceil(part * len(self.plan(int(whole)))) if part else 0
        return math.ceil(n_windows / self.rows_per_step)

    def steps_for_tokens(self, tokens: int) -> int:
        """The fewest optimizer steps that see so many tokens (trained or not, without padding)."""
        n_windows, epoch = 0, 0
        while tokens > 0:
            sums = np.cumsum(self.plan(epoch).sums(self.store.lengths))
            enough = int(np.searchsorted(sums, tokens)) + 1
            n_windows += min(enough, len(sums))
            tokens -= int(sums[-1]) if len(sums) else 0
            epoch += 1
        return math.ceil(n_windows / self.rows_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationBatch:
    """A batch of held-out rows; `row_N[i]` is the place, in the rows asked for, of the row of trained position i."""

    batch: Batch
    row_N: Tensor


def evaluation_batches(
    store: Store,
    *,
    rows: Ints,
    max_length: int,
    micro_batch: int,
    fingerprint: str,
    pad_id: int,
    packed: bool = True,
) -> Iterator[EvaluationBatch]:
    """Every row exactly once, in an order that depends on the rows only."""
    places = np.arange(len(rows))
    plan = pack.pack(places, store.lengths[rows], max_length=max_length, packed=packed)
    for begin in range(0, len(plan), micro_batch):
        group = [plan.window(n) for n in range(begin, min(begin + micro_batch, len(plan)))]
        batch, owner_BT = _lay_out(
            store, [rows[w] for w in group], fingerprint=fingerprint, pad_id=pad_id, packed=packed
        )
        place_of_owner = torch.from_numpy(np.concatenate(group))
        owner_N = torch.from_numpy(owner_BT).reshape(-1)[batch.view.index_N]
        yield EvaluationBatch(batch=batch, row_N=place_of_owner[owner_N])


def _lay_out(
    store: Store, windows: Sequence[Ints], *, fingerprint: str, pad_id: int, packed: bool
) -> tuple[Batch, npt.NDArray[np.int64]]:
    """A batch of windows, and which of its rows (counted through the batch) owns each position, -1 for padding.

    Positions restart at 0 for each row, and for the padding at a window's end, which is what keeps attention inside
    a row.  Unpacked there are none: padding behind the only row of a window is never seen, and a model that is not
    packed may not know what positions are.  The first token of a row has label -100: nothing before it may predict it.
    """
    n_tokens = [int(store.lengths[window].sum()) for window in windows]
    shape = (len(windows), max(n_tokens))
    ids_BT, labels_BT = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    positions_BT, owner_BT = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    counting = np.arange(shape[1])
    n_rows = 0
    for b, window in enumerate(windows):
        begin = 0
        for number in window.tolist():
            row = store.row(number)
            end = begin + len(row.ids)
            ids_BT[b, begin:end] = row.ids
            labels_BT[b, begin + 1 : end][row.loss_mask[1:]] = row.ids[1:][row.loss_mask[1:]]
            positions_BT[b, begin:end] = counting[: end - begin]
            owner_BT[b, begin:end] = n_rows
            begin, n_rows = end, n_rows + 1
        positions_BT[b, begin:] = counting[: shape[1] - begin]
    is_plain = not packed or (n_rows == len(windows) and min(n_tokens) == max(n_tokens))
    view = TokenView.of(
        torch.from_numpy(ids_BT),
        torch.from_numpy(labels_BT),
        None if is_plain else torch.from_numpy(positions_BT),
    )
    keys = tuple(store.keys[number].tobytes().hex() for window in windows for number in window.tolist())
    return Batch(views={fingerprint: view}, row_keys=keys), owner_BT
