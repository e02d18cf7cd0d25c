"""Tasks of EleutherAI's lm-evaluation-harness: every question under every model of a run, compared as our own prompts.

The harness asks and scores; from its answers follow the shares with errors that count questions, the paired differences
and, where a question has choices, who is right where the other is wrong (contingency.py).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage import io
from tutelage.evaluation import stats
from tutelage.evaluation.contingency import Contingency, contingencies
from tutelage.evaluation.json_values import finite
from tutelage.types import Estimate

HARNESS, RECORDS = "harness.json", "harness.jsonl"
ACCURACY = "acc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question of one task under one model: its metrics, and which of how many choices was taken (-1: none)."""

    task: str
    model: str
    question: int
    metrics: dict[str, float]
    chosen: int = -1
    n_choices: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """One task: by model and metric, each model against the first, and the cells where a question has choices."""

    name: str
    n_questions: int
    estimates: dict[str, dict[str, Estimate]]
    against_first: dict[str, dict[str, stats.Difference]]
    contingencies: tuple[Contingency, ...]

    def json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An answer as contingency.py reads it."""

    right: int
    wrong: tuple[str, ...]
    n: int = 1


def result_of(answers: Sequence[Answer]) -> tuple[TaskScores, ...]:
    """Every number from the answers alone; the first model is the teacher where there is one."""
    names = list(dict.fromkeys(answer.task for answer in answers))
    return tuple(_task(name, [answer for answer in answers if answer.task == name]) for name in names)


def _task(name: str, answers: Sequence[Answer]) -> TaskScores:
    by_model: dict[str, list[Answer]] = {}
    for answer in sorted(answers, key=lambda a: a.question):
        by_model.setdefault(answer.model, []).append(answer)
    models = [model for model in dict.fromkeys(answer.model for answer in answers)]
    # Of a question, a perplexity and the like are no shares, and their means are not what the harness reports.
    metrics = [m for m in by_model[models[0]][0].metrics if all(0 <= a.metrics.get(m, -1) <= 1 for a in answers)]
    measured = {
        model: {m: stats.ratio([a.metrics[m] for a in by_model[model]], [1.0] * len(by_model[model])) for m in metrics}
        for model in models
    }
    return TaskScores(
        name=name,
        n_questions=len(by_model[models[0]]),
        estimates={
            model: {m: stats.estimate(found, "share") for m, found in of_model.items()}
            for model, of_model in measured.items()
        },
        against_first={
            model: {m: stats.difference(measured[model][m], measured[models[0]][m]) for m in metrics}
            for model in models[1:]
        },
        contingencies=_contingencies([(model, by_model[model]) for model in models], is_accuracy=ACCURACY in metrics),
    )


def _contingencies(models: Sequence[tuple[str, Sequence[Answer]]], *, is_accuracy: bool) -> tuple[Contingency, ...]:
    """Nothing where questions have no choices, or where a metric other than accuracy is measured."""
    n_choices = [answer.n_choices for answer in models[0][1]]
    if not is_accuracy or not all(answer.n_choices for _, of_model in models for answer in of_model):
        return ()
    rows = [(name, [_chosen(answer) for answer in of_model]) for name, of_model in models]
    return contingencies(rows[0], rows[1:], choices=n_choices)


def _chosen(answer: Answer) -> _Chosen:
    right = answer.metrics[ACCURACY] > 0.5
    return _Chosen(right=int(right), wrong=() if right else (str(answer.chosen),))


# --- files ---
def write(folder: Path, answers: Sequence[Answer]) -> tuple[TaskScores, ...]:
    """harness.jsonl first, then harness.json; tasks that were asked before stay unless they were asked again."""
    asked = {answer.task for answer in answers}
    kept = [answer for answer in _answers(folder) if answer.task not in asked]
    result = result_of([*kept, *answers])
    io.write_text(folder / RECORDS, "".join(json.dumps(asdict(answer)) + "\n" for answer in (*kept, *answers)))
    io.write_json(folder / HARNESS, {"tasks": [one.json() for one in result]})
    return result


def read(folder: Path) -> tuple[TaskScores, ...]:
    """The result of a folder, from its answers; empty where no task was asked."""
    return result_of(_answers(folder))


def _answers(folder: Path) -> list[Answer]:
    if not (folder / RECORDS).is_file():
        return []
    with (folder / RECORDS).open(encoding="utf-8") as file:
        return [Answer(**json.loads(line)) for line in file]
