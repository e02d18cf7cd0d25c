"""Asks by batch jobs, behind the same journal: reserve durably, hand in, wait, journal every reply before it is read.

A job has a mark, journalled with its reservations before anything goes up, and sent as metadata.  A process that died
between the two finds its job at the provider by the mark and fetches it, instead of paying for another one; a job
without an answer to its creation is looked for in the same way.  Replies carry the key of their request (`custom_id`),
so it does not matter in which order, in which file, or how often they come.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace

import httpx2

from tutelage import console
from tutelage.errors import LimitError, RemoteError, TutelageError
from tutelage.generation import reply as replies
from tutelage.generation.batch import BatchClient, FileGoneError, Job, MaybeCreated
from tutelage.generation.batch_lines import Line, grouped, line_of
from tutelage.generation.budget import Price, exhausted
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.ledger import PICO, Ledger, OpenJob
from tutelage.generation.logprobs import lacking
from tutelage.generation.pace import backoff_s
from tutelage.generation.request import Request
from tutelage.generation.stop_sign import StopSign
from tutelage.generation.work import body_fields, body_of, now, without_logprobs
from tutelage.generation.writers import Writer

MOST_REQUESTS, MOST_BYTES = 50_000, 100 << 20  # of one job
FIRST_POLL_S, MOST_POLL_S = 2.0, 60.0
_DOWNLOADS = 5  # tries of one file
_HAVE_NUMBERS = ("answer", "scored", "truncated")  # outcomes of replies that carry log-probabilities
_LOOKS = 3  # for a job by its mark
_TRIALS = 4  # jobs of 1, 2, 4 and 8 prompts: so many may be refused before log-probabilities come
_UNPAID = ("expired", "cancelled", "failed")  # what has no reply in such a job was not worked on


class BatchWork:
    """One run over requests through batch jobs, one after the other."""

    def __init__(
        self,
        writer: Writer,
        *,
        journal: Journal,
        ledger: Ledger,
        bar: console.Progress,
        wanted: Container[str] | None = None,
    ) -> None:
        """`wanted` are the keys that the recipe asks, where an open job may hold others; None: all are wanted."""
        assert writer.api is not None and writer.endpoint is not None
        self._writer, self._api, self._url = writer, writer.api, writer.endpoint.base_url
        self._journal, self._ledger, self._bar = journal, ledger, bar
        self._stop = StopSign(bar.total)
        self._client = BatchClient(writer.endpoint, timeout_s=writer.api.timeout_s, sleep=self._sleep)
        self._wanted = wanted
        self._tries = Counter[str]()  # how often a request was handed in, as far as this process knows
        self._refused: dict[str, Line] = {}  # of the job that is being fetched, by key
        self._n_trials = 0  # jobs that were to show whether log-probabilities come
        self._held_back: set[str] = set()  # refused in a trial: handed in again once others are answered
        self._why_held: Callable[[], TutelageError] | None = None
        self._gives_numbers, self._files_gone = False, 0
        self._n_good = bar.done  # answers that the endpoint gave to this recipe
        self._stops: list[Callable[[], TutelageError]] = []  # why nothing more is handed in, the first one first

    def run(self, requests: Callable[[], Iterable[Request]], *, only_fetch: bool) -> int:
        """Fetches the jobs that are open, then hands in what has no reply; the number of requests handed in."""
        n_sent = 0
        self._gives_numbers = self._k is None or self._gave_numbers(requests())
        with self._stop.armed(), self._client:
            for mark in self.open_jobs(self._writer, self._ledger):
                self._fetch_open(mark)
            while not only_fetch and (chosen := self._choose(requests())):
                self._tries.update(request.key for request in chosen)
                n_sent += len(chosen)
                self._hand_in(chosen)
                self._tries = Counter({k: n for k, n in self._tries.items() if not self._is_settled(k)})
        if self._why_held is not None and not self._gives_numbers and not only_fetch:
            raise self._why_held()
        lost = [key for key, n in self._tries.items() if n > self._api.retries and key not in self._ledger.final]
        if lost:
            found = f"{len(lost)} requests got no answer in {self._api.retries + 1} batch jobs"
            raise RemoteError("API_BODY", f"{found}; {self._safe()}, rerun to continue")
        return n_sent

    def _is_settled(self, key: str) -> bool:
        return key in self._ledger.final or key in self._held_back

    @staticmethod
    def open_jobs(writer: Writer, ledger: Ledger) -> list[str]:
        """The marks of the jobs of this teacher whose replies are still to be fetched."""
        url = writer.endpoint.base_url if writer.endpoint is not None else ""
        return [mark for mark, job in ledger.jobs.items() if (job.url, job.teacher) == (url, writer.name)]

    @property
    def _k(self) -> int | None:
        """How many most likely tokens are asked for at each position."""
        return self._writer.sampling.top_logprobs

    def _gave_numbers(self, requests: Iterable[Request]) -> bool:
        """Whether an answer that is there has the log-probabilities that are asked for: else one request goes first."""
        final, k = self._ledger.final, self._k or 0
        found = (final[r.key] for r in requests if r.key in final)
        place = next((place for outcome, place in found if outcome in _HAVE_NUMBERS), None)
        if place is None:
            return False
        body = body_of(self._journal.fields_at(place.offset, place.n_bytes))
        return not lacking(body, k=k, given=self._writer.sampling.given)

    # --- handing in ---
    def _choose(self, requests: Iterable[Request]) -> list[Request]:
        """What goes into the next job: of one interface, within the provider's limits and the caps."""
        chosen: dict[str, Request] = {}
        total = n_bytes = 0
        budget, ledger = self._writer.budget, self._ledger
        under_way = set(ledger.keys.values())  # in a job that is open under another name of the teacher
        for request in requests:
            if request.key in chosen or request.key in ledger.final or request.key in under_way:
                continue
            if self._tries[request.key] > self._api.retries:
                continue
            if request.key in self._held_back and not self._gives_numbers:
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
            if (
                len(chosen) >= (MOST_REQUESTS if self._gives_numbers else 2**self._n_trials)
                or n_bytes + size > MOST_BYTES
            ):
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
        file_id = self._client.upload([line_of(request, limit_field=limit_field) for request in chosen])
        try:
            job = self._client.create(file_id, path=chosen[0].path, mark=mark)
        except MaybeCreated as lost:
            found = self._look_for(mark)
            if found is None:
                what = f"{self._url}: whether the batch job was created is not known ({lost})"
                raise RemoteError("API_UNREACHABLE", f"{what}; {self._safe()}, rerun: it is looked for first") from lost
            job = found
        self._commit([("submitted", {"job": mark, "batch": job.id})])
        trial = "" if self._gives_numbers else " to see whether log-probabilities come, before all others"
        self._n_trials += not self._gives_numbers
        shown = f"batch job {job.id}: {len(chosen):,} requests{trial}"
        console.tell(f"{shown}; it may take a day, and rerunning finds it again")
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
        self._tries.update(
            self._ledger.keys[number] for number in self._ledger.jobs[mark].ids & self._ledger.keys.keys()
        )
        try:
            job = self._client.look(batch) if batch else self._look_for(mark)
        except RemoteError as error:
            if error.code != "API_BATCH":
                raise
            console.warning("API_BATCH", f"batch job {batch} is gone at {self._url}: what it holds counts as spent")
            self._close(mark, why="batch gone", is_paid=True)
            return
        if job is None:
            self._close(mark, why="never handed in", is_paid=False)
            return
        if not batch:
            self._commit([("submitted", {"job": mark, "batch": job.id})])
        console.note("RESUMED", f"batch job {job.id} ({job.status}) is there: it is fetched, not handed in again")
        self._fetch(mark, job)

    def _fetch(self, mark: str, job: Job) -> None:
        """Waits for the end of a job and takes in everything that it left."""
        wait_s, n_before = FIRST_POLL_S, self._bar.done
        while not job.has_ended:
            self._bar.update(max(self._bar.done, n_before + job.n_done), f"batch job {job.status}")
            self._sleep(wait_s)
            wait_s = min(MOST_POLL_S, wait_s * 1.5)
            job = self._client.look(job.id)
        self._refused, self._files_gone = {}, 0
        for file_id in job.files:
            self._take_file(file_id, self._ledger.jobs[mark])
        self._settle_refusals(mark, job)
        is_paid = job.status not in _UNPAID or self._files_gone > 0
        why = f"batch {job.status}" if not self._files_gone else "batch file gone"
        n_unknown = self._close(mark, why=why, is_paid=is_paid)
        self._bar.update(max(n_before, len(self._ledger.final)), f"batch job {job.status}")
        self._raise_why_it_ended(job, n_unknown=n_unknown)

    def _raise_why_it_ended(self, job: Job, *, n_unknown: int) -> None:
        """Everything of the job is settled: the error when no other one may follow."""
        if self._stops:
            raise self._stops[0]()
        if self._files_gone:
            found = f"{self._url} keeps a file of batch job {job.id} no longer: {n_unknown} requests have no reply here"
            ways = (
                "rerun to hand them in once more, or write the set of what is there: tutelage generate RECIPE --no-ask"
            )
            raise RemoteError("API_BATCH", f"{found} and count as spent; {self._safe()}, {ways}")
        if job.status in ("failed", "cancelled"):
            said = f": {job.problem}" if job.problem else ""
            found = f"batch job {job.id} {'was cancelled' if job.status == 'cancelled' else 'failed'}{said}"
            raise RemoteError("API_BATCH", f"{found}; {self._safe()}, rerun to hand in the rest")

    def _take_file(self, file_id: str, job: OpenJob) -> None:
        for n in range(_DOWNLOADS):
            try:
                with self._client.lines(file_id) as lines:
                    for group in grouped(lines):
                        self._take(group, job)
                return
            except FileGoneError:
                self._files_gone += 1
                return
            except httpx2.TransportError as error:
                if n + 1 == _DOWNLOADS:
                    what = f"{self._url}: the file of a batch job does not come down ({type(error).__name__})"
                    raise RemoteError("API_UNREACHABLE", f"{what}; {self._safe()}, rerun to continue") from error
            self._sleep(backoff_s(n, first_s=FIRST_POLL_S))

    def _take(self, lines: Sequence[Line], job: OpenJob) -> None:
        """Journals replies, then reads them; a line that is there already, or of another job, is nothing."""
        numbers = self._numbers(job)
        self._n_good += sum(
            line.status == 200 and (line.key in numbers or line.key in self._ledger.final) for line in lines
        )
        known = {line.key: line for line in lines if line.key in numbers}
        self._refused |= {line.key: line for line in known.values() if line.is_refusal}
        self._take_in([line for line in known.values() if line.is_reply], job)
        later = [line for line in known.values() if not line.is_reply and not line.is_refusal]
        self._commit([self._released(numbers[line.key], line) for line in later])

    def _numbers(self, job: OpenJob) -> dict[str, int]:
        """The sendings of a job that are not settled: key -> id."""
        return {self._ledger.keys[number]: number for number in job.ids if number in self._ledger.keys}

    def _take_in(self, lines: Sequence[Line], job: OpenJob) -> None:
        numbers = self._numbers(job)
        named: Fields = {"teacher": self._writer.name} if self._writer.name else {}
        named = {**named, "price": list(job.price) if job.price is not None else None}
        self._commit(
            [
                ("answered", {"id": numbers[line.key], "key": line.key, "at": now(), "status": line.status, **named,
                              **body_fields(line.body)})
                for line in lines
            ]
        )  # fmt: skip
        self._commit([self._parsed(line, numbers[line.key], job=job) for line in lines])

    def _settle_refusals(self, mark: str, job: Job) -> None:
        """Where others are answered a no is about its own prompt, and final; else it is about all, and ends the run.

        In the first trials that is not known yet: they are held back, and other prompts are tried.
        """
        refused = list(self._refused.values())
        about_all = [line for line in refused if line.code is not None or not self._n_good]
        open_job = self._ledger.jobs[mark]
        self._take_in([line for line in refused if line not in about_all], open_job)
        numbers = self._numbers(open_job)
        self._commit([self._released(numbers[line.key], line) for line in about_all])
        if about_all:
            first, n = about_all[0], len(about_all)
            found = f"{self._url} refuses {n} requests of batch job {job.id} (first: {first.said})"
            advice = "change what it says and rerun: they cost nothing and go into the next job"
            code = first.code or "API_REQUEST"

            def error() -> TutelageError:
                return RemoteError(code, f"{found}; {self._safe()}, {advice}")

            if code != "API_REQUEST" or self._gives_numbers or self._n_trials >= _TRIALS:
                self._stops.append(error)
            self._held_back |= {line.key for line in about_all}
            self._why_held = error

    def _released(self, number: int, line: Line) -> tuple[str, Fields]:
        """A line that is no reply and was not paid."""
        return "released", {"id": number, "key": line.key, "paid": 0, "spent": False, "why": f"batch {line.status}"}

    def _parsed(self, line: Line, number: int, *, job: OpenJob) -> tuple[str, Fields]:
        optional, amount = self._api.finish_reason_optional, self._ledger.open[number]
        scored = self._writer.sampling.given is not None
        reply = replies.parse(line.body, status=line.status, finish_reason_optional=optional, scored=scored)
        price = Price(prompt=job.price[0], answer=job.price[1]) if job.price is not None else None
        own = replace(self._writer.budget, price=price)
        paid = own.cost(reply.usage, reserved=amount) if line.status == 200 else 0
        if paid > amount:
            found = f"${paid / PICO:.6g} for a request that could cost ${amount / PICO:.6g} at most"
            why = f"{self._url} charged {found}: the price is not its price, or max_tokens is not kept"
            self._stops.append(lambda: LimitError("OVER_RESERVED", f"{why}; {self._safe()}, nothing more is sent"))
        if reply.outcome in _HAVE_NUMBERS and self._k is not None:
            self._look_for_numbers(line.body, k=self._k)
        is_last = reply.outcome == "incomplete" and self._tries[line.key] > self._api.retries
        fields = {"id": number, "key": line.key, "paid": paid, "spent": line.status == 200}
        if self._wanted is not None and line.key not in self._wanted:
            fields["old"] = True
        return "parsed", {**fields, "outcome": reply.outcome, "final": reply.is_final or is_last}

    def _look_for_numbers(self, body: bytes, *, k: int) -> None:
        given = self._writer.sampling.given
        if what := lacking(body, k=k, given=given):
            self._stops.append(lambda: without_logprobs(self._url, what, k=k, given=given, safe=self._safe()))
        else:
            self._gives_numbers = True

    def _close(self, mark: str, *, why: str, is_paid: bool) -> int:
        """Settles what has no reply, and ends the job; in one group of the journal.  The number of such requests."""
        records: list[tuple[str, Fields]] = []
        for number in sorted(self._ledger.jobs[mark].ids & self._ledger.open.keys()):
            paid = self._ledger.open[number] if is_paid else 0
            key = self._ledger.keys[number]
            records.append(("released", {"id": number, "key": key, "paid": paid, "spent": is_paid, "why": why}))
        self._commit([*records, ("closed", {"job": mark})])
        return len(records)

    # --- small things ---
    def _commit(self, records: Sequence[tuple[str, Fields]]) -> None:
        for record in self._journal.commit(records) if records else ():
            self._ledger.apply(record)

    def _sleep(self, seconds: float) -> None:
        self._stop.sleep(seconds, len(self._ledger.final))

    def _safe(self) -> str:
        return f"{len(self._ledger.final)} of {self._bar.total} answers are safe"
