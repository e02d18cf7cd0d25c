"""Requests to one endpoint, to their end: the loop they run in, what a signal does, and what the progress line says."""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tutelage import console
from tutelage.errors import Stopped
from tutelage.generation.budget import Budget
from tutelage.generation.client import Client
from tutelage.generation.endpoint import Endpoint
from tutelage.generation.journal import Journal
from tutelage.generation.ledger import PICO, Ledger
from tutelage.generation.pace import Pace
from tutelage.generation.request import Request
from tutelage.generation.work import Committer, Work
from tutelage.recipe import Api


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who is asked, at which price, and who hears of it."""

    api: Api
    endpoint: Endpoint
    budget: Budget
    total: int  # answers in all, for messages
    on_answer: Callable[[], None]
    top_logprobs: int | None = None

    def send(self, requests: Iterable[Request], *, journal: Journal, ledger: Ledger) -> int:
        """Sends what has no reply yet and waits for the last one; the number of requests that were sent."""
        work = _to_its_end(lambda: self._run(requests, journal, ledger))
        if work.error is not None:
            raise work.error
        return work.n_sent

    async def _run(self, requests: Iterable[Request], journal: Journal, ledger: Ledger) -> Work:
        api = self.api
        async with Client(self.endpoint, timeout_s=api.timeout_s, limit_field=api.limit_field) as client:
            work = Work(
                committer=Committer(journal, ledger),
                ledger=ledger,
                budget=self.budget,
                client=client,
                pace=Pace(most=api.concurrency),
                host=self.endpoint.host,
                total=self.total,
                retries=api.retries,
                finish_reason_optional=api.finish_reason_optional,
                top_logprobs=self.top_logprobs,
                on_answer=self.on_answer,
            )
            _stop_on_signals(work)
            await work.run(requests)
        return work


def _to_its_end(begin: Callable[[], Coroutine[Any, Any, Work]]) -> Work:
    """Runs it here, or in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(begin())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(begin())).result()


def _stop_on_signals(work: Work) -> None:
    """The first signal sends nothing more and waits for what is paid for; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
        n_open = len(work.ledger.open)
        console.tell(f"stopping: {n_open} answers under way are waited for; once more to stop at once")
        work.halt(lambda: Stopped(f"{work.safe()}; rerun the same command to continue", signal_number=number))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)


def cap_of(budget: Budget, ledger: Ledger, *, most: int) -> str:
    """What may be spent, before the first request."""
    caps = [f"{ledger.n_spent:,} of {budget.max_requests:,} requests spent"] if budget.max_requests is not None else []
    if budget.cap is not None:
        caps.append(f"${ledger.settled / PICO:.4g} of ${budget.cap / PICO:.6g} spent")
    price = f"; these answers cost at most ${most / PICO:.4g}, if none has to be asked twice" if budget.price else ""
    return f"cap: {', '.join(caps)}{price}"


def money(ledger: Ledger, budget: Budget) -> str:
    """What is spent, reserved and left, for the progress line."""
    left = budget.left_usd(ledger)
    if left is None:
        return f"{ledger.n_spent} of {budget.max_requests} requests" if budget.max_requests else ""
    return f"${ledger.settled / PICO:.4g} spent, ${ledger.reserved / PICO:.4g} reserved, ${left:.4g} left"
