"""Task accuracy as a table: who answers held-out prompts right, for a terminal and the HTML page."""

from rich.table import Table as RichTable
from rich.text import Text

from tutelage import roles
from tutelage.evaluation.stats import Difference
from tutelage.evaluation.tasks import LABELS, RIGHT, TaskResult
from tutelage.reports.table import model_name

TITLE = "Held-out prompts, answered"
_DECIDED = "●"


def head(result: TaskResult) -> list[str]:
    """The names of the columns."""
    metrics = next(iter(result.estimates.values()))
    return ["", *(f"{LABELS[metric]}, %" for metric in metrics), "Against before, points"]


def note(result: TaskResult) -> str:
    """How it was measured."""
    kinds = ", ".join(name for one in result.verify for name in one)
    return (
        f"{result.n_prompts:,} of {result.n_held_out:,} held-out prompts, judged by {kinds}; the answers of the set as "
        f"they were bought, all others greedy, at most {result.max_tokens:,} tokens. ± one standard error, counting "
        f"prompts; {_DECIDED} more than noise (95%, paired)."
    )


def rows(result: TaskResult | None) -> list[list[str]]:
    """A row of cells for each model."""
    if result is None:
        return []
    return [
        [
            model_name(model),
            *(f"{100 * e.value:.1f} ± {_error(e.stderr)}" for e in result.estimates[model].values()),
            _against_before(result, model),
        ]
        for model in result.models
    ]


def to_rich(result: TaskResult | None) -> RichTable | None:
    """For a terminal; None where no task was measured."""
    if result is None:
        return None
    shown = RichTable(
        title=TITLE, title_justify="left", title_style="bold", caption=note(result), caption_justify="left", box=None,
        padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    for i, name in enumerate(head(result)):
        shown.add_column(name, justify="right" if i else "left")
    for row in rows(result):
        shown.add_row(*map(Text, row))
    return shown


def _against_before(result: TaskResult, model: str) -> str:
    before = roles.before(roles.STUDENT)  # of a family what they were before is not measured
    if before not in result.models or before == model:
        return "–"
    found = result.difference(RIGHT, first=model, second=before)
    return _shown(found) if found is not None else "–"


def _shown(found: Difference) -> str:
    mark = f" {_DECIDED}" if found.decided else ""
    return f"{100 * found.value:+.1f} ± {_error(found.stderr)}{mark}"


def _error(stderr: float) -> str:
    return f"{100 * stderr:.1f}" if stderr != float("inf") else "?"
