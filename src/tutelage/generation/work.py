"""Asks what has no answer yet: reserve durably, send, journal the raw reply durably, read it, settle.

The order of the records in the journal is the order in which they are put, and the ledger takes each in at that moment:
what the ledger admits is therefore under the caps at every prefix of the journal.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from tutelage import console
from tutelage.errors import LimitError, RemoteError, TutelageError
from tutelage.generation import reply as replies
from tutelage.generation.budget import Budget, exhausted
from tutelage.generation.client import Client, Reply, Retry, Stop
from tutelage.generation.journal import Fields, Journal, Record
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import PICO, Ledger
from tutelage.generation.logprobs import lacking
from tutelage.generation.pace import Pace, backoff_s
from tutelage.generation.request import Request

_MOST_RECORDS = 256  # of one group
_GATHER_S = 0.002  # that a group waits for more: a flush of the disk and a change of thread for each record cost more
FIRST_WAIT_S = 1.0  # before the second try; doubled each time
_LIMITED_TRIES = 30  # 429s that one request takes before the run stops
_POLL_S = 0.02  # of a retry that waits for money which others have reserved
_SHOWN_WAIT_S = 5.0  # shorter waits are not worth a line


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def body_fields(body: bytes) -> dict[str, str]:
    """A raw body as JSON can hold it: text, or base64 when it is not UTF-8."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body64": base64.b64encode(body).decode()}


def body_of(fields: Fields) -> bytes:
    """The raw body of an `answered` record."""
    return base64.b64decode(fields["body64"]) if "body64" in fields else str(fields["body"]).encode()


class Committer:
    """Group commit: while one group is on its way to the disk the next one gathers."""

    def __init__(self, journal: Journal, ledger: Ledger) -> None:
        self._journal, self._ledger = journal, ledger
        self._waiting: list[tuple[str, Fields, asyncio.Future[Record]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writer: asyncio.Task[None] | None = None
        self._failure: TutelageError | None = None

    def put(self, kind: str, fields: Fields) -> "asyncio.Future[Record]":
        """Queues a record, which the ledger takes in now; the future is done when it is durable."""
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieved)
        self._waiting.append((kind, fields, future))
        if kind != "answered":  # its place is known only once it is written
            self._ledger.apply(Record(kind=kind, fields=fields, offset=0, n_bytes=0))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return future

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            group, self._waiting = self._waiting[:_MOST_RECORDS], self._waiting[_MOST_RECORDS:]
            records = [(kind, fields) for kind, fields, _ in group]
            try:
                if self._failure is not None:
                    raise self._failure
                placed = await loop.run_in_executor(self._thread, self._journal.commit, records)
            except TutelageError as error:
                self._failure = error
                for _, _, future in group:
                    future.set_exception(error)
                continue
            for record, (kind, _, future) in zip(placed, group, strict=True):
                if kind == "answered":
                    self._ledger.apply(record)
                future.set_result(record)
        self._writer = None

    async def close(self) -> None:
        """Writes what is queued."""
        while self._writer is not None:
            await self._writer
        self._thread.shutdown()
        if self._failure is not None:
            raise self._failure


def _retrieved(future: "asyncio.Future[Record]") -> None:
    """A failure is told once, by `close`; here it only must not be called forgotten."""
    if not future.cancelled():
        future.exception()


@dataclass(slots=True, kw_only=True)
class Work:
    """One run over requests; `error` says afterwards why it ended early, if it did."""

    committer: Committer
    ledger: Ledger
    budget: Budget
    client: Client
    pace: Pace
    host: str
    total: int
    retries: int
    finish_reason_optional: bool = False
    top_logprobs: int | None = None  # an answer without them stops the run: the next ones would lack them too
    on_answer: Callable[[], None] = lambda: None
    error: TutelageError | None = None
    given_up: list[TutelageError] = field(default_factory=list)
    n_sent: int = 0
    _halt: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: KeyTable = field(default_factory=KeyTable)
    _n_replies: int = 0
    _warned: bool = False  # of the first fault
    _bug: Exception | None = None
    _why: Callable[[], TutelageError] | None = None

    def halt(self, why: Callable[[], TutelageError] | None = None) -> None:
        """Sends nothing more; what is under way is waited for, and then `why` says how much is safe."""
        self._why = self._why or why
        self._halt.set()

    async def run(self, requests: Iterable[Request]) -> None:
        """Asks every request that has no final reply yet."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            for request in requests:
                if request.key in self.ledger.final or not self._asked.add(request.key):
                    continue
                await self.pace.slot()
                await self._cool()
                while not self._halt.is_set() and not self.budget.admits(self.ledger, self._most(request)):
                    if not tasks:
                        self.halt(self._out_of_budget)
                        break
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if self._halt.is_set():
                    break
                number, durable = self._reserve(request)
                task = asyncio.create_task(self._ask(request, number, durable))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            while tasks:
                await asyncio.wait(tasks)
            await self.committer.close()
        if self._bug is not None:
            raise self._bug
        if self._why is not None:
            self.error = self._why()
        elif self.given_up:
            self.error = self._with_safe(self.given_up[0])

    def _most(self, request: Request) -> int:
        return self.budget.most(request.texts, max_tokens=request.sampling.max_tokens)

    def _reserve(self, request: Request) -> "tuple[int, asyncio.Future[Record]]":
        number, amount = self.ledger.next_id, self._most(request)
        return number, self.committer.put("reserved", {"id": number, "key": request.key, "amount": amount})

    def _out_of_budget(self) -> LimitError:
        return exhausted(self.budget, self.ledger, safe=self.safe())

    def safe(self) -> str:
        """How many answers cannot be lost any more."""
        return f"{len(self.ledger.final)} of {self.total} answers are safe"

    async def _cool(self) -> None:
        while (left := self.pace.cool_s) > 0 and not self._halt.is_set():
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    async def _ask(self, request: Request, number: int, durable: "asyncio.Future[Record]") -> None:
        try:
            await self._until_final(request, number, durable)
        except TutelageError as error:
            self.halt(partial(self._with_safe, error))
        except Exception as error:  # a bug of ours: what is under way is still waited for, then it is raised
            self._bug = self._bug or error
            self.halt()
        finally:
            self.pace.leave()

    async def _until_final(self, request: Request, number: int, durable: "asyncio.Future[Record]") -> None:
        n_faults, n_limited, began, n_replies = 0, 0, time.monotonic(), self._n_replies
        while True:
            amount = self._most(request)
            await durable  # the money is put aside on the disk before anything is sent
            if self._halt.is_set():
                return self._release(number, request, paid=0, spent=False, why="stopped")
            self.n_sent += 1
            outcome = await self.client.send(request)
            if isinstance(outcome, Stop):
                self._release(number, request, paid=0, spent=False, why=str(outcome.error.code))
                raise outcome.error
            if isinstance(outcome, Reply):
                last = n_faults >= self.retries
                why, body = await self._take(outcome, request, number=number, amount=amount, last=last), outcome.body
                told = ""
                if not why:
                    return
                n_faults += 1
            else:
                paid, why, body = amount if outcome.may_be_paid else 0, outcome.why, b""
                told = outcome.told
                self._say_first_fault(outcome)
                self._release(number, request, paid=paid, spent=outcome.may_be_paid, why=why)
                n_limited, n_faults = n_limited + outcome.limited, n_faults + (not outcome.limited)
            if n_faults > self.retries or n_limited > _LIMITED_TRIES:
                error = self._gone(request, why=why, told=told, body=body, n=n_faults + n_limited, began=began)
                if self._n_replies == n_replies:  # nobody else had more luck meanwhile
                    raise error
                return self.given_up.append(error)
            await self._wait(outcome if isinstance(outcome, Retry) else None, n=n_faults + n_limited)
            while not self._halt.is_set() and not self.budget.admits(self.ledger, amount):
                if not self.ledger.open:  # nothing under way that could turn out cheaper than reserved
                    self.halt(self._out_of_budget)
                await self._sleep(_POLL_S)
            if self._halt.is_set():
                return None
            number, durable = self._reserve(request)

    def _release(self, number: int, request: Request, *, paid: int, spent: bool, why: str) -> None:
        fields = {"id": number, "key": request.key, "paid": paid, "spent": spent, "why": why}
        self.committer.put("released", fields)

    async def _take(self, outcome: Reply, request: Request, *, number: int, amount: int, last: bool) -> str:
        """Journals the raw reply, then reads it; the outcome when the request is to be sent again, else empty."""
        answered = {"id": number, "key": request.key, "at": now(), "status": outcome.status}
        answered["price"] = self.budget.price.as_json() if self.budget.price is not None else None
        if request.teacher:
            answered["teacher"] = request.teacher
        await self.committer.put("answered", {**answered, **body_fields(outcome.body)})
        given, optional = request.sampling.given, self.finish_reason_optional
        reply = replies.parse(
            outcome.body, status=outcome.status, finish_reason_optional=optional, scored=given is not None
        )
        final = reply.is_final or (last and reply.outcome == "incomplete")
        paid = self.budget.cost(reply.usage, reserved=amount) if outcome.status == 200 else 0
        parsed = {"id": number, "key": request.key, "paid": paid, "outcome": reply.outcome, "final": final}
        self.committer.put("parsed", {**parsed, "spent": outcome.status == 200})
        if paid > amount:
            self.halt(partial(self._overcharged, request, paid=paid, amount=amount))
        if not final:
            return reply.outcome
        wanted = self.top_logprobs if reply.outcome in ("answer", "scored") else None
        if wanted and (what := lacking(outcome.body, k=wanted, given=given, text=request.prompt.text)):
            self.halt(partial(self._without_logprobs, what, given))
        self._n_replies += 1
        self.pace.answered()
        self.on_answer()
        return ""

    def _without_logprobs(self, what: str, given: str | None) -> RemoteError:
        return without_logprobs(self.host, what, k=self.top_logprobs or 0, given=given, safe=self.safe())

    def _overcharged(self, request: Request, *, paid: int, amount: int) -> LimitError:
        found = f"{self.host} charged ${paid / PICO:.6g} for a request that could cost ${amount / PICO:.6g} at most"
        cause = f"it does not keep to max_tokens={request.sampling.max_tokens}, or generate.price is not its price"
        return LimitError("OVER_RESERVED", f"{found}: {cause}; {self.safe()}, nothing more is sent")

    async def _wait(self, outcome: Retry | None, *, n: int) -> None:
        """Waits before the next try; what tells of overload slows all requests down."""
        wait_s = backoff_s(n - 1, first_s=FIRST_WAIT_S)
        if outcome is None or not outcome.overloaded:
            if outcome is not None and outcome.wait_s is not None:
                wait_s = outcome.wait_s
            return await self._sleep(wait_s)
        wait_s = max(wait_s, outcome.wait_s or 0.0) if outcome.wait_s != 0 else wait_s
        if wait_s >= _SHOWN_WAIT_S and self.pace.cool_s <= 0:
            why = "asks to wait" if outcome.wait_s else f"is overloaded ({outcome.why})"
            done = f"{len(self.ledger.final)} of {self.total} done"
            console.note("RATE_LIMIT", f"{self.host} {why}: waiting {wait_s:.0f} s, {done}")
        self.pace.slow_down(wait_s)
        return await self._cool()

    def _say_first_fault(self, outcome: Retry) -> None:
        """Once, while nothing has been answered: the rest of the tries would pass in silence."""
        if not (self._n_replies or self._warned or outcome.limited):
            self._warned = True
            console.warning("API_UNREACHABLE", f"{self.host}: {outcome.told}; trying again, up to {self.retries} times")

    def _gone(self, request: Request, *, why: str, told: str, body: bytes, n: int, began: float) -> RemoteError:
        after = f"after {n} tries in {time.monotonic() - began:.0f} s"
        if why in replies.RETRIED:
            start = body[:40].decode("utf-8", "replace")
            what = "is not JSON of this interface" if why == "bad_body" else f"is no answer ({why})"
            message = f"{request.prompt.name}: the reply of {self.host} {what} (starts {start!r}) {after}"
            return RemoteError("API_BODY", message)
        return RemoteError("API_UNREACHABLE", f"{self.host}: {told or why} {after}")

    def _with_safe(self, error: TutelageError) -> TutelageError:
        if not isinstance(error, RemoteError):
            return error
        return RemoteError(error.code, f"{error.message}; {self.safe()}, rerun to continue")


def without_logprobs(where: str, what: str, *, k: int, safe: str, given: str | None = None) -> RemoteError:
    """The error of an endpoint that gives `what` instead of the `k` most likely tokens."""
    advice = "lower generate.top_logprobs or leave it out: loss cross_entropy learns the text alone"
    if given is not None:
        other = "prompt_logprobs" if given == "echo" else "echo"
        advice = (
            f"not every server scores a given text (vLLM does): try generate.given={other}, lower top_logprobs, ask "
            "another server, or leave generate.given out, and the teacher writes on"
        )
    return RemoteError("API_LOGPROBS", f"{where} gives {what} ({k} asked for); {safe}, nothing more is sent; {advice}")
