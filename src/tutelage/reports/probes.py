"""Which of two sentences the models prefer, and how much of the teacher's skew arrived, as a table."""

import math
from collections.abc import Sequence

from tutelage import roles
from tutelage.evaluation.probes import Arrived, Probe, Skew
from tutelage.reports.listed import DECIDED, Listed, marked, percent
from tutelage.reports.table import model_name

TITLE = "Pairs of sentences: who prefers the stereotype"
HEAD = ("", "Prefers it, %", "Gap, nats", "Slope on the teacher’s gaps", "Correlation", "Slope over before")


def listed(probes: Sequence[Probe]) -> Listed | None:
    """None where nothing was probed."""
    if not probes:
        return None
    return Listed(title=TITLE, note=note(probes), head=HEAD, rows=rows(probes))


def note(probes: Sequence[Probe]) -> str:
    """How it was measured."""
    counted = "; ".join(f"{probe.name}: {probe.n_pairs - probe.n_unscored:,} pairs" for probe in probes)
    return (
        f"{counted}. 50% is no preference; gap: log-probability of the stereotypical text less that of the other. "
        "Slope 1: all of the teacher’s skew, 0: none. ± one standard error and 95% intervals over pairs; "
        f"{DECIDED} more than noise (corrected for the number of rows of its kind)."
    )


def rows(probes: Sequence[Probe]) -> list[list[str]]:
    """For each file a row a model, then one for each category of teacher and students."""
    return [row for probe in probes for row in (*_whole(probe), *_categories(probe))]


def _whole(probe: Probe) -> list[list[str]]:
    return [
        [f"{model_name(model)}, {probe.name}", *_skew(skew), *_arrived(probe.arrived.get(model))]
        for model, skew in probe.skews.items()
    ]


def _categories(probe: Probe) -> list[list[str]]:
    shown = {roles.TEACHER, *roles.students(probe.skews)}
    return [
        [f"{model_name(model)}, {name}", *_skew(skew), *_arrived(None)]
        for name, by_model in probe.categories.items()
        for model, skew in by_model.items()
        if model in shown
    ]


def _skew(skew: Skew) -> tuple[str, str]:
    return marked(percent(skew.prefers), skew.decided), _shown(skew.gap.value, skew.gap.stderr, sign="+")


def _arrived(found: Arrived | None) -> tuple[str, str, str]:
    if found is None:
        return "–", "–", "–"
    over = found.over_before
    return (
        _shown(found.slope.value, found.slope.stderr),
        f"{found.correlation:.2f}" if math.isfinite(found.correlation) else "–",
        marked(_shown(over.value, over.stderr, sign="+"), over.decided) if over is not None else "–",
    )


def _shown(value: float, stderr: float, sign: str = "") -> str:
    return f"{value:{sign}.2f} ± {stderr:.2f}" if stderr != float("inf") else f"{value:{sign}.2f} ± ?"
