"""Asks by batch jobs, behind the same journal: reserve durably, hand in, wait, journal every reply before it is read.

A job has a mark, journalled with its reservations before anything goes up, and sent as metadata.  A process that died
between the two finds its job at the provider by the mark and fetches it, instead of paying for another one; a job
without an answer to its creation is looked for in the same way.  Replies carry the key of their request (`custom_id`),
so it does not matter in which order, in which file, or how often they come.
"""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import httpx2

from tutelage import console
from tutelage.errors import LimitError, RemoteError
from tutelage.generation import reply as replies
from tutelage.generation.batch import BatchClient, Job, MaybeCreated
from tutelage.generation.budget import Price, exhausted
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.ledger import PICO, Ledger, OpenJob
from tutelage.generation.pace import backoff_s
from tutelage.generation.request import Request
from tutelage.generation.stop_sign import StopSign
from tutelage.generation.work import body_fields, now
from tutelage.generation.writers import Writer

MOST_REQUESTS, MOST_BYTES = 50_000, 100 << 20  # of one job
FIRST_POLL_S, MOST_POLL_S = 2.0, 60.0
_DOWNLOADS = 5  # tries of one file
_LOOKS = 3  # for a job by its mark
_GROUP = 256  # replies of one group of the journal
_UNPAID = ("expired", "cancelled", "failed")  # what has no reply in such a job was not worked on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of an output or error file."""

    key: str
    status: int
    body: bytes


class BatchWork:
    """One run over requests through batch jobs, one after the other."""

    def __init__(self, writer: Writer, *, journal: Journal, ledger: Ledger, bar: console.Progress) -> None:
        assert writer.api is not None and writer.endpoint is not None
        self._writer, self._api, self._url = writer, writer.api, writer.endpoint.base_url
        self._journal, self._ledger, self._bar = journal, ledger, bar
        self._stop = StopSign(bar.total)
        self._client = BatchClient(writer.endpoint, timeout_s=writer.api.timeout_s, sleep=self._sleep)
        self._overcharged = ""

    def run(self, requests: Callable[[], Iterable[Request]], *, only_fetch: bool) -> int:
        """Fetches the jobs that are open, then hands in what has no reply; the number of requests handed in."""
        tries, n_sent = Counter[str](), 0
        with self._stop.armed(), self._client:
            for mark in self.open_jobs(self._writer, self._ledger):
                self._fetch_open(mark)
            while not only_fetch and (chosen := self._choose(requests(), tries)):
                tries.update(request.key for request in chosen)
                n_sent += len(chosen)
                self._hand_in(chosen)
        lost = [key for key, n in tries.items() if n > self._api.retries and key not in self._ledger.final]
        if lost:
            found = f"{len(lost)} requests got no answer in {self._api.retries + 1} batch jobs"
            raise RemoteError("API_BODY", f"{found}; {self._safe()}, rerun to continue")
        return n_sent

    @staticmethod
    def open_jobs(writer: Writer, ledger: Ledger) -> list[str]:
        """The marks of the jobs of this teacher whose replies are still to be fetched."""
        url = writer.endpoint.base_url if writer.endpoint is not None else ""
        return [mark for mark, job in ledger.jobs.items() if (job.url, job.teacher) == (url, writer.name)]

    # --- handing in ---
    def _choose(self, requests: Iterable[Request], tries: Mapping[str, int]) -> list[Request]:
        """What goes into the next job: of one interface, within the provider's limits and the caps."""
        chosen: dict[str, Request] = {}
        total = n_bytes = 0
        budget, ledger = self._writer.budget, self._ledger
        under_way = set(ledger.keys.values())  # in a job that is open under another name of the teacher
        for request in requests:
            if request.key in chosen or request.key in ledger.final or request.key in under_way:
                continue
            if tries.get(request.key, 0) > self._api.retries:
                continue
            first = next(iter(chosen.values()), request)
            amount, size = self._amount(request), len(request.as_body()) + 200
            if request.path != first.path:
                continue
            n_taken = ledger.n_spent + len(ledger.open) + len(chosen)
            full = budget.max_requests is not None and n_taken >= budget.max_requests
            if full or not budget.admits(ledger, total + amount):
                if not chosen:
                    raise exhausted(budget, ledger, safe=self._safe())
                break
            if len(chosen) >= MOST_REQUESTS or n_bytes + size > MOST_BYTES:
                break
            chosen[request.key], total, n_bytes = request, total + amount, n_bytes + size
        return list(chosen.values())

    def _amount(self, request: Request) -> int:
        return self._writer.budget.most(request.texts, max_tokens=request.sampling.max_tokens)

    def _hand_in(self, chosen: Sequence[Request]) -> None:
        mark, first_id = secrets.token_hex(16), self._ledger.next_id
        own = self._writer.budget.price
        price = own.as_json() if own is not None else None
        ids = list(range(first_id, first_id + len(chosen)))
        records: list[tuple[str, Fields]] = [
            ("job", {"job": mark, "url": self._url, "teacher": self._writer.name, "ids": ids, "price": price})
        ]
        for number, request in zip(ids, chosen, strict=True):
            records.append(("reserved", {"id": number, "key": request.key, "amount": self._amount(request)}))
        self._commit(records)  # the money and the mark are on the disk before anything goes up
        limit_field = self._api.limit_field or "max_tokens"
        file_id = self._client.upload([_line_of(request, limit_field=limit_field) for request in chosen])
        try:
            job = self._client.create(file_id, path=chosen[0].path, mark=mark)
        except MaybeCreated as lost:
            found = self._look_for(mark)
            if found is None:
                what = f"{self._url}: whether the batch job was created is not known ({lost})"
                raise RemoteError("API_UNREACHABLE", f"{what}; {self._safe()}, rerun: it is looked for first") from lost
            job = found
        self._commit([("submitted", {"job": mark, "batch": job.id})])
        console.tell(f"batch job {job.id}: {len(chosen):,} requests; it may take a day, and rerunning finds it again")
        self._fetch(mark, job)

    def _look_for(self, mark: str) -> Job | None:
        """The job with this mark; a provider may list it only after a moment."""
        for n in range(_LOOKS):
            if job := self._client.find(mark):
                return job
            self._sleep(backoff_s(n, first_s=FIRST_POLL_S))
        return None

    # --- fetching ---
    def _fetch_open(self, mark: str) -> None:
        """A job of an earlier process: found by its id or its mark, or never handed in."""
        batch = self._ledger.jobs[mark].batch
        try:
            job = self._client.look(batch) if batch else self._look_for(mark)
        except RemoteError as error:
            if error.code != "API_BATCH":
                raise
            console.warning("API_BATCH", f"batch job {batch} is gone at {self._url}: what it holds counts as spent")
            return self._close(mark, why="batch gone", is_paid=True)
        if job is None:
            return self._close(mark, why="never handed in", is_paid=False)
        if not batch:
            self._commit([("submitted", {"job": mark, "batch": job.id})])
        console.note("RESUMED", f"batch job {job.id} ({job.status}) is there: it is fetched, not handed in again")
        return self._fetch(mark, job)

    def _fetch(self, mark: str, job: Job) -> None:
        """Waits for the end of a job and takes in everything that it left."""
        wait_s, n_before = FIRST_POLL_S, self._bar.done
        while not job.has_ended:
            self._bar.update(max(self._bar.done, n_before + job.n_done), f"batch job {job.status}")
            self._sleep(wait_s)
            wait_s = min(MOST_POLL_S, wait_s * 1.5)
            job = self._client.look(job.id)
        for file_id in job.files:
            self._take_file(file_id, self._ledger.jobs[mark])
        self._close(mark, why=f"batch {job.status}", is_paid=job.status not in _UNPAID)
        self._bar.update(max(n_before, len(self._ledger.final)), f"batch job {job.status}")
        if self._overcharged:
            raise LimitError("OVER_RESERVED", f"{self._overcharged}; {self._safe()}, nothing more is sent")
        if job.status in ("failed", "cancelled"):
            said = f": {job.problem}" if job.problem else ""
            found = f"batch job {job.id} {'was cancelled' if job.status == 'cancelled' else 'failed'}{said}"
            raise RemoteError("API_BATCH", f"{found}; {self._safe()}, rerun to hand in the rest")

    def _take_file(self, file_id: str, job: OpenJob) -> None:
        for n in range(_DOWNLOADS):
            try:
                with self._client.lines(file_id) as lines:
                    for group in _grouped(lines):
                        self._take(group, job)
                return
            except httpx2.TransportError as error:
                if n + 1 == _DOWNLOADS:
                    what = f"{self._url}: the file of a batch job does not come down ({type(error).__name__})"
                    raise RemoteError("API_UNREACHABLE", f"{what}; {self._safe()}, rerun to continue") from error
            self._sleep(backoff_s(n, first_s=FIRST_POLL_S))

    def _take(self, lines: Sequence[_Line], job: OpenJob) -> None:
        """Journals replies, then reads them; a line that is there already, or of another job, is nothing."""
        numbers = {self._ledger.keys[number]: number for number in job.ids if number in self._ledger.keys}
        known = {line.key: line for line in lines if line.key in numbers}
        told = [line for line in known.values() if line.status == 200 or replies.row_defect(line.body) is not None]
        named: Fields = {"teacher": self._writer.name} if self._writer.name else {}
        named = {**named, "price": list(job.price) if job.price is not None else None}
        self._commit(
            [
                ("answered", {"id": numbers[line.key], "key": line.key, "at": now(), "status": line.status, **named,
                              **body_fields(line.body)})
                for line in told
            ]
        )  # fmt: skip
        records = [self._parsed(line, numbers[line.key], job=job) for line in told]
        refused = [line for line in known.values() if line not in told]
        for line in refused:
            why = f"batch {line.status}"
            records.append(
                ("released", {"id": numbers[line.key], "key": line.key, "paid": 0, "spent": False, "why": why})
            )
        self._commit(records)

    def _parsed(self, line: _Line, number: int, *, job: OpenJob) -> tuple[str, Fields]:
        optional, amount = self._api.finish_reason_optional, self._ledger.open[number]
        reply = replies.parse(line.body, status=line.status, finish_reason_optional=optional)
        price = Price(prompt=job.price[0], answer=job.price[1]) if job.price is not None else None
        own = replace(self._writer.budget, price=price)
        paid = own.cost(reply.usage, reserved=amount) if line.status == 200 else 0
        if paid > amount:
            found = f"${paid / PICO:.6g} for a request that could cost ${amount / PICO:.6g} at most"
            self._overcharged = f"{self._url} charged {found}: the price is not its price, or max_tokens is not kept"
        fields = {"id": number, "key": line.key, "paid": paid, "spent": line.status == 200}
        return "parsed", {**fields, "outcome": reply.outcome, "final": reply.is_final}

    def _close(self, mark: str, *, why: str, is_paid: bool) -> None:
        """Settles what has no reply, and ends the job; in one group of the journal."""
        records: list[tuple[str, Fields]] = []
        for number in sorted(self._ledger.jobs[mark].ids & self._ledger.open.keys()):
            paid = self._ledger.open[number] if is_paid else 0
            key = self._ledger.keys[number]
            records.append(("released", {"id": number, "key": key, "paid": paid, "spent": is_paid, "why": why}))
        self._commit([*records, ("closed", {"job": mark})])

    # --- small things ---
    def _commit(self, records: Sequence[tuple[str, Fields]]) -> None:
        for record in self._journal.commit(records) if records else ():
            self._ledger.apply(record)

    def _sleep(self, seconds: float) -> None:
        self._stop.sleep(seconds, len(self._ledger.final))

    def _safe(self) -> str:
        return f"{len(self._ledger.final)} of {self._bar.total} answers are safe"


def _line_of(request: Request, *, limit_field: str) -> bytes:
    head = {"custom_id": request.key, "method": "POST", "url": f"/v1{request.path}"}
    return json.dumps(head)[:-1].encode() + b',"body":' + request.as_body(limit_field=limit_field) + b"}"


def _grouped(lines: Iterator[bytes]) -> Iterator[list[_Line]]:
    group: list[_Line] = []
    for line in lines:
        if (read := _read(line)) is not None:
            group.append(read)
        if len(group) == _GROUP:
            yield group
            group = []
    yield group


def _read(line: bytes) -> _Line | None:
    """A line of a file; None for what is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("custom_id"), str):
        return None
    response, error = content.get("response"), content.get("error")
    if isinstance(response, dict):
        status = response.get("status_code")
        body = json.dumps(response.get("body"), ensure_ascii=False, separators=(",", ":"))
        status = status if type(status) is int else 0
    else:
        status, body = 0, json.dumps({"error": error})
    return _Line(key=content["custom_id"], status=status, body=body.encode("utf-8", "surrogatepass"))
