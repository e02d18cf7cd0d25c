"""Task accuracy: the held-out prompts of a set of answers, answered by every model and judged by the set's verifiers.

The teacher's answers are those that were bought (all samples, dropped ones too); a model of the run answers each prompt
once, greedily.  Differences are paired by prompt.  evaluation/answers.jsonl holds every text with its verdict, so that
each number can be counted again.  contingency.py sets the teacher's answers against each model's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tutelage import io, reading
from tutelage.evaluation import stats
from tutelage.evaluation.contingency import Contingency, contingencies
from tutelage.types import Estimate

TASKS, ANSWERS = "tasks.json", "answers.jsonl"
RIGHT, JSON_TEXT = "right_answers", "valid_json"
LABELS = {RIGHT: "Right answers", JSON_TEXT: "Valid JSON"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One model's answers to one prompt: of `n` so many were right, and so many JSON; `text` where it is one answer."""

    prompt: int
    n: int
    right: int
    json_texts: int
    text: str = ""
    why: str = ""
    wrong: tuple[str, ...] = ()  # what the wrong answers say, as the verifier reads them; "" where it reads nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What was measured; `models` keeps the order of the table, the teacher first where it was asked."""

    n_prompts: int
    n_held_out: int  # prompts that could have been asked
    max_tokens: int
    verify: tuple[dict[str, Any], ...]
    estimates: dict[str, dict[str, Estimate]]  # model -> metric -> estimate
    compared: tuple[stats.Compared, ...]
    choices: int | None = None  # how many a question has to choose from, where that is what is asked
    contingencies: tuple[Contingency, ...] = ()  # the teacher's answers against each model's

    @property
    def models(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(self.estimates)

    def difference(self, metric: str, *, first: str, second: str) -> stats.Difference | None:
        """metric(first) - metric(second), paired."""
        for c in self.compared:
            if c.metric == metric and (c.first, c.second) == (first, second):
                return c.difference
            if c.metric == metric and (c.first, c.second) == (second, first):
                return stats.negative(c.difference)
        return None

    def json(self) -> dict[str, Any]:
        """Plain JSON values; the error of a single prompt, which nobody knows, becomes null."""
        plain = asdict(self)
        for by_metric in plain["estimates"].values():
            for found in by_metric.values():
                found["stderr"] = found["stderr"] if found["stderr"] != float("inf") else None
        for found in (*plain["compared"], *plain["contingencies"]):
            own = found["difference"]
            own["stderr"] = own["stderr"] if own["stderr"] != float("inf") else None
        return plain


def result_of(
    judged: Mapping[str, Sequence[Judged]],
    *,
    n_held_out: int,
    max_tokens: int,
    verify: Sequence[dict[str, Any]],
    choices: int | None = None,
) -> TaskResult:
    """Every number from the verdicts alone; all models on the same prompts in the same order, the teacher first."""
    metrics = (RIGHT, JSON_TEXT) if any(one.get("json_schema") is not None for one in verify) else (RIGHT,)
    models = list(judged.items())
    measured = {name: {metric: _measured(rows, metric) for metric in metrics} for name, rows in judged.items()}
    return TaskResult(
        n_prompts=len(next(iter(judged.values()))),
        n_held_out=n_held_out,
        max_tokens=max_tokens,
        verify=tuple(verify),
        estimates={
            name: {metric: stats.estimate(found, "share") for metric, found in by_metric.items()}
            for name, by_metric in measured.items()
        },
        compared=tuple(
            stats.Compared(
                metric=metric,
                first=first,
                second=second,
                difference=stats.difference(measured[first][metric], measured[second][metric]),
            )
            for first, second in combinations(judged, 2)
            for metric in metrics
        ),
        choices=choices,
        contingencies=contingencies(models[0], models[1:], choices=choices),
    )


def _measured(rows: Sequence[Judged], metric: str) -> stats.Measured:
    shares = [(row.right if metric == RIGHT else row.json_texts) / row.n for row in rows]
    return stats.ratio(shares, [1.0] * len(rows))


# --- files ---
def write(folder: Path, judged: Mapping[str, Sequence[Judged]], result: TaskResult) -> None:
    """answers.jsonl first, then tasks.json."""
    io.write_text(folder / ANSWERS, "".join(line + "\n" for line in _lines(judged)))
    io.write_json(folder / TASKS, result.json())


def read(folder: Path) -> TaskResult | None:
    """The result of a folder, counted again from its verdicts; None where no task was measured."""
    if not (folder / TASKS).is_file():
        return None
    stored = reading.read_json(folder / TASKS)
    judged: dict[str, list[Judged]] = {}
    with (folder / ANSWERS).open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            wrong = tuple(record.pop("wrong", ()))
            judged.setdefault(record.pop("model"), []).append(Judged(**record, wrong=wrong))
    return result_of(
        judged,
        n_held_out=stored["n_held_out"],
        max_tokens=stored["max_tokens"],
        verify=tuple(stored["verify"]),
        choices=stored.get("choices"),
    )


def _lines(judged: Mapping[str, Sequence[Judged]]) -> Iterator[str]:
    for name, rows in judged.items():
        for row in rows:
            yield json.dumps({"model": name, **asdict(row)}, ensure_ascii=True)
