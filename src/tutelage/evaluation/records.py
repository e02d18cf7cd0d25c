"""`evaluation/records.jsonl`: the raw scores, one line a set, model and sequence, from which every number follows.

Line 1 is `{"format": 1, "teacher": NAME or null}`; each other line has `set`, `model` and the fields of
`SequenceScore`.  Floats are written so that reading gives the same bits, so `recompute` is exact.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage import io
from tutelage.errors import IntegrityError
from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.transfer import Cost, Scores, Transfer, transfer_of

FORMAT = 1
RECORDS = "records.jsonl"
TRANSFER = "transfer.json"


def write(folder: Path, scores: Scores, *, transfer: Transfer) -> None:
    """`records.jsonl` first, then `transfer.json`: a transfer never stands without what it was made from."""
    io.write_text(folder / RECORDS, "".join(line + "\n" for line in lines(scores, transfer.teacher)))
    io.write_json(folder / TRANSFER, transfer.json())


def read(folder: Path) -> Transfer:
    """The transfer of a folder, recomputed from its records and checked against `transfer.json`.

    Raises IntegrityError[REPORT_CHECK] when the two differ.
    """
    stored = io.read_json(folder / TRANSFER)
    with (folder / RECORDS).open(encoding="utf-8") as file:
        transfer = recompute(file, costs=stored.get("costs", {}))
    found = transfer.json()
    for path, value in _leaves(found):
        if (other := _at(stored, path)) != value:
            raise IntegrityError(
                "REPORT_CHECK",
                f"{'.'.join(map(str, path))} is {other} in {folder / TRANSFER}, {value} recomputed from "
                f"{folder / RECORDS}; run: tutelage evaluate {folder.parent}",
            )
    return transfer


def lines(scores: Scores, teacher: str | None) -> Iterator[str]:
    """The records as lines of JSON, without line ends."""
    yield json.dumps({"format": FORMAT, "teacher": teacher})
    for name, by_model in scores.items():
        for model, sequences in by_model.items():
            for s in sequences:
                yield json.dumps({"set": name, "model": model, **asdict(s)})


def recompute(records: Iterable[str], *, costs: dict[str, dict[str, Any]] | None = None) -> Transfer:
    """The transfer from the lines of a records file; costs were measured, so they are taken as given."""
    iterator = iter(records)
    head = json.loads(next(iterator, "{}"))
    if head.get("format") != FORMAT:
        raise IntegrityError(
            "FORMAT_VERSION",
            f"records of format {head.get('format')}, this tutelage reads {FORMAT}; run: pip install -U tutelage",
        )
    scores: Scores = {}
    for line in iterator:
        record = json.loads(line)
        by_model = scores.setdefault(record.pop("set"), {})
        by_model.setdefault(record.pop("model"), []).append(_score(record))
    if not scores:
        raise IntegrityError("NO_SCORED_TOKENS", "the records hold no sequence; run: tutelage evaluate RUN")
    return transfer_of(scores, head["teacher"], costs={name: Cost(**c) for name, c in (costs or {}).items()})


def _score(record: dict[str, Any]) -> SequenceScore:
    fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return SequenceScore(**fields)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, i))
    else:
        yield path, value


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value
