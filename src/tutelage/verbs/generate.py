"""The verb `generate`: asks a teacher behind an API, pays no answer twice, and writes the set that students learn."""

import asyncio
import hashlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage import __version__, console, io
from tutelage.data.answers import ROWS, Card
from tutelage.errors import Stopped
from tutelage.generation import reply as replies
from tutelage.generation.accounts import asked, compute_paths
from tutelage.generation.batch_work import BatchWork
from tutelage.generation.budget import Budget
from tutelage.generation.client import Client
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.ledger import PICO, Ledger
from tutelage.generation.pace import Pace
from tutelage.generation.product import Product, write_card, write_rows
from tutelage.generation.request import TEMPLATE_VERSION, Request
from tutelage.generation.task import Survey, Task, open_task
from tutelage.generation.work import Committer, Work, body_of, now
from tutelage.generation.writers import Writer
from tutelage.recipe import Recipe, load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What `generate` gives back: the folder of answers and its card."""

    path: Path
    card: Card
    n_sent: int  # requests of this call

    def as_json(self) -> dict[str, Any]:
        """Everything but the examples, for programs."""
        content = self.card.model_dump(mode="json", exclude={"dropped"})
        dropped = {step.step: step.n for step in self.card.dropped if step.n}
        return {"answers": str(self.path), **content, "dropped": dropped, "sent_now": self.n_sent}

    def __str__(self) -> str:
        card = self.card
        cost = f"{card.requests:,} requests" + (f", ${card.spent_usd:.6g} spent" if card.spent_usd is not None else "")
        if all(teacher.weights for teacher in card.teachers.values()):
            cost = "nothing, it was written on this machine"
        lines = [
            f"answers: {self.path / ROWS}  ({card.rows:,} rows of {card.asked:,} answers to {card.prompts:,} prompts)",
            f"cost:    {cost}; {self.n_sent:,} asked in this call",
        ]
        for step in card.dropped:
            if step.n:
                why = ", ".join(f"{n} {reason}" for reason, n in step.reasons.items())
                lines.append(f"dropped: {step.n:,} by {step.step} ({why})")
        return "\n".join([*lines, "next:    tutelage train RECIPE"])


def generate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    ask: bool = True,
    allow_private_host: bool = False,
) -> Generated:
    """Ask the teacher what `generate` says and write the answers that are kept to `teacher.answers`.

    Goes on where an earlier call stopped: what the journal holds is never asked again, and the cap counts all calls.
    With `ask=False` nothing is sent: the set is written anew from the answers that are there.

    Raises RemoteError when the endpoint says no for good, LimitError[BUDGET] at the cap, Stopped after a signal;
    every answer that came is safe then.
    """
    task = open_task(load_recipe(recipe, overrides), asks=ask, allow_private_host=allow_private_host)
    survey = task.survey()
    ledger = Ledger()
    journal = Journal(task.folder, ledger.apply)
    try:
        io.remove_leftovers(task.folder)
        n_lost = ledger.n_lost
        _begin(journal, ledger, task, survey)
        _say_what_is_there(ledger, survey, n_lost=ledger.n_lost - n_lost)
        n_sent = _ask(task, journal, ledger, survey) if ask else 0
        product = write_rows(
            task.folder,
            task.sound(),
            ledger=ledger,
            journal=journal.path,
            steps=task.generate.select,
            optional=frozenset(writer.name for writer in task.writers if writer.finish_reason_optional),
        )
        card = write_card(task.folder, _card(task, survey, ledger, product))
    finally:
        journal.close()
    _warn(task, card, ledger)
    return Generated(path=task.folder, card=card, n_sent=n_sent)


# --- what is there already ---
def _begin(journal: Journal, ledger: Ledger, task: Task, survey: Survey) -> None:
    """A process begins; replies that the one before journalled and did not read are read now."""
    budget = task.budget
    n_done = sum(key in ledger.final for key in survey.keys)
    run: dict[str, Any] = {
        "at": now(),
        "tutelage": __version__,
        "base_url": task.base_url,
        "model": task.model,
        "compute": compute_paths(task.writers, ledger, is_finished=n_done == len(survey.keys)),
        "total": len(survey.keys),
        "done": n_done,
        "cap": budget.cap,
        "max_requests": budget.max_requests,
    }
    records: list[tuple[str, Fields]] = [("run", run)]
    for key, (number, place) in ledger.raw.items():
        fields = journal.fields_at(place.offset, place.n_bytes)
        writer = task.writer(fields.get("teacher", ""))
        optional = writer is not None and writer.finish_reason_optional
        reply = replies.parse(body_of(fields), status=fields["status"], finish_reason_optional=optional)
        reserved = ledger.open.get(number, 0)
        cost = writer.budget.cost(reply.usage, reserved=reserved) if writer is not None else reserved
        paid = cost if fields["status"] == 200 else 0
        parsed = {"id": number, "key": key, "paid": paid, "outcome": reply.outcome, "final": reply.is_final}
        parsed["spent"] = fields["status"] == 200
        records.append(("parsed", parsed))
    for record in journal.commit(records):
        ledger.apply(record)
    settled = [mark for mark, job in ledger.jobs.items() if not job.ids & ledger.open.keys()]
    for record in journal.commit([("closed", {"job": mark}) for mark in settled]) if settled else ():
        ledger.apply(record)


def _say_what_is_there(ledger: Ledger, survey: Survey, *, n_lost: int) -> None:
    if not ledger.final and not n_lost:
        return
    n_reused = sum(key in ledger.final for key in survey.keys)
    lost = f", up to {n_lost} requests that were under way may be paid twice" if n_lost else ""
    console.note("RESUMED", f"{n_reused} answers kept, 0 asked again{lost}")
    n_other = len(ledger.final) - n_reused
    if n_other:
        n_new = len(survey.keys) - n_reused
        console.note("REUSE", f"{n_reused} of {len(survey.keys)} answers reused, {n_new} requests are new or changed")


# --- asking ---
def _ask(task: Task, journal: Journal, ledger: Ledger, survey: Survey) -> int:
    """Sends what has no reply yet; the number of requests that were sent."""
    n_open = sum(key not in ledger.final for key in survey.keys)
    if not n_open:
        console.note("NOTHING_TO_DO", f"{task.folder}: every answer is there; nothing is sent")
        return 0
    console.tell(f"asking {task.base_url} for {n_open:,} answers of {task.model}")
    if any(writer.api is not None for writer in task.writers):
        most = sum(survey.keys[key] for key in survey.keys if key not in ledger.final)
        console.tell(_cap(task.budget, ledger, most=most))
    n_sent = 0
    with console.Progress("answers", total=len(survey.keys), done=len(survey.keys) - n_open) as bar:
        for writer in task.writers:
            ask = _ask_local if writer.local is not None else _ask_remote
            n_sent += ask(task, writer, journal, ledger, bar=bar)
    return n_sent


def _ask_local(task: Task, writer: Writer, journal: Journal, ledger: Ledger, *, bar: console.Progress) -> int:
    def requests() -> Iterator[Request]:
        return (request for request in task.sound() if request.teacher == writer.name)

    if all(request.key in ledger.final for request in requests()):
        return 0
    from tutelage.generation.local import LocalWork

    work = LocalWork(writer, compute=ledger.compute[writer.name], rows=task.generate.batch)
    return work.run(requests(), journal=journal, ledger=ledger, bar=bar)


def _ask_remote(task: Task, writer: Writer, journal: Journal, ledger: Ledger, *, bar: console.Progress) -> int:
    def on_answer() -> None:
        bar.advance(text=_money(ledger, writer.budget))

    def requests() -> Iterator[Request]:
        return (request for request in task.sound() if request.teacher == writer.name)

    assert writer.api is not None
    n_sent, by_batch = 0, writer.api.transport == "batch"
    if by_batch or BatchWork.open_jobs(writer, ledger):
        n_sent = BatchWork(writer, journal=journal, ledger=ledger, bar=bar).run(requests, only_fetch=not by_batch)
    if by_batch:
        return n_sent
    work = _run_to_its_end(lambda: _run(task, writer, journal, ledger, total=bar.total, on_answer=on_answer))
    if work.error is not None:
        raise work.error
    return work.n_sent


def _run_to_its_end(begin: Callable[[], Coroutine[Any, Any, Work]]) -> Work:
    """Runs it here, or in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(begin())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(begin())).result()


async def _run(
    task: Task, writer: Writer, journal: Journal, ledger: Ledger, *, total: int, on_answer: Callable[[], None]
) -> Work:
    api, endpoint = writer.api, writer.endpoint
    assert api is not None and endpoint is not None
    most = api.concurrency
    async with Client(endpoint, timeout_s=api.timeout_s, most_connections=most, limit_field=api.limit_field) as client:
        work = Work(
            committer=Committer(journal, ledger),
            ledger=ledger,
            budget=writer.budget,
            client=client,
            pace=Pace(most=most),
            host=endpoint.host,
            total=total,
            retries=api.retries,
            finish_reason_optional=api.finish_reason_optional,
            on_answer=on_answer,
        )
        _stop_on_signals(work)
        await work.run(request for request in task.sound() if request.teacher == writer.name)
    return work


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


def _cap(budget: Budget, ledger: Ledger, *, most: int) -> str:
    """What may be spent, before the first request."""
    caps = [f"{ledger.n_spent:,} of {budget.max_requests:,} requests spent"] if budget.max_requests is not None else []
    if budget.cap is not None:
        caps.append(f"${ledger.settled / PICO:.4g} of ${budget.cap / PICO:.6g} spent")
    price = f"; these answers cost at most ${most / PICO:.4g}, if none has to be asked twice" if budget.price else ""
    return f"cap: {', '.join(caps)}{price}"


def _money(ledger: Ledger, budget: Budget) -> str:
    """What is spent, reserved and left, for the progress line."""
    left = budget.left_usd(ledger)
    if left is None:
        return f"{ledger.n_spent} of {budget.max_requests} requests" if budget.max_requests else ""
    return f"${ledger.settled / PICO:.4g} spent, ${ledger.reserved / PICO:.4g} reserved, ${left:.4g} left"


# --- afterwards ---
def _card(task: Task, survey: Survey, ledger: Ledger, product: Product) -> Card:
    wanted, single = task.generate, task.writers[0] if len(task.writers) == 1 else None
    how = {"version": TEMPLATE_VERSION, "system": wanted.system, "interface": wanted.interface}
    sampling = wanted.model_dump(
        mode="json", include={"samples", "max_tokens", "temperature", "seed", "system", "interface", "prompt_tokens"}
    )
    return Card(
        tutelage=__version__,
        base_url=task.base_url,
        model=task.model,
        teachers={writer.name: asked(writer, ledger, product) for writer in task.writers},
        models=product.models,
        terms=single.terms if single is not None else None,
        sampling={**sampling, "body": dict(single.sampling.body) if single is not None else {}},
        template=hashlib.sha256(repr(sorted(how.items())).encode()).hexdigest(),
        select=tuple(step.model_dump(mode="json") for step in wanted.select),
        price=wanted.price.model_dump() if wanted.price is not None else None,
        spent_usd=ledger.settled / PICO if any(writer.budget.price for writer in task.writers) else None,
        requests=ledger.n_spent,
        lost=ledger.n_lost,
        first_answer=ledger.first_at,
        last_answer=ledger.last_at,
        prompts=survey.n_prompts,
        rejected_prompts=survey.n_rejected,
        samples=wanted.samples,
        identity=task.identity(survey),
        asked=product.n_asked,
        outcomes=product.outcomes,
        dropped=product.dropped,
        rows=product.n_rows,
        bytes=product.digest.n_bytes,
        sha256=product.digest.sha256,
    )


def _warn(task: Task, card: Card, ledger: Ledger) -> None:
    """What a user should look at, once each."""
    outcomes = dict(card.outcomes)
    whole = {"answer", "truncated", "incomplete"}
    if n := outcomes.get("truncated", 0):
        limit = task.generate.max_tokens
        kept = "kept" if any(step.complete is False for step in task.generate.select) else "left out"
        console.warning("TRUNCATED_ANSWERS", f"{n} of {card.asked} answers hit max_tokens={limit}; {kept}")
    if none := {name: n for name, n in outcomes.items() if name not in whole}:
        console.warning("API_NO_ANSWER", f"{', '.join(f'{n} {name}' for name, n in none.items())}; left out")
    if n := ledger.retried["incomplete"] + outcomes.get("incomplete", 0):
        console.warning("API_INCOMPLETE", f"{n} replies had no finish_reason: asked again, or left out in the end")
    for writer in task.writers:
        if writer.terms is None:
            found = f"no terms of use recorded for the outputs of {writer.model}"
            field = "teacher.api.terms" if writer.api is not None else "teacher.terms"
            console.warning("TERMS_UNKNOWN", f"{found}; the card says so ({field})")
