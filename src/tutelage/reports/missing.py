"""Who could not be measured, as a table."""

from collections.abc import Sequence

from tutelage.evaluation.missing import COVERAGE, HARNESS, PROBES, WRITING, Missing
from tutelage.reports.listed import Listed
from tutelage.reports.table import model_name

TITLE = "Not measured"
HEAD = ("", "In", "Why")
_LABELS = {
    PROBES: "pairs of sentences",
    WRITING: "text that the models write",
    HARNESS: "tasks of the harness",
    COVERAGE: "coverage",
}
_BEFORE = "students before training"


def listed(found: Sequence[Missing]) -> Listed | None:
    """None where nobody is missing."""
    if not found:
        return None
    rows = [
        [model_name(one.model) if one.model != "before" else _BEFORE, _LABELS.get(one.measure, one.measure), one.why]
        for one in found
    ]
    return Listed(title=TITLE, note="What the tables above lack, although it was asked for.", head=HEAD, rows=rows)
