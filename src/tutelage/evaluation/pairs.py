"""Files of paired sentences: JSON lines, CSV with a head, or one JSON value, as published or in the user's own shape.

shape           the stereotypical text             the other             category
own             stereotype                         anti_stereotype       category
CrowS-Pairs     sent_more                          sent_less             bias_type
WinoBias style  pro_stereotyped                    anti_stereotyped      category
StereoSet       of sentences: gold_label           anti-stereotype       bias_type
                stereotype

StereoSet's own file is one value, `{"data": {"intersentence": [...], "intrasentence": [...]}}`; a list serves too.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tutelage.data import files
from tutelage.data.example import Reject, RowDefectError
from tutelage.data.patterns import find
from tutelage.data.values import sound
from tutelage.errors import IntegrityError

_SHAPES = (
    ("stereotype", "anti_stereotype"),
    ("sent_more", "sent_less"),
    ("pro_stereotyped", "anti_stereotyped"),
)
_CATEGORIES = ("category", "bias_type", "group")
_BLANK = "BLANK"  # in StereoSet's context: the sentences are whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two texts that differ in whom they speak of; `name` is where they stand."""

    name: str
    stereotype: str
    other: str
    category: str = ""


def read(patterns: Sequence[str]) -> dict[str, list[Pair]]:
    """The pairs of each file, by as much of its path as tells it apart.

    Raises IntegrityError[DATA_READ] for a row that is no pair, and for a file that cannot be read.
    """
    paths = find(patterns)
    return {_told_apart(path, paths): list(_pairs(path)) for path in paths}


def _told_apart(path: Path, paths: Sequence[Path]) -> str:
    """The last parts of a path that no other one ends in."""
    ends = ("/".join(path.parts[-n:]) for n in range(1, len(path.parts)))
    alone = (end for end in ends if sum(f"/{other.as_posix()}".endswith(f"/{end}") for other in paths) == 1)
    return next(alone, str(path))


def _pairs(path: Path) -> Iterator[Pair]:
    n_pairs = 0
    for name, row in _READERS.get(path.suffix, _of_jsonl)(path):
        try:
            yield _pair(row, name=name)
        except RowDefectError as defect:
            raise IntegrityError(
                "DATA_READ",
                f"{name}: {defect}; expected the columns stereotype and anti_stereotype, sent_more and sent_less, "
                "pro_stereotyped and anti_stereotyped, or sentences with their gold_label",
            ) from None
        n_pairs += 1
    if not n_pairs:
        raise IntegrityError("DATA_READ", f"{path} holds no pair; remove it from evaluation.probes or fill it")


def _of_csv(path: Path) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(StringIO(files.whole_text(path), newline=""))
    try:
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise IntegrityError("DATA_READ", f"{path}:{reader.line_num}: {error}; repair the row or remove it") from None


def _of_json(path: Path) -> Iterator[tuple[str, object]]:
    """One value: a list of pairs, or StereoSet's lists of them by kind; else JSON lines by another name."""
    try:
        value = json.loads(files.whole_text(path))
    except (ValueError, RecursionError):
        value = None
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, dict | list):
        yield from _of_jsonl(path)
        return
    for kind, rows in data.items() if isinstance(data, dict) else [("", data)]:
        if not isinstance(rows, list):
            found = f"data.{kind} is no list ({type(rows).__name__})"
            raise IntegrityError("DATA_READ", f"{path}: {found}; expected StereoSet's lists of pairs")
        yield from ((f"{path}:{kind}[{i}]", row) for i, row in enumerate(rows))


def _of_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    for row in files.read_rows(path, source="evaluation.probes"):
        if isinstance(row, Reject):
            raise IntegrityError("DATA_READ", f"{row.name}: {row.reason}; repair the line or remove it")
        yield row.name, row.content


_READERS = {".csv": _of_csv, ".json": _of_json}


def _pair(row: object, *, name: str) -> Pair:
    if not isinstance(row, Mapping):
        raise RowDefectError("a pair must be an object")
    category = next((str(row[column]) for column in _CATEGORIES if row.get(column)), "")
    if isinstance(row.get("sentences"), list):
        first, second = _labelled(row, "stereotype"), _labelled(row, "anti-stereotype")
    else:
        shape = next((shape for shape in _SHAPES if all(isinstance(row.get(column), str) for column in shape)), None)
        if shape is None:
            raise RowDefectError(f"no pair of texts among {', '.join(map(str, row)) or 'no columns'}")
        first, second = str(row[shape[0]]), str(row[shape[1]])
    if not first.strip() or not second.strip():
        raise RowDefectError("an empty text")
    return Pair(name=name, stereotype=sound(first, "a text"), other=sound(second, "a text"), category=category)


def _labelled(row: Mapping[str, object], label: str) -> str:
    """StereoSet: a whole sentence, or one that follows its context."""
    sentences = row["sentences"]
    assert isinstance(sentences, list)
    found = [one for one in sentences if isinstance(one, dict) and one.get("gold_label") == label]
    if len(found) != 1 or not isinstance(found[0].get("sentence"), str):
        raise RowDefectError(f"{len(found)} sentences with the gold_label {label}, one is needed")
    context, sentence = row.get("context"), str(found[0]["sentence"])
    return sentence if not isinstance(context, str) or _BLANK in context else f"{context} {sentence}"
