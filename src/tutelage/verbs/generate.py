"""The verb `generate`: asks a teacher behind an API, pays no answer twice, and writes the set that students learn."""

import asyncio
import hashlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import __version__, console, io
from tutelage.data.answers import PARQUET, ROWS, SOFT, Card
from tutelage.errors import Stopped
from tutelage.generation import judging
from tutelage.generation import reply as replies
from tutelage.generation.budget import Budget, Price
from tutelage.generation.client import Client
from tutelage.generation.endpoint import Endpoint
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.judging import Scores
from tutelage.generation.ledger import JUDGE, PICO, Ledger
from tutelage.generation.pace import Pace
from tutelage.generation.parquet import write_parquet
from tutelage.generation.product import Product, write_card, write_rows
from tutelage.generation.request import TEMPLATE_VERSION, Request
from tutelage.generation.select import FAILED
from tutelage.generation.selection import shown
from tutelage.generation.task import Survey, Task, open_task
from tutelage.generation.verdicts import write_verdicts
from tutelage.generation.work import Committer, Work, body_of, now
from tutelage.recipe import Api, Recipe, load_recipe

if TYPE_CHECKING:
    from tutelage.generation.soft_cache import SoftLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What `generate` gives back: the folder of answers and its card."""

    path: Path
    card: Card
    n_sent: int  # requests of this call
    soft: "SoftLabels | None" = None

    def as_json(self) -> dict[str, Any]:
        """Everything but the examples, for programs."""
        content = self.card.model_dump(mode="json", exclude={"dropped"})
        dropped = {step.step: step.n for step in self.card.dropped if step.n}
        soft = {"soft": self.soft.as_json()} if self.soft is not None else {}
        return {"answers": str(self.path), **content, "dropped": dropped, "sent_now": self.n_sent, **soft}

    def __str__(self) -> str:
        card = self.card
        cost = f", ${card.spent_usd:.6g} spent" if card.spent_usd is not None else ""
        lines = [
            f"answers: {self.path / ROWS}  ({card.rows:,} rows of {card.asked:,} answers to {card.prompts:,} prompts)",
            f"cost:    {card.requests:,} requests{cost}; {self.n_sent:,} of them in this call",
        ]
        for step in card.dropped:
            if step.n:
                why = ", ".join(f"{n} {reason}" for reason, n in step.reasons.items())
                lines.append(f"dropped: {step.n:,} by {step.step} ({why})")
            if step.undecided:
                lines.append(f"kept:    {step.undecided:,} that {step.step} could not tell, undecided")
        if self.soft is not None:
            lines.append(f"soft:    {self.soft}")
        return "\n".join([*lines, "next:    tutelage train RECIPE"])


def generate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    ask: bool = True,
    allow_private_host: bool = False,
) -> Generated:
    """Ask `teacher.api` what `generate` says and write the answers that are kept to `teacher.answers`.

    Goes on where an earlier call stopped: what the journal holds is never asked again, and the cap counts all calls.
    With `ask=False` nothing is sent: the set is written anew from the answers that are there.

    Raises RemoteError when the endpoint says no for good, LimitError[BUDGET] at the cap, Stopped after a signal;
    every answer that came is safe then.
    """
    task = open_task(load_recipe(recipe, overrides), allow_private_host=allow_private_host)
    survey = task.survey()
    ledger = Ledger()
    journal = Journal(task.folder, ledger.apply)
    try:
        io.remove_leftovers(task.folder)
        n_lost = ledger.n_lost
        _begin(journal, ledger, task, survey)
        _say_what_is_there(ledger, survey, n_lost=ledger.n_lost - n_lost)
        n_sent = _ask(task, journal, ledger, survey) + _ask_judge(task, journal, ledger) if ask else 0
        scores = Scores(judge=task.judge, ledger=ledger, journal=journal.path) if task.judge is not None else None
        product = write_rows(
            task.folder,
            task.sound(),
            ledger=ledger,
            journal=journal.path,
            steps=task.generate.select,
            optional=task.api.finish_reason_optional,
            scores=scores,
        )
        io.remove_tree(task.folder / SOFT)  # of the set before this one
        io.remove_file(task.folder / PARQUET)
        card = _card(task, survey, ledger, product, scores=scores)
        if task.generate.parquet:
            write_parquet(task.folder, card)
        card = write_card(task.folder, card)
        write_verdicts(task, ledger, journal.path, card)
        soft = _soft(task, ledger, journal.path) if task.generate.top_logprobs is not None else None
    finally:
        journal.close()
    _warn(task, card, ledger)
    return Generated(path=task.folder, card=card, n_sent=n_sent, soft=soft)


# --- what is there already ---
def _begin(journal: Journal, ledger: Ledger, task: Task, survey: Survey) -> None:
    """A process begins; replies that the one before journalled and did not read are read now."""
    budget = task.budget
    run: dict[str, Any] = {
        "at": now(),
        "tutelage": __version__,
        "base_url": task.endpoint.base_url,
        "model": task.api.model,
        "total": len(survey.keys),
        "done": sum(key in ledger.final for key in survey.keys),
        "cap": budget.cap,
        "max_requests": budget.max_requests,
    }
    records: list[tuple[str, Fields]] = [("run", run)]
    for key, (number, place) in ledger.raw.items():
        fields = journal.fields_at(place.offset, place.n_bytes)
        api = task.judge.settings.api if task.judge is not None and key.startswith(JUDGE) else task.api
        optional = api.finish_reason_optional
        reply = replies.parse(body_of(fields), status=fields["status"], finish_reason_optional=optional)
        price = fields.get("price")  # of the one who answered: the judge's is another than the teacher's
        own = replace(budget, price=Price(prompt=price[0], answer=price[1]) if price is not None else None)
        paid = own.cost(reply.usage, reserved=ledger.open.get(number, 0)) if fields["status"] == 200 else 0
        parsed = {"id": number, "key": key, "paid": paid, "outcome": reply.outcome, "final": reply.is_final}
        parsed["spent"] = fields["status"] == 200
        records.append(("parsed", parsed))
    for record in journal.commit(records):
        ledger.apply(record)


def _say_what_is_there(ledger: Ledger, survey: Survey, *, n_lost: int) -> None:
    if not ledger.final and not n_lost:
        return
    n_reused = sum(key in ledger.final for key in survey.keys)
    lost = f", up to {n_lost} requests that were under way may be paid twice" if n_lost else ""
    console.note("RESUMED", f"{n_reused} answers kept, 0 asked again{lost}")
    n_other = len(ledger.final) - ledger.n_judged - n_reused
    if n_other:
        n_new = len(survey.keys) - n_reused
        console.note("REUSE", f"{n_reused} of {len(survey.keys)} answers reused, {n_new} requests are new or changed")


# --- asking ---
def _ask(task: Task, journal: Journal, ledger: Ledger, survey: Survey) -> int:
    """Sends what has no reply yet; the number of requests that were sent."""
    n_open = sum(key not in ledger.final for key in survey.keys)
    if not n_open:
        console.note("NOTHING_TO_DO", f"{task.folder}: every answer is there; none is asked for")
        return 0
    console.tell(f"asking {task.endpoint.base_url} for {n_open:,} answers of {task.api.model}")
    total = len(survey.keys)
    with console.Progress("answers", total=total, done=total - n_open) as bar:

        def on_answer() -> None:
            bar.advance(text=_money(ledger, task.budget))

        sender = _Sender(
            api=task.api,
            endpoint=task.endpoint,
            budget=task.budget,
            total=total,
            on_answer=on_answer,
            top_logprobs=task.generate.top_logprobs,
        )
        work = _run_to_its_end(lambda: _run(sender, task.sound(), journal, ledger))
    if work.error is not None:
        raise work.error
    return work.n_sent


def _ask_judge(task: Task, journal: Journal, ledger: Ledger) -> int:
    """Sends what the judge was not asked yet about the answers that are there; the number of requests."""
    judge = task.judge
    if judge is None:
        return 0
    optional, path = task.api.finish_reason_optional, journal.path
    keys = judging.wanted(judge, task.sound(), ledger=ledger, journal=path, optional=optional)

    def requests() -> Iterator[Request]:
        return judging.requests_of(judge, keys, task.sound(), ledger=ledger, journal=path, optional=optional)

    wanted = {request.key for request in requests()}
    n_open = sum(key not in ledger.final for key in wanted)
    if not n_open:
        return 0
    api = judge.settings.api
    console.tell(f"asking {judge.endpoint.base_url} to judge {n_open:,} answers by {api.model}")
    with console.Progress("judged", total=len(wanted), done=len(wanted) - n_open) as bar:

        def on_answer() -> None:
            bar.advance(text=_money(ledger, judge.budget))

        total = len(ledger.final) + n_open
        sender = _Sender(api=api, endpoint=judge.endpoint, budget=judge.budget, total=total, on_answer=on_answer)
        work = _run_to_its_end(lambda: _run(sender, requests(), journal, ledger))
    if work.error is not None:
        raise work.error
    return work.n_sent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sender:
    """Who is asked, at which price, and who hears of it."""

    api: Api
    endpoint: Endpoint
    budget: Budget
    total: int
    on_answer: Callable[[], None]
    top_logprobs: int | None = None


def _run_to_its_end(begin: Callable[[], Coroutine[Any, Any, Work]]) -> Work:
    """Runs it here, or in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(begin())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(begin())).result()


async def _run(sender: _Sender, requests: Iterable[Request], journal: Journal, ledger: Ledger) -> Work:
    api = sender.api
    most = api.concurrency
    async with Client(
        sender.endpoint, timeout_s=api.timeout_s, most_connections=most, limit_field=api.limit_field
    ) as client:
        work = Work(
            committer=Committer(journal, ledger),
            ledger=ledger,
            budget=sender.budget,
            client=client,
            pace=Pace(most=most),
            host=sender.endpoint.host,
            total=sender.total,
            retries=api.retries,
            finish_reason_optional=api.finish_reason_optional,
            top_logprobs=sender.top_logprobs,
            on_answer=sender.on_answer,
        )
        _stop_on_signals(work)
        await work.run(requests)
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


def _money(ledger: Ledger, budget: Budget) -> str:
    """What is spent, reserved and left, for the progress line."""
    left = budget.left_usd(ledger)
    if left is None:
        return f"{ledger.n_spent} of {budget.max_requests} requests" if budget.max_requests else ""
    return f"${ledger.settled / PICO:.4g} spent, ${ledger.reserved / PICO:.4g} reserved, ${left:.4g} left"


# --- afterwards ---
def _card(task: Task, survey: Survey, ledger: Ledger, product: Product, *, scores: Scores | None) -> Card:
    wanted, api = task.generate, task.api
    templates = [source.template for source in wanted.prompts]
    how = {"version": TEMPLATE_VERSION, "system": wanted.system, "interface": wanted.interface, "templates": templates}
    sampling = wanted.model_dump(
        mode="json",
        include={
            "samples",
            "max_tokens",
            "temperature",
            "seed",
            "system",
            "interface",
            "prompt_tokens",
            "top_logprobs",
        },
    )
    return Card(
        tutelage=__version__,
        base_url=task.endpoint.base_url,
        model=api.model,
        models=product.models,
        terms=api.terms,
        sampling={**sampling, "templates": [t for t in templates if t], "body": dict(api.body or {})},
        template=hashlib.sha256(repr(sorted(how.items())).encode()).hexdigest(),
        select=tuple(shown(step.model_dump(mode="json")) for step in wanted.select),
        select_files=product.files,
        judge=scores.for_card() if scores is not None else None,
        price=wanted.price.model_dump() if wanted.price is not None else None,
        spent_usd=ledger.settled / PICO if wanted.price is not None else None,
        requests=ledger.n_spent,
        lost=ledger.n_lost,
        first_answer=ledger.first_at,
        last_answer=ledger.last_at,
        prompts=survey.n_prompts,
        rejected_prompts=survey.n_rejected,
        samples=wanted.samples,
        asked=product.n_asked,
        outcomes=product.outcomes,
        dropped=product.dropped,
        rows=product.n_rows,
        bytes=product.digest.n_bytes,
        sha256=product.digest.sha256,
    )


def _soft(task: Task, ledger: Ledger, journal: Path) -> "SoftLabels":
    from tutelage.generation.soft_cache import write_soft  # brings torch along, which nothing else here needs

    return write_soft(task, ledger, journal)


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
    for step in card.dropped:
        failed = {why: n for why, n in step.reasons.items() if why.startswith(FAILED)}
        if failed:
            first = next(example for example in step.examples if example["why"] in failed)
            found = ", ".join(f"{n}: {why}" for why, n in failed.items())
            more = f" {first['about']}" if "about" in first else ""
            again = "the answers are safe; repair it and rerun, nothing is asked again"
            console.warning("FUNCTION", f"{step.step}: {found} (first: {first['prompt']}{more}); {again}")
    if card.terms is None:
        found = f"no terms of use recorded for the outputs of {card.model}"
        console.warning("TERMS_UNKNOWN", f"{found}; the card says so (teacher.api.terms)")
