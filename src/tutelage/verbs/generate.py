"""The verb `generate`: asks a teacher behind an API, pays no answer twice, and writes the set that students learn."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import __version__, console, io
from tutelage.data.answers import CARD, PARQUET, ROWS, SOFT, Card
from tutelage.errors import IntegrityError
from tutelage.generation import judging
from tutelage.generation import reply as replies
from tutelage.generation.accounts import asked, compute_paths
from tutelage.generation.batch_work import BatchWork
from tutelage.generation.budget import Price
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.judging import Scores
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import JUDGE, PICO, Ledger
from tutelage.generation.parquet import write_parquet
from tutelage.generation.product import Product, write_card, write_rows
from tutelage.generation.request import TEMPLATE_VERSION, Request
from tutelage.generation.select import FAILED
from tutelage.generation.selection import shown
from tutelage.generation.sending import Sender, cap_of, money
from tutelage.generation.task import Survey, Task, open_task
from tutelage.generation.verdicts import write_verdicts
from tutelage.generation.work import body_of, now
from tutelage.generation.writers import Writer
from tutelage.recipe import Recipe, load_recipe

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
        cost = f"{card.requests:,} requests" + (f", ${card.spent_usd:.6g} spent" if card.spent_usd is not None else "")
        now = "sent"  # more than came back, where some were tried again
        if not card.requests and all(teacher.weights for teacher in card.teachers.values()):
            cost, now = "nothing, written on this machine", "answers"
        lines = [
            f"answers: {self.path / ROWS}  ({card.rows:,} rows of {card.asked:,} answers to {card.prompts:,} prompts)",
            f"cost:    {cost}; {self.n_sent:,} {now} in this call",
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
        n_sent = _ask(task, journal, ledger, survey) + _ask_judge(task, journal, ledger) if ask else 0
        scores = Scores(judge=task.judge, ledger=ledger, journal=journal.path) if task.judge is not None else None
        product = write_rows(
            task.folder,
            task.sound(),
            ledger=ledger,
            journal=journal.path,
            steps=task.generate.select,
            optional=task.optional,
            scores=scores,
        )
        io.remove_file(task.folder / CARD)  # with it the set is there: it goes first, and comes last
        io.remove_tree(task.folder / SOFT)  # of the set before this one
        io.remove_file(task.folder / PARQUET)
        card = _card(task, survey, ledger, product, scores=scores)
        if task.generate.parquet:
            write_parquet(task.folder, card)
        write_verdicts(task, ledger, journal.path, card)
        try:
            soft = _soft(task, ledger, journal.path, card) if task.generate.top_logprobs is not None else None
        except IntegrityError:
            write_card(task.folder, card)  # the text can be learned without them
            raise
        card = write_card(task.folder, card)
    finally:
        journal.close()
    _warn(task, card, ledger)
    return Generated(path=task.folder, card=card, n_sent=n_sent, soft=soft)


# --- what is there already ---
def _begin(journal: Journal, ledger: Ledger, task: Task, survey: Survey) -> None:
    """A process begins; replies that the one before journalled and did not read are read now."""
    budget = task.budget
    outcomes = Counter(ledger.final[key][0] for key in survey.keys if key in ledger.final)
    n_done = outcomes.total()
    run: dict[str, Any] = {
        "at": now(),
        "tutelage": __version__,
        "base_url": task.base_url,
        "model": task.model,
        "compute": compute_paths(task.writers, ledger, is_finished=n_done == len(survey.keys)),
        "total": len(survey.keys),
        "done": n_done,
        "outcomes": dict(sorted(outcomes.items())),
        "models": {writer.name: writer.sampling.model for writer in task.writers},
        "cap": budget.cap,
        "max_requests": budget.max_requests,
    }
    records: list[tuple[str, Fields]] = [("run", run)]
    for key, (number, place) in ledger.raw.items():
        fields = journal.fields_at(place.offset, place.n_bytes)
        optional = _ends_without_reason(task, key, fields)
        given = task.generate.given is not None
        body, status = body_of(fields), fields["status"]
        reply = replies.parse(body, status=status, finish_reason_optional=optional, scored=given)
        price = fields.get("price")  # of the one who answered: each teacher, and the judge, has its own
        own = replace(budget, price=Price(prompt=price[0], answer=price[1]) if price is not None else None)
        paid = own.cost(reply.usage, reserved=ledger.open.get(number, 0)) if fields["status"] == 200 else 0
        parsed = {"id": number, "key": key, "paid": paid, "outcome": reply.outcome, "final": reply.is_final}
        parsed["spent"] = fields["status"] == 200
        if key not in survey.keys:
            parsed["old"] = True
        records.append(("parsed", parsed))
    for record in journal.commit(records):
        ledger.apply(record)
    settled = [mark for mark, job in ledger.jobs.items() if not job.ids & ledger.open.keys()]
    for record in journal.commit([("closed", {"job": mark}) for mark in settled]) if settled else ():
        ledger.apply(record)


def _ends_without_reason(task: Task, key: str, fields: Fields) -> bool:
    """Whether a reply is whole without a finish_reason, by who gave it."""
    if key.startswith(JUDGE):
        return task.judge is not None and task.judge.settings.api.finish_reason_optional
    return fields.get("teacher", "") in task.optional


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
    console.tell(f"asking {task.base_url} for {n_open:,} answers of {task.model}")
    if any(writer.api is not None for writer in task.writers):
        console.tell(cap_of(task.budget, ledger, most=task.most(ledger) if task.budget.price else 0))
    n_sent = 0
    with console.Progress("answers", total=len(survey.keys), done=len(survey.keys) - n_open) as bar:
        _fetch_jobs(task, journal, ledger, survey, bar=bar)
        for writer in task.writers:
            ask = _ask_local if writer.local is not None else _ask_remote
            n_sent += ask(task, writer, journal, ledger, bar=bar)
    return n_sent


def _fetch_jobs(task: Task, journal: Journal, ledger: Ledger, survey: Survey, *, bar: console.Progress) -> None:
    """Open batch jobs of all teachers, before anybody is asked: what they reserve may turn out cheaper."""
    for writer in task.writers:
        if writer.api is not None and BatchWork.open_jobs(writer, ledger):
            work = BatchWork(writer, journal=journal, ledger=ledger, bar=bar, wanted=survey.keys)
            work.run(task.sound, only_fetch=True)
    for job in ledger.jobs.values():
        whose = f"of teacher {job.teacher or '(the only one)'} at {job.url}"
        found = (
            f"batch job {job.batch or 'that was being handed in'} {whose} is open, and the recipe asks no such teacher"
        )
        console.warning("API_BATCH", f"{found}; its answers stay unasked until it is named so again")


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
        bar.advance(text=money(ledger, writer.budget))

    def requests() -> Iterator[Request]:
        return (request for request in task.sound() if request.teacher == writer.name)

    api, endpoint = writer.api, writer.endpoint
    assert api is not None and endpoint is not None
    if api.transport == "batch":
        return BatchWork(writer, journal=journal, ledger=ledger, bar=bar).run(requests, only_fetch=False)
    sender = Sender(
        api=api,
        endpoint=endpoint,
        budget=writer.budget,
        total=bar.total,
        on_answer=on_answer,
        top_logprobs=task.generate.top_logprobs,
    )
    return sender.send(requests(), journal=journal, ledger=ledger)


def _ask_judge(task: Task, journal: Journal, ledger: Ledger) -> int:
    """Sends what the judge was not asked yet about the answers that are there; the number of requests."""
    judge = task.judge
    if judge is None:
        return 0
    optional, path = task.optional, journal.path
    keys = judging.wanted(judge, task.sound(), ledger=ledger, journal=path, optional=optional)

    def requests() -> Iterator[Request]:
        return judging.requests_of(judge, keys, task.sound(), ledger=ledger, journal=path, optional=optional)

    wanted = KeyTable()
    for request in requests():
        wanted.add(request.key)
    n_open = sum(key not in ledger.final for key in wanted)
    if not n_open:
        return 0
    api = judge.settings.api
    console.tell(f"asking {judge.endpoint.base_url} to judge {n_open:,} answers by {api.model}")
    with console.Progress("judged", total=len(wanted), done=len(wanted) - n_open) as bar:

        def on_answer() -> None:
            bar.advance(text=money(ledger, judge.budget))

        total = len(ledger.final) + n_open
        sender = Sender(api=api, endpoint=judge.endpoint, budget=judge.budget, total=total, on_answer=on_answer)
        return sender.send(requests(), journal=journal, ledger=ledger)


# --- afterwards ---
def _card(task: Task, survey: Survey, ledger: Ledger, product: Product, *, scores: Scores | None) -> Card:
    wanted, single = task.generate, task.writers[0] if len(task.writers) == 1 else None
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
            "given",
        },
    )
    return Card(
        tutelage=__version__,
        base_url=task.base_url,
        model=task.model,
        teachers={writer.name: asked(writer, ledger, product) for writer in task.writers},
        models=product.models,
        terms=single.terms if single is not None else None,
        sampling={
            **sampling,
            "templates": [t for t in templates if t],
            "body": dict(single.sampling.body) if single is not None else {},
        },
        template=hashlib.sha256(repr(sorted(how.items())).encode()).hexdigest(),
        select=tuple(shown(step.model_dump(mode="json")) for step in wanted.select),
        select_files=product.files,
        judge=scores.for_card() if scores is not None else None,
        price=wanted.price.model_dump() if wanted.price is not None else None,
        spent_usd=ledger.settled / PICO
        if any(each.budget.price for each in (*task.writers, task.judge) if each)
        else None,
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


def _soft(task: Task, ledger: Ledger, journal: Path, card: Card) -> "SoftLabels":
    from tutelage.generation.soft_cache import write_soft  # brings torch along, which nothing else here needs

    return write_soft(task, ledger, journal, card)


def _warn(task: Task, card: Card, ledger: Ledger) -> None:
    """What a user should look at, once each."""
    outcomes = dict(card.outcomes)
    whole = {"answer", "scored", "truncated", "incomplete"}
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
    for writer in task.writers:
        if writer.terms is None:
            found = f"no terms of use recorded for the outputs of {writer.model}"
            field = "teacher.api.terms" if writer.api is not None else "teacher.terms"
            console.warning("TERMS_UNKNOWN", f"{found}; the card says so ({field})")
