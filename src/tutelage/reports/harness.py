"""Tasks of the lm-evaluation-harness, as a table."""

import math
from collections.abc import Sequence

from tutelage import visible
from tutelage.evaluation.contingency import TWO_CHOICES
from tutelage.evaluation.harness import TaskScores
from tutelage.evaluation.stats import Difference
from tutelage.reports import numbers
from tutelage.reports.listed import DECIDED, Listed, marked, percent
from tutelage.reports.table import model_name

TITLE = "Tasks of the lm-evaluation-harness"
HEAD = (
    "",
    "Value",
    "Against the first, points",
    "Only the first right, %",
    "Only this right, %",
    "Same wrong choice, %",
)


def listed(tasks: Sequence[TaskScores]) -> Listed | None:
    """None where no task was asked."""
    return Listed(title=TITLE, note=note(tasks), head=HEAD, rows=rows(tasks)) if tasks else None


def note(tasks: Sequence[TaskScores]) -> str:
    """How it was measured."""
    counted = ", ".join(f"{task.name}: {visible.counted(task.n_questions, 'question')}" for task in tasks)
    of_two = any(cells.no_same_wrong == TWO_CHOICES for task in tasks for cells in task.contingencies)
    return (
        f"{counted}. In percent, ± one standard error and 95% intervals over questions; {DECIDED} more than noise "
        "(paired; the same wrong choice: more often than one of the wrong choices by chance"
        f"{f'; {TWO_CHOICES}: no finding, –' if of_two else ''})."
    )


def rows(tasks: Sequence[TaskScores]) -> list[list[str]]:
    """A row for each task, metric and model."""
    return [
        _row(task, model, metric)
        for task in tasks
        for metric in next(iter(task.estimates.values()))
        for model in task.estimates
    ]


def _row(task: TaskScores, model: str, metric: str) -> list[str]:
    found, against = task.estimates[model][metric], task.against_first.get(model, {}).get(metric)
    cells = next((one for one in task.contingencies if one.second == model and metric == "acc"), None)
    alike = cells.same_wrong if cells is not None else None
    return [
        f"{model_name(model)}, {task.name} {metric}",
        " ± ".join(numbers.estimate(found, n_decimals=1)),
        marked(f"{100 * against.value:+.1f} ± {_error(against)}", against.decided) if against else "–",
        percent(cells.only_first) if cells is not None else "–",
        percent(cells.only_second) if cells is not None else "–",
        marked(percent(alike.share), alike.decided) if alike is not None else "–",
    ]


def _error(found: Difference) -> str:
    return f"{100 * found.stderr:.1f}" if math.isfinite(found.stderr) else "?"
