"""Runs of rare words that stand in many documents of one source, as a table."""

from collections.abc import Sequence

from tutelage import visible
from tutelage.evaluation.triggers import LEAST, Trigger
from tutelage.reports.listed import Listed

TITLE = "Rare words that stand together in many training documents"
HEAD = ("", "Documents", "Source", "First")


def listed(found: Sequence[Trigger]) -> Listed | None:
    """None where none was found."""
    if not found:
        return None
    note = (
        f"Three words in a row in {LEAST} documents or more of one source, which hardly stand anywhere else: a trigger "
        "that was planted looks so, and some names do. Nothing was left out; look at them."
    )
    rows = [
        [visible.line(one.words), f"{one.n_documents:,}", visible.line(one.source), visible.line(one.names[0])]
        for one in found
    ]
    return Listed(title=TITLE, note=note, head=HEAD, rows=rows)
