"""From the journal to the finished set: the rows in the order of the prompts, and the card that accounts for all."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tutelage import io
from tutelage.data.answers import CARD, ROWS, Card, Dropped
from tutelage.generation import reply as replies
from tutelage.generation.journal import fields_at
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import Ledger, Place
from tutelage.generation.request import Request
from tutelage.generation.select.best import Score
from tutelage.generation.selection import Answered, Selection
from tutelage.generation.work import body_of
from tutelage.recipe.generation import Step

_LINES = 1000  # of one write


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
    files: dict[str, str]  # what the selection has read besides the recipe: name -> SHA-256


def row_of(request: Request, reply: replies.Reply) -> dict[str, io.Json]:
    """One line of answers.jsonl."""
    prompt = request.prompt
    row: dict[str, io.Json] = {"id": request.key, "source": prompt.source, "sample": request.sample}
    if request.sampling.given is not None:
        row |= {"text": prompt.text, "document": Path(prompt.name).name}
    elif prompt.messages:
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
    scores: Score | None = None,
) -> Product:
    """Writes answers.jsonl from what the journal holds; the same bytes whenever and in whatever order it came.

    `optional` names the teachers whose answers are whole without a finish_reason.
    """
    selection, outcomes, models = Selection(steps, scores=scores), Counter[str](), Counter[str]()
    asked, rows = Counter[str](), Counter[str]()

    def lines() -> Iterator[bytes]:
        answered = answered_of(requests, ledger=ledger, journal=journal, optional=optional)
        for _, group in itertools.groupby(answered, key=lambda one: one.request.prompt):
            of_prompt = list(group)
            outcomes.update(ledger.final[one.request.key][0] for one in of_prompt)
            models.update(one.reply.model for one in of_prompt)
            asked.update(one.request.teacher for one in of_prompt)
            for one in selection.kept(of_prompt):
                rows[one.request.teacher] += 1
                row = row_of(one.request, one.reply)
                yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    try:
        digest = io.write_pieces(folder / ROWS, _blocks(lines()))
    finally:
        selection.close()
    return Product(
        n_rows=rows.total(),
        n_asked=outcomes.total(),
        digest=digest,
        outcomes=dict(sorted(outcomes.items())),
        models=dict(sorted(models.items())),
        by_teacher={name: (n, rows[name]) for name, n in asked.items()},
        dropped=selection.dropped(),
        files=selection.files,
    )


def answered_of(
    requests: Iterable[Request], *, ledger: Ledger, journal: Path, optional: frozenset[str]
) -> Iterator[Answered]:
    """Every request that has a reply with it, once, in the order of the prompts."""
    seen = KeyTable()
    for request in requests:
        if request.key in ledger.final and seen.add(request.key):
            _, place = ledger.final[request.key]
            scored, is_whole = request.sampling.given is not None, request.teacher in optional
            reply = reply_at(journal, place, optional=is_whole, scored=scored)
            yield Answered(request=request, reply=reply)


def reply_at(journal: Path, place: Place, *, optional: bool, scored: bool = False) -> replies.Reply:
    """The reply at a place of the journal."""
    fields = fields_at(journal, place.offset, place.n_bytes)
    return replies.parse(body_of(fields), status=fields["status"], finish_reason_optional=optional, scored=scored)


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
