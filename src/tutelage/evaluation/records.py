"""`evaluation/records.jsonl`: the raw scores, one line a set, model and sequence, from which every number follows.

Line 1 is the head: `format`, `teacher` (a name or null), and what the numbers of a line stand for,
`inverse_temperatures` and `cells` (by kind, their names).  A line with `facts` says of a set's rows their source and
length, and holds the excerpts that are shown.  Each other line has `set`, `model` and the fields of `SequenceScore`; a
cell is `[n_tokens, nll_nats, kl_nats, n_agree, worst]`, null where it is empty.  Floats are written so that reading
gives the same bits, so `recompute` is exact.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tutelage import io, reading
from tutelage.errors import IntegrityError
from tutelage.evaluation.cells import NAMES
from tutelage.evaluation.facts import Excerpt, SetFacts
from tutelage.evaluation.positions import INVERSE_TEMPERATURES
from tutelage.evaluation.sums import Cell, SequenceScore
from tutelage.evaluation.transfer import Cost, Scores, Transfer, transfer_of

FORMAT = 2
RECORDS = "records.jsonl"
TRANSFER = "transfer.json"


def write(folder: Path, scores: Scores, *, transfer: Transfer, facts: Mapping[str, SetFacts] | None = None) -> None:
    """`records.jsonl` first, then `transfer.json`: a transfer never stands without what it was made from."""
    written = lines(scores, transfer.teacher, facts=facts)
    io.write_text(folder / RECORDS, "".join(line + "\n" for line in written))
    io.write_json(folder / TRANSFER, transfer.json())


def read(folder: Path) -> Transfer:
    """The transfer of a folder, recomputed from its records and checked against `transfer.json`.

    Raises IntegrityError[REPORT_CHECK] when the two differ.
    """
    stored = reading.read_json(folder / TRANSFER)
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


def lines(scores: Scores, teacher: str | None, *, facts: Mapping[str, SetFacts] | None = None) -> Iterator[str]:
    """The records as lines of JSON, without line ends."""
    yield json.dumps({"format": FORMAT, "teacher": teacher, **_meaning()})
    for name, of_set in (facts or {}).items():
        yield json.dumps({"set": name, "facts": asdict(of_set)})
    for name, by_model in scores.items():
        for model, sequences in by_model.items():
            for s in sequences:
                yield json.dumps({"set": name, "model": model, **_record(s)})


def recompute(records: Iterable[str], *, costs: dict[str, dict[str, Any]] | None = None) -> Transfer:
    """The transfer from the lines of a records file; costs were measured, so they are taken as given.

    Raises IntegrityError[FORMAT_VERSION] for records of another version, [NO_SCORED_TOKENS] for none.
    """
    iterator = iter(records)
    head = json.loads(next(iterator, "{}"))
    _check_head(head)
    scores: Scores = {}
    facts: dict[str, SetFacts] = {}
    for line in iterator:
        record = json.loads(line)
        name = record.pop("set")
        if "facts" in record:
            facts[name] = _facts(record["facts"])
            continue
        scores.setdefault(name, {}).setdefault(record.pop("model"), []).append(score_of(record))
    if not scores:
        raise IntegrityError("NO_SCORED_TOKENS", "the records hold no sequence; run: tutelage evaluate RUN")
    known = {name: Cost(**c) for name, c in (costs or {}).items()}
    return transfer_of(scores, head["teacher"], costs=known, facts=facts)


def score_of(record: Mapping[str, Any]) -> SequenceScore:
    """A line of the records without its `set` and `model`."""
    plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    cells = {
        kind: tuple(_cell_of(cell) if cell is not None else None for cell in found)
        for kind, found in record["cells"].items()
    }
    return SequenceScore(**{**plain, "cells": cells})


def facts_in(lines: Iterable[Mapping[str, Any]]) -> dict[str, SetFacts]:
    """What the lines of a records file, read, say of each set's rows."""
    return {line["set"]: _facts(line["facts"]) for line in lines if "facts" in line}


def _cell_of(values: list[Any]) -> Cell:
    return Cell(**dict(zip(_CELL_FIELDS, values, strict=True)))


_CELL_FIELDS = tuple(f.name for f in fields(Cell))


def _record(s: SequenceScore) -> dict[str, Any]:
    cells = {
        kind: [[getattr(cell, name) for name in _CELL_FIELDS] if cell is not None else None for cell in found]
        for kind, found in s.cells.items()
    }
    return {**{f.name: getattr(s, f.name) for f in fields(s)}, "cells": cells}


def _facts(value: Mapping[str, Any]) -> SetFacts:
    excerpts = tuple(Excerpt(**e) for e in value["excerpts"])
    plain: Any = {k: tuple(v) for k, v in value.items()}
    return SetFacts(**{**plain, "excerpts": excerpts})


def _meaning() -> dict[str, Any]:
    """What the lines of this version stand for."""
    cells = {kind: list(names) for kind, names in NAMES.items()}
    return {"inverse_temperatures": list(INVERSE_TEMPERATURES), "cells": cells}


def _check_head(head: Mapping[str, Any]) -> None:
    found = head.get("format")
    if isinstance(found, int) and found < FORMAT:
        raise IntegrityError(
            "FORMAT_VERSION",
            f"records of format {found}, expected {FORMAT}: they lack sums that the report needs now; measure the run "
            "again: tutelage evaluate RUN --force",
        )
    if found != FORMAT or any(head.get(key) != value for key, value in _meaning().items()):
        raise IntegrityError(
            "FORMAT_VERSION",
            f"records of format {found}, this tutelage reads {FORMAT}; run: pip install -U tutelage",
        )


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
