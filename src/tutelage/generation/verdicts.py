"""How often the teacher was right: every prompt with the verdicts on all its answers, those that were dropped too.

A set holds right answers alone, so it cannot tell how good its teacher is.  verdicts.jnl can: line 1 (`head`) is how it
was judged and which set it belongs to, each other line (`asked`) a prompt in the order of the recipe, the last one
(`end`) how many they are.  It is what `train` asks the student, as far as prompts were held out.  A line is framed like
a record of the journal: its checksum, its length, its JSON.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tutelage import io
from tutelage.data.answers import VERDICTS, Card
from tutelage.errors import IntegrityError
from tutelage.generation import reply as replies
from tutelage.generation.journal import Fields, Record, fields_at, line_of, record_of
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import Ledger
from tutelage.generation.product import row_of
from tutelage.generation.request import Request
from tutelage.generation.select import Candidate, Step, each, folded
from tutelage.generation.select.verify import build, choice, is_json, last_number
from tutelage.generation.task import Task
from tutelage.generation.work import body_of
from tutelage.recipe.generation import Verify

FORMAT = 1
_FIELDS = ("messages", "prompt", "answer")
Line = TypeVar("Line", bound=BaseModel)
Verifier: TypeAlias = Callable[[Candidate], str]
_LONG = 80  # characters; what is said in more is kept as a hash
_ANSWER = "x"  # stands where an answer will: prompts are kept in the shape of rows


class Head(BaseModel):
    """Line 1: the verifiers, all of which an answer has to pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    answers: str  # sha256 of the rows of the set
    teacher: str
    max_tokens: int
    verify: tuple[Verify, ...]


class Asked(BaseModel):
    """One prompt: a row of answers.jsonl with an x for its answer, and how its answers were judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: dict[str, Any]  # JSON
    reference: str
    answers: int  # final replies, whatever they were
    right: int
    json_texts: int  # answers that are JSON, right or not; counted where a schema is asked for
    wrong: tuple[str, ...] = ()  # what the wrong ones say (see `read_answer`); older sets lack it


@contextmanager
def verifier_of(verify: Sequence[Verify]) -> Iterator[Verifier]:
    """Says why an answer is wrong; "" when every verifier is content.  Ends functions of the user's at its end."""
    with ExitStack() as stack:
        built = [build(one) for one in verify]
        steps = [one if isinstance(one, Step) else Step(judge=each(one)) for one in built]
        for step in steps:
            stack.callback(step.close)

        def verifier(candidate: Candidate) -> str:
            said = (step.judge([candidate])[0] for step in steps)
            return next((why for one in said if (why := one if isinstance(one, str) else one.why)), "")

        yield verifier


def read_answer(text: str, verify: Sequence[Verify]) -> str:
    """What an answer says, as the verifiers read it: a number, a letter, else the text but for case and white space.

    "" where nothing can be read; of a long text its SHA-256, since it is only compared.
    """
    if any(one.number for one in verify):
        number = last_number(text)
        return "" if number is None else str(number.normalize())
    if any(one.choice for one in verify):
        return choice(text) or ""
    plain = folded(text)
    return plain if len(plain) <= _LONG else hashlib.sha256(plain.encode()).hexdigest()


def write_verdicts(task: Task, ledger: Ledger, journal: Path, card: Card) -> None:
    """Writes verdicts.jnl, or removes an old one where no step verifies."""
    verify = tuple(step.verify for step in task.generate.select if step.verify is not None)
    path = task.folder / VERDICTS
    if not verify:
        io.remove_file(path)
        return
    head = Head(answers=card.sha256, teacher=card.model, max_tokens=task.generate.max_tokens, verify=verify)
    with verifier_of(verify) as verifier:
        io.write_pieces(path, _lines(head, _asked(task, ledger, journal, verifier, verify=verify)))


def _lines(head: Head, asked: Iterator[Asked]) -> Iterator[bytes]:
    yield _framed("head", head.model_dump(mode="json", exclude_none=True))
    n_prompts = 0
    for one in asked:
        n_prompts += 1
        yield _framed("asked", one.model_dump(mode="json"))
    yield _framed("end", {"prompts": n_prompts})


def _framed(kind: str, fields: Fields) -> bytes:
    return f"{line_of(kind, fields)}\n".encode()


def _asked(
    task: Task, ledger: Ledger, journal: Path, verifier: Verifier, *, verify: Sequence[Verify]
) -> Iterator[Asked]:
    group: list[tuple[Request, replies.Reply]] = []
    seen = KeyTable()
    for request in task.sound():
        if request.key not in ledger.final or not seen.add(request.key):
            continue
        place = ledger.final[request.key][1]
        fields = fields_at(journal, place.offset, place.n_bytes)
        optional = request.teacher in task.optional
        reply = replies.parse(body_of(fields), status=fields["status"], finish_reason_optional=optional)
        if group and group[0][0].prompt is not request.prompt:
            yield _verdict(group, verifier, verify=verify)
            group = []
        group.append((request, reply))
    if group:
        yield _verdict(group, verifier, verify=verify)


def _verdict(group: list[tuple[Request, replies.Reply]], verifier: Verifier, *, verify: Sequence[Verify]) -> Asked:
    prompt = group[0][0].prompt
    whole = row_of(group[0][0], replies.Reply(outcome="answer", text=_ANSWER))
    row: dict[str, Any] = {name: whole[name] for name in _FIELDS if name in whole}
    found = [
        verifier(Candidate(text=r.text, outcome=r.outcome, reference=prompt.reference, asked=prompt.texts))
        for _, r in group
    ]
    is_text = [reply.outcome in ("answer", "truncated") for _, reply in group]
    right = [not why and text for why, text in zip(found, is_text, strict=True)]
    return Asked(
        row=row,
        reference=prompt.reference,
        answers=len(group),
        right=sum(right),
        json_texts=sum(text and is_json(reply.text) for text, (_, reply) in zip(is_text, group, strict=True)),
        wrong=tuple(
            read_answer(reply.text, verify) if text else ""
            for text, was_right, (_, reply) in zip(is_text, right, group, strict=True)
            if not was_right
        ),
    )


def read_verdicts(folder: Path, card: Card) -> tuple[Head, Iterator[Asked]] | None:
    """What was judged and how; None where nothing was, or where it belongs to another set than the card's."""
    path = folder / VERDICTS
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = _read_as(Head, _record(file.readline(), where=f"{path}:1"), where=f"{path}:1")
    return (head, _read(path)) if head.answers == card.sha256 else None


def _read(path: Path) -> Iterator[Asked]:
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            record = _record(line, where=f"{path}:{number}")
            if record.kind == "end" and record.fields == {"prompts": number - 2}:
                return
            yield _read_as(Asked, record, where=f"{path}:{number}")
    raise _damaged(f"{path} ends too early")


def _record(line: bytes, *, where: str) -> Record:
    record = record_of(line.removesuffix(b"\n"), 0)
    if record is None:
        raise _damaged(f"{where} does not have its own checksum")
    return record


def _read_as(kind: type[Line], record: Record, *, where: str) -> Line:
    try:
        return kind.model_validate(record.fields)
    except ValidationError as error:
        raise _damaged(f"{where} is no verdict ({error.error_count()} mistakes in it)") from error


def _damaged(found: str) -> IntegrityError:
    return IntegrityError(
        "DATA_READ", f"{found}: the file is damaged; write it anew: tutelage generate RECIPE --no-ask"
    )
