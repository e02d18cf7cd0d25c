"""The answers of a teacher that writes text, as `tutelage generate` leaves them: a folder of rows and their card.

answers.jsonl   a row a line, in the order of the prompts: messages, the answer last; or prompt and answer
answers.parquet where it was asked for: the same rows, for other programs
verdicts.jnl    where a step verifies: how many answers to each prompt were right, dropped ones too
soft/           where log-probabilities were asked for: a teacher cache, see generation/soft_cache.py
card.json       who was asked, how, what it cost, what was dropped and why, and the checksum of the rows
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from tutelage import reading
from tutelage.data.example import Example, Message, Reject, RowDefectError
from tutelage.data.row import example_of_row
from tutelage.errors import ConfigError, IntegrityError

FORMAT_VERSION = 1
ROWS, CARD = "answers.jsonl", "card.json"
PARQUET = "answers.parquet"  # the same rows, where they were asked for; see generation/parquet.py
VERDICTS = "verdicts.jnl"  # of every answer to every prompt; see generation/verdicts.py
SOFT = "soft"  # a teacher cache beside them: what an endpoint gave of its distributions


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dropped(_Part):
    """What one step of the selection dropped."""

    step: str
    n: int
    reasons: dict[str, int]
    examples: tuple[dict[str, str], ...]  # of the first ones: where, why, and the beginning of the text
    undecided: int = 0  # kept, because the step could not tell


class Asked(_Part):
    """One teacher: who it is, how it was asked and what came of it."""

    base_url: str | None = None  # of an endpoint
    model: str
    terms: str | None
    body: dict[str, JsonValue] = {}  # further fields of every request
    price: dict[str, float] | None = None  # its own, dollars for a million tokens
    asked: int  # different requests with a reply
    rows: int
    weights: str | None = None  # of a model on this machine: SHA-256 of its weights
    tokenizer: str | None = None
    template: str | None = None
    compute: dict[str, str] | None = None  # device and number format
    libraries: dict[str, str] | None = None


class Card(_Part):
    """The whole of card.json."""

    format_version: int = FORMAT_VERSION
    tutelage: str  # version
    base_url: str
    model: str  # as asked
    teachers: dict[str, Asked]  # by name; a single one has none
    models: dict[str, int]  # as returned -> answers
    terms: str | None  # of use, as the user declared them
    sampling: dict[str, JsonValue]
    template: str  # SHA-256 of how a prompt becomes a request
    select: tuple[dict[str, JsonValue], ...]
    select_files: dict[str, str] = {}  # what its steps have read, such as a function: name -> SHA-256
    judge: dict[str, JsonValue] | None = None  # the model that chose among the answers: where, which, its prompt's hash
    price: dict[str, float] | None  # dollars for a million tokens
    spent_usd: float | None  # over all calls, answers that were dropped and lost ones included
    requests: int  # that were paid, or may have been
    lost: int  # of them under way when a process died
    first_answer: str
    last_answer: str
    prompts: int
    rejected_prompts: int
    samples: int
    identity: str  # SHA-256 of everything that was to be asked, and of the selection
    asked: int  # different requests
    outcomes: dict[str, int]  # of those with a reply; answer, truncated, refused, …
    dropped: tuple[Dropped, ...]
    rows: int
    bytes: int
    sha256: str
    sha256_of_this: str = ""

    def checksum(self) -> str:
        """SHA-256 of everything else in the card."""
        content = self.model_dump(mode="json", exclude={"sha256_of_this"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def signed(self) -> "Card":
        """The same with its own checksum."""
        return self.model_copy(update={"sha256_of_this": self.checksum()})


def read_card(folder: Path) -> Card:
    """The card of a finished set; ConfigError[ANSWERS_ABSENT], or IntegrityError for a damaged or newer one."""
    if not (folder / CARD).is_file():
        raise ConfigError(
            "ANSWERS_ABSENT", f"{folder} holds no finished answers; write them first: tutelage generate RECIPE"
        )
    content = reading.read_json(folder / CARD)
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        found = f"{folder}: answers of format {version}, this tutelage reads up to {FORMAT_VERSION}"
        raise IntegrityError("FORMAT_VERSION", f"{found}; run: pip install -U tutelage")
    try:
        card = Card.model_validate(content)
    except ValidationError as error:
        raise _damaged(folder, f"{CARD} is damaged ({error.error_count()} fields)") from error
    if card.checksum() != card.sha256_of_this:
        raise _damaged(folder, f"{CARD} does not have its own checksum")
    return card


def verify(folder: Path) -> Card:
    """The card, after every byte of the rows was compared with it."""
    card, path = read_card(folder), folder / ROWS
    size = path.stat().st_size if path.is_file() else 0
    if size < card.bytes:
        n_rows = path.read_bytes().count(b"\n") if size else 0
        again = "write it again, nothing is asked twice: tutelage generate RECIPE"
        raise IntegrityError("TRUNCATED", f"{path} has {n_rows} of {card.rows} rows; {again}")
    if reading.sha256_file(path) != card.sha256:
        raise _damaged(folder, f"{ROWS} is not what {CARD} says")
    return card


def _damaged(folder: Path, what: str) -> IntegrityError:
    return IntegrityError(
        "CHECKSUM", f"{folder}: {what}; write it again, nothing is asked twice: tutelage generate RECIPE"
    )


def read_answers(folder: Path, *, source: str, reasoning: bool) -> Iterator[Example | Reject]:
    """The verified rows; with `reasoning` the teacher's stands before each answer, in think tags."""
    verify(folder)
    path = folder / ROWS
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            name = f"{path}:{number}"
            try:
                yield _example(json.loads(line), source=source, name=name, reasoning=reasoning)
            except RowDefectError as defect:
                yield Reject(source=source, name=name, reason=str(defect))


def example_of(row: dict[str, Any]) -> Example:
    """The example in one row of answers.jsonl, or in a line of its fields; its `document` names the prompt."""
    return _example(row, source="", name="", reasoning=False)


def _example(row: dict[str, Any], *, source: str, name: str, reasoning: bool) -> Example:
    thought = str(row.get("reasoning", "")) if reasoning else ""
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    if "messages" in row:
        *asked, last = row["messages"]
        turns = tuple(Message(turn["role"], turn["content"]) for turn in asked)
        answer = Message("assistant", before + last["content"])
        group = json.dumps([[m.role, _folded(m.content)] for m in turns])
        return Example(source=source, name=name, messages=(*turns, answer), group=group)
    if "text" in row:  # given, and scored as it stands: no end was scored
        group = json.dumps([row.get("source", ""), row.get("document", "")])
        example = example_of_row(row, {"text": "text"}, source=source, name=name)
        return Example(source=source, name=name, text=example.text, group=group, is_text=True, is_cut=True)
    columns = {"prompt": "prompt", "answer": "answer"}
    example = example_of_row({**row, "answer": before + row["answer"]}, columns, source=source, name=name)
    return Example(
        source=source,
        name=name,
        prompt=example.prompt,
        answer=example.answer,
        group=_folded(example.prompt),
        is_text=True,
        is_cut=row.get("finish_reason") == "length",
    )


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
