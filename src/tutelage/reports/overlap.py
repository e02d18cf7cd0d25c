"""Results with and without the measured rows that stand in the training data, as a table."""

from tutelage import visible
from tutelage.evaluation.overlap import LEAST_SHARE, N_WORDS, Overlap
from tutelage.evaluation.transfer import SetResult, Transfer
from tutelage.reports import numbers
from tutelage.reports.listed import Listed
from tutelage.reports.table import model_name
from tutelage.types import Estimate

TITLE = "With and without what stands in the training data"
METRICS = {"held_out_loss": "Loss, nats", "kl_to_teacher": "KL to teacher, nats"}


def listed(found: Overlap | None, transfer: Transfer) -> Listed | None:
    """None where nothing overlaps."""
    if found is None or not found.found:
        return None
    head = ["", *(f"{label}{end}" for label in METRICS.values() for end in ("", ", without"))]
    return Listed(title=TITLE, note=note(found), head=head, rows=rows(found, transfer))


def note(found: Overlap) -> str:
    """How many rows, which one first, and how it was found."""
    said = [
        f"{len(one.rows)} of {one.n_rows} rows of {name.replace('_', ' ')} (first: {one.rows[0].name}: "
        f"{one.rows[0].words} …)"
        for name, one in found.found.items()
    ]
    how = (
        f"A row counts when {LEAST_SHARE:.0%} of its words or more lie in {N_WORDS} words in a row that the "
        "training data have too, whatever case, punctuation and white space."
    )
    return visible.line(f"{'; '.join(said)}. {how}")


def rows(found: Overlap, transfer: Transfer) -> list[list[str]]:
    """A row of cells for each set with an overlap and each model."""
    return [
        [f"{model_name(model)}, {name.replace('_', ' ')}", *_cells(transfer.sets[name], model, _set(found, name))]
        for name in found.found
        for model in transfer.models
    ]


def _set(found: Overlap, name: str) -> SetResult | None:
    return found.without.sets.get(name) if found.without is not None else None


def _cells(whole: SetResult, model: str, without: SetResult | None) -> list[str]:
    return [
        _shown(result.estimates.get(model, {}).get(metric) if result is not None else None)
        for metric in METRICS
        for result in (whole, without)
    ]


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    value, error = numbers.estimate(found, n_decimals=3)
    return f"{value} ± {error}"
