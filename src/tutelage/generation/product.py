"""From the journal to the finished set: the rows in the order of the prompts, and the card that accounts for all."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tutelage import io, plugins
from tutelage.data.answers import CARD, ROWS, Card, Dropped
from tutelage.generation import reply as replies
from tutelage.generation.journal import fields_at
from tutelage.generation.ledger import Ledger, Place
from tutelage.generation.request import Request
from tutelage.generation.select import Candidate, Judge
from tutelage.generation.work import body_of
from tutelage.recipe.generation import Step

N_EXAMPLES = 3  # of what each step dropped
_SHOWN = 200  # characters of one
_LINES = 1000  # of one write


@dataclass(slots=True)
class _Tally:
    """What one step dropped so far."""

    step: str
    n: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, request: Request, why: str, text: str) -> None:
        self.n += 1
        self.reasons[why] += 1
        if len(self.examples) < N_EXAMPLES:
            self.examples.append({"prompt": Path(request.prompt.name).name, "why": why, "text": text[:_SHOWN]})

    def as_dropped(self) -> Dropped:
        reasons = dict(sorted(self.reasons.items()))
        return Dropped(step=self.step, n=self.n, reasons=reasons, examples=tuple(self.examples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What was written."""

    n_rows: int
    n_asked: int  # different requests that have a reply
    digest: io.Digest
    outcomes: dict[str, int]
    models: dict[str, int]
    by_teacher: dict[str, tuple[int, int]]  # its name -> answers, rows
    dropped: tuple[Dropped, ...]


class Selection:
    """The steps of a recipe in their order; the first that has something against an answer drops it."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps: list[tuple[Judge, _Tally]] = []
        for step in steps:
            ((name, settings),) = ((n, s) for n in type(step).model_fields if (s := getattr(step, n)) is not None)
            build = plugins.load("generation/select", name).build
            self._steps.append((build(settings), _Tally(name)))
        self._no_answer = _Tally("no_answer")

    def keeps(self, request: Request, reply: replies.Reply) -> bool:
        """Whether the answer stays; what is dropped is counted."""
        if reply.outcome not in ("answer", "truncated") or not reply.text.strip():
            why = reply.outcome if reply.outcome != "truncated" else "truncated before the answer"
            self._no_answer.add(request, why, reply.reasoning)
            return False
        candidate = Candidate(
            text=reply.text,
            outcome=reply.outcome,
            reference=request.prompt.reference,
            asked=request.prompt.texts,
        )
        for judge, tally in self._steps:
            if why := judge(candidate):
                tally.add(request, why, reply.text)
                return False
        return True

    def dropped(self) -> tuple[Dropped, ...]:
        """Every step, those that dropped nothing too."""
        return tuple(tally.as_dropped() for tally in (self._no_answer, *(tally for _, tally in self._steps)))


def row_of(request: Request, reply: replies.Reply) -> dict[str, io.Json]:
    """One line of answers.jsonl."""
    prompt = request.prompt
    row: dict[str, io.Json] = {"id": request.key, "source": prompt.source, "sample": request.sample}
    if prompt.messages:
        asked = [{"role": role, "content": content} for role, content in prompt.messages]
        row["messages"] = [*asked, {"role": "assistant", "content": reply.text}]
    else:
        row |= {"prompt": prompt.text, "answer": reply.text}
    if reply.reasoning:
        row["reasoning"] = reply.reasoning
    if prompt.reference:
        row["reference"] = prompt.reference
    if request.teacher:
        row["teacher"] = request.teacher
    return {**row, "finish_reason": reply.finish_reason, "model": reply.model}


def write_rows(
    folder: Path,
    requests: Iterable[Request],
    *,
    ledger: Ledger,
    journal: Path,
    steps: Iterable[Step],
    optional: frozenset[str],
) -> Product:
    """Writes answers.jsonl from what the journal holds; the same bytes whenever and in whatever order it came.

    `optional` names the teachers whose answers are whole without a finish_reason.
    """
    selection, outcomes, models, seen = Selection(steps), Counter[str](), Counter[str](), set[str]()
    asked, kept = Counter[str](), Counter[str]()
    n_rows = 0

    def lines() -> Iterator[bytes]:
        nonlocal n_rows
        for request in requests:
            if request.key in seen or request.key not in ledger.final:
                continue
            seen.add(request.key)
            outcome, place = ledger.final[request.key]
            reply = _reply_at(journal, place, optional=request.teacher in optional)
            outcomes[outcome] += 1
            models[reply.model] += 1
            asked[request.teacher] += 1
            if selection.keeps(request, reply):
                n_rows += 1
                kept[request.teacher] += 1
                yield json.dumps(row_of(request, reply), ensure_ascii=False, allow_nan=False).encode() + b"\n"

    digest = io.write_pieces(folder / ROWS, _blocks(lines()))
    return Product(
        n_rows=n_rows,
        n_asked=len(seen),
        digest=digest,
        outcomes=dict(sorted(outcomes.items())),
        models=dict(sorted(models.items())),
        by_teacher={name: (n, kept[name]) for name, n in asked.items()},
        dropped=selection.dropped(),
    )


def _reply_at(journal: Path, place: Place, *, optional: bool) -> replies.Reply:
    fields = fields_at(journal, place.offset, place.n_bytes)
    return replies.parse(body_of(fields), status=fields["status"], finish_reason_optional=optional)


def _blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    block: list[bytes] = []
    for line in lines:
        block.append(line)
        if len(block) >= _LINES:
            yield b"".join(block)
            block = []
    yield b"".join(block)


def write_card(folder: Path, card: Card) -> Card:
    """Writes card.json, signed; it comes after the rows, and only with it the set is there."""
    signed = card.signed()
    io.write_json(folder / CARD, signed.model_dump(mode="json"))
    return signed
