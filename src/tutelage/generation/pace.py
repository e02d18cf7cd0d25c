"""How many requests are under way at once: found by asking, since no endpoint says what it can take.

Rounds of a few replies each are timed.  While the rate still rises the number doubles, then it grows step by step as
long as that helps; what tells us to go slower (429, overload, a timeout) halves it, and nothing is sent until the time
that the endpoint names has passed.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

FIRST = 4
MOST_WAIT_S = 120.0  # whatever the endpoint says
_ROUND = 16  # replies at least
_HELPS = 1.1  # a rate is better from here on
_PATIENCE = 8  # rounds without a try for more


def backoff_s(n: int, *, first_s: float) -> float:
    """Seconds before try n + 1: doubled each time, with jitter, so that many clients do not come back together."""
    return min(MOST_WAIT_S, first_s * 2.0 ** min(n, 20)) * random.uniform(0.5, 1.0)


def retry_after_s(value: str | None, *, milliseconds: str | None = None, now_s: float) -> float | None:
    """Seconds that `Retry-After` (or `retry-after-ms`) asks to wait, in [0, MOST_WAIT_S]; None when it says nothing."""
    for text, unit in ((milliseconds, 1000.0), (value, 1.0)):
        if text is None:
            continue
        try:
            wait_s = float(text) / unit
        except ValueError:
            try:
                wait_s = parsedate_to_datetime(text).timestamp() - now_s
            except (ValueError, TypeError, OverflowError):
                continue
        if not math.isnan(wait_s):
            return min(max(wait_s, 0.0), MOST_WAIT_S)
    return None


class Pace:
    """The number of requests that may be under way, and the time before which none is sent."""

    def __init__(self, *, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self.limit = float(min(FIRST, most))
        self.n_under_way = 0
        self._n_waiting, self._was_full = 0, False  # callers of `slot`; whether one had to wait in this round
        self._doubling = True
        self._best_limit, self._best_rate = self.limit, 0.0
        self._n_round, self._round_began, self._rounds_at_best = 0, clock(), 0
        self._cool_until, self._cut_at = 0.0, -math.inf
        self._changed = asyncio.Event()

    @property
    def is_free(self) -> bool:
        """Whether one more may be sent as far as the number goes."""
        return self.n_under_way < int(self.limit)

    async def slot(self) -> None:
        """Waits until one more may be under way, and takes its place; `leave` gives it back."""
        self._n_waiting += 1
        try:
            while not self.is_free:
                self._was_full = True
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._n_waiting -= 1
        self.n_under_way += 1

    def leave(self) -> None:
        """A request is done, however it ended."""
        self.n_under_way -= 1
        self._changed.set()

    @property
    def cool_s(self) -> float:
        """Seconds until the endpoint wants to be asked again; 0 or less when it does now."""
        return self._cool_until - self._clock()

    def slow_down(self, wait_s: float) -> None:
        """The endpoint is overloaded: half as many at once, and none for a while; once for all that were under way."""
        now = self._clock()
        self._cool_until = max(self._cool_until, now + wait_s)
        if now > self._cut_at:
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = self._cool_until
        self._doubling, self._best_limit, self._best_rate = False, self.limit, 0.0
        self._begin_round()

    def answered(self) -> None:
        """One more reply came; at the end of a round in which somebody waited for a place the number changes.

        Whether places are free at this moment says nothing: replies that come together leave together.
        """
        self._n_round += 1
        if self._n_round >= max(_ROUND, 2 * int(self.limit)):
            if self._was_full:
                self._end_round(self._n_round / max(1e-9, self._clock() - self._round_began))
            self._begin_round()

    def _end_round(self, rate: float) -> None:
        if rate > self._best_rate * _HELPS:
            self._best_limit, self._best_rate, self._rounds_at_best = self.limit, rate, 0
            self.limit = self.limit * 2 if self._doubling else self.limit + max(1.0, self.limit / 10)
        elif self.limit > self._best_limit:  # more did not help
            self.limit, self._doubling = self._best_limit, False
        else:
            self._rounds_at_best += 1
            self._best_rate = rate
            if self._rounds_at_best >= _PATIENCE:
                self._rounds_at_best = 0
                self.limit += max(1.0, self.limit / 10)
        self.limit = min(self.limit, float(self._most))
        self._changed.set()

    def _begin_round(self) -> None:
        self._n_round, self._round_began = 0, self._clock()
        self._was_full = self._n_waiting > 0
