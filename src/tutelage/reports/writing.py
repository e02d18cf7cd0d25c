"""Length, ends and repetition of the text that the models write, as a table."""

from tutelage.evaluation.stats import Difference
from tutelage.evaluation.writing import DISTINCT, ENDED, JSON, REPEATED, TOKENS, Writing
from tutelage.reports import numbers
from tutelage.reports.listed import DECIDED, Listed, marked
from tutelage.reports.table import model_name
from tutelage.types import Estimate

TITLE = "Text that the models write"
_LABELS = {
    TOKENS: "Tokens",
    ENDED: "Ends by itself, %",
    REPEATED: "4 tokens again, %",
    DISTINCT: "Different pairs, %",
    JSON: "Valid JSON, %",
}


def listed(result: Writing | None) -> Listed | None:
    """None where nothing was written."""
    if result is None:
        return None
    return Listed(title=TITLE, note=note(result), head=head(result), rows=rows(result))


def head(result: Writing) -> list[str]:
    """The names of the columns."""
    return ["", *(_LABELS[metric] for metric in _metrics(result))]


def note(result: Writing) -> str:
    """How it was measured."""
    against = f" {DECIDED} not the teacher’s, by more than noise (95%, paired, corrected)." if result.teacher else ""
    return (
        f"{result.n_prompts:,} held-out prompts or beginnings, greedy, at most {result.max_tokens:,} tokens. ± one "
        f"standard error over texts.{against}"
    )


def rows(result: Writing) -> list[list[str]]:
    """A row of cells for each model."""
    return [
        [
            model_name(model),
            *(_cell(of_model[m], result.against_teacher.get(model, {}).get(m)) for m in _metrics(result)),
        ]
        for model, of_model in result.estimates.items()
    ]


def _metrics(result: Writing) -> list[str]:
    return list(next(iter(result.estimates.values())))


def _cell(found: Estimate, against: Difference | None) -> str:
    value, error = numbers.estimate(found, n_decimals=1)
    return marked(f"{value} ± {error}", against is not None and against.decided)
