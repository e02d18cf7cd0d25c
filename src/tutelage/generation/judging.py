"""A judge: another model gives each answer that it is asked about a score, for `best`.

Its requests go through the journal and under the cap of the answers; their keys begin with `judge:`.  A prompt whose
answers all stay anyway is not judged, and the same answer to the same prompt is judged once.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError
from tutelage.generation.budget import Budget, Price
from tutelage.generation.endpoint import Endpoint
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import JUDGE, Ledger
from tutelage.generation.product import answered_of, reply_at
from tutelage.generation.request import Prompt, Request, Sampling, request_of
from tutelage.generation.select import Candidate, Verdict
from tutelage.generation.selection import Selection
from tutelage.generation.templates import rendered
from tutelage.recipe.column_text import parse
from tutelage.recipe.generation import Best, JudgeModel, Step

PROMPT = """\
Judge how well the answer does what the question asks: correct first of all, then complete and clear.
{reference}
<question>
{question}
</question>

<answer>
{answer}
</answer>

Give reasons in a few sentences. End with one line "Score: N", where N is a number from 0 (useless) to 10 (perfect)."""
NAMES = ("question", "answer", "reference")
_REFERENCE = "The right answer is known: {reference}\n"
_SCORE = re.compile(r"\bscore\b[^\w\-\u2212]{0,6}(\d{1,4}(?:\.\d+)?)(?!\d)", re.IGNORECASE)
_BEST = 10.0
NOT_YET = "not judged yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A checked judge, ready to be asked."""

    settings: JudgeModel
    keep: int
    before: tuple[Step, ...]  # the steps whose survivors it judges
    endpoint: Endpoint
    budget: Budget

    def request(self, candidate: Candidate) -> Request:
        """What it is asked about an answer."""
        names = {"question": candidate.asked[-1], "answer": candidate.text, "reference": candidate.reference}
        template = self.settings.prompt
        if template is None:
            template = PROMPT
            known = _REFERENCE.replace("{reference}", candidate.reference)
            names["reference"] = known if candidate.reference.strip() else ""
        prompt = Prompt(source="judge", name=candidate.name, messages=(("user", rendered(parse(template), names)),))
        request = request_of(prompt, self._sampling(), sample=0)
        return replace(request, key=JUDGE + request.key)

    def _sampling(self) -> Sampling:
        api, settings = self.settings.api, self.settings
        return Sampling(
            model=api.model,
            place="loopback" if self.endpoint.is_loopback else self.endpoint.base_url,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            body=dict(api.body or {}),
        )

    def template_sha256(self) -> str:
        """The hash of its prompt."""
        return hashlib.sha256((self.settings.prompt or PROMPT).encode()).hexdigest()


def settings_of(steps: Iterable[Step]) -> Best | None:
    """The step that asks a judge; there is one at most."""
    return next((step.best for step in steps if step.best is not None and step.best.judge is not None), None)


def open_judge(steps: tuple[Step, ...], endpoint: Endpoint, *, budget: Budget) -> Judge:
    """The judge of a recipe that has one; its caps are those of the answers."""
    best = settings_of(steps)
    assert best is not None and best.judge is not None
    settings = best.judge
    if unknown := set(parse(settings.prompt or PROMPT).columns) - set(NAMES):
        found = f"generate.select: the judge's prompt names {{{min(unknown)}}}"
        raise ConfigError("CONFIG", f"{found}; it may name {{question}}, {{answer}} and {{reference}}")
    if "answer" not in parse(settings.prompt or PROMPT).columns:
        raise ConfigError("CONFIG", "generate.select: the judge's prompt does not name {answer}: what would it judge?")
    number = next(i for i, step in enumerate(steps) if step.best is best)
    price = settings.price
    own = Price.of(prompt_usd=price.prompt_usd, answer_usd=price.answer_usd) if price is not None else None
    return Judge(
        settings=settings,
        keep=best.keep,
        before=steps[:number],
        endpoint=endpoint,
        budget=replace(budget, price=own),
    )


def wanted(
    judge: Judge, requests: Iterable[Request], *, ledger: Ledger, journal: Path, optional: frozenset[str]
) -> KeyTable:
    """The keys of the answers that it is to judge: those that the steps before leave, where there is a choice."""
    selection, keys = Selection(judge.before), KeyTable()
    try:
        answered = answered_of(requests, ledger=ledger, journal=journal, optional=optional)
        for _, group in itertools.groupby(answered, key=lambda one: one.request.prompt):
            left = selection.kept(list(group))
            if len(left) > judge.keep:
                for one in left:
                    keys.add(one.request.key)
    finally:
        selection.close()
    return keys


def requests_of(
    judge: Judge,
    keys: KeyTable,
    requests: Iterable[Request],
    *,
    ledger: Ledger,
    journal: Path,
    optional: frozenset[str],
) -> Iterator[Request]:
    """What it is asked about the answers with these keys."""
    theirs = (request for request in requests if request.key in keys)
    for one in answered_of(theirs, ledger=ledger, journal=journal, optional=optional):
        yield judge.request(one.as_candidate())


def n_open(
    judge: Judge | None,
    requests: Callable[[], Iterable[Request]],
    *,
    ledger: Ledger,
    journal: Path,
    optional: frozenset[str],
) -> int:
    """How many answers it is still to be asked about."""
    if judge is None or not ledger.final:
        return 0
    keys = wanted(judge, requests(), ledger=ledger, journal=journal, optional=optional)
    asked = requests_of(judge, keys, requests(), ledger=ledger, journal=journal, optional=optional)
    seen = KeyTable()
    return sum(seen.add(request.key) for request in asked if request.key not in ledger.final)


@dataclass(slots=True, kw_only=True)
class Scores:
    """What the judge has said, from the journal."""

    judge: Judge
    ledger: Ledger
    journal: Path
    models: Counter[str] = field(default_factory=Counter)  # as returned

    def __call__(self, candidate: Candidate) -> float | Verdict:
        """The score of an answer, or why there is none."""
        key = self.judge.request(candidate).key
        if key not in self.ledger.final:
            return Verdict(why=NOT_YET)
        _, place = self.ledger.final[key]
        reply = reply_at(self.journal, place, optional=self.judge.settings.api.finish_reason_optional)
        self.models[reply.model] += 1
        if reply.outcome != "answer":
            return Verdict(why=f"the judge gave no answer: {reply.outcome}", about=reply.text)
        score = score_in(reply.text)
        return score if score is not None else Verdict(why="the judge's reply has no score", about=reply.text)

    def for_card(self) -> dict[str, Any]:
        """Who judged, at what price, and how it was asked."""
        api, price = self.judge.settings.api, self.judge.settings.price
        return {
            "base_url": self.judge.endpoint.base_url,
            "model": api.model,
            "models": dict(sorted(self.models.items())),
            "terms": api.terms,
            "price": price.model_dump() if price is not None else None,
            "template": self.judge.template_sha256(),
        }


def score_in(text: str) -> float | None:
    """The last `Score: N` of a reply from 0 to 10, or a reply that is nothing but such a number."""
    found = _SCORE.findall(text)
    try:
        score = float(found[-1] if found else text)
    except ValueError:
        return None
    return score if 0 <= score <= _BEST else None
