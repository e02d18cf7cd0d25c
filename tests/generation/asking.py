"""Recipes that ask a scripted endpoint, what they leave behind, and what must hold of every journal."""

import json
from pathlib import Path
from typing import Any

import tutelage
from tutelage.data.answers import ROWS
from tutelage.errors import TutelageError
from tutelage.generation import journal as journals
from tutelage.generation.journal import NAME, Record
from tutelage.generation.ledger import PICO, Ledger
from tutelage.verbs.generate import Generated


def prompts_file(folder: Path, n: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"What is {i} and {i}?", "answer": str(2 * i)}) + "\n" for i in range(n))
    )
    return path


def recipe(folder: Path, url: str, *, n: int = 6, api: dict[str, Any] | None = None, **generate: Any) -> dict[str, Any]:
    """`n` prompts of about 70 bytes to `url`, at 1 and 2 dollars a million tokens, 20 tokens an answer."""
    path = prompts_file(folder, n)
    asked: dict[str, Any] = {
        "prompts": {"jsonl": str(path), "prompt": "prompt", "answer": "answer"},
        "max_tokens": 20,
        "budget_usd": 1.0,
        "price": {"prompt_usd": 1.0, "answer_usd": 2.0},
    }
    endpoint = {"base_url": url, "model": "m", "timeout_s": 5.0, "concurrency": 4, "terms": "none", **(api or {})}
    return {
        "teacher": {"api": endpoint, "answers": str(folder / "answers")},
        "student": "somewhere/a-student",
        "loss": "cross_entropy",
        "training": {"steps": 1},
        "generate": {key: value for key, value in {**asked, **generate}.items() if value is not None},
    }


def generate(folder: Path, url: str, **fields: Any) -> Generated:
    return tutelage.generate(recipe(folder, url, **fields))


def outcome(folder: Path, url: str, **fields: Any) -> Generated | TutelageError:
    """What `generate` gives, or the error it ends with."""
    try:
        return generate(folder, url, **fields)
    except TutelageError as error:
        return error


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers" / ROWS).read_bytes().splitlines()]


def row_bytes(folder: Path) -> bytes:
    return (folder / "answers" / ROWS).read_bytes()


def ledger_of(folder: Path, *, cap_usd: float | None = None, max_requests: int | None = None) -> Ledger:
    """The ledger of a journal, whose invariants hold at each of its records."""
    ledger, final = Ledger(), set[str]()

    def visit(record: Record) -> None:
        ledger.apply(record)
        if cap_usd is not None:
            assert ledger.settled + ledger.reserved <= cap_usd * PICO
        if max_requests is not None:
            assert ledger.n_spent + len(ledger.open) <= max_requests
        if record.kind == "reserved":
            assert record.fields["key"] not in final, "an acknowledged answer is asked again"
        if record.kind == "parsed" and record.fields["final"]:
            assert record.fields["key"] not in final, "two terminal records"
            final.add(record.fields["key"])

    extent = journals.read(folder / "answers" / NAME, visit)
    assert not extent.damages
    return ledger
