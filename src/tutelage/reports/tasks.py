"""Task accuracy as a table: who answers held-out prompts right, for a terminal and the HTML page."""

from tutelage import roles
from tutelage.evaluation.stats import Difference
from tutelage.evaluation.tasks import LABELS, RIGHT, TaskResult
from tutelage.reports.listed import DECIDED, Listed
from tutelage.reports.table import model_name

_TITLE = "Held-out prompts, answered"


def listed(result: TaskResult | None) -> Listed | None:
    """The table; None where no task was measured."""
    if result is None:
        return None
    return Listed(title=_TITLE, note=_note(result), head=_head(result), rows=_rows(result))


def _head(result: TaskResult) -> list[str]:
    metrics = next(iter(result.estimates.values()))
    return ["", *(f"{LABELS[metric]}, %" for metric in metrics), "Against before, points"]


def _note(result: TaskResult) -> str:
    kinds = ", ".join(name for one in result.verify for name in one)
    return (
        f"{result.n_prompts:,} of {result.n_held_out:,} held-out prompts, judged by {kinds}; the answers of the set as "
        f"they were bought, all others greedy, at most {result.max_tokens:,} tokens. ± one standard error, counting "
        f"prompts; {DECIDED} more than noise (95%, paired)."
    )


def _rows(result: TaskResult) -> list[list[str]]:
    return [
        [
            model_name(model),
            *(f"{100 * e.value:.1f} ± {_error(e.stderr)}" for e in result.estimates[model].values()),
            _against_before(result, model),
        ]
        for model in result.models
    ]


def _against_before(result: TaskResult, model: str) -> str:
    before = roles.before(roles.STUDENT)  # of a family what they were before is not measured
    if before not in result.models or before == model:
        return "–"
    found = result.difference(RIGHT, first=model, second=before)
    return _shown(found) if found is not None else "–"


def _shown(found: Difference) -> str:
    mark = f" {DECIDED}" if found.decided else ""
    return f"{100 * found.value:+.1f} ± {_error(found.stderr)}{mark}"


def _error(stderr: float) -> str:
    return f"{100 * stderr:.1f}" if stderr != float("inf") else "?"
