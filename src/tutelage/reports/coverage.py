"""How much of the distance to the teacher is left in each set of text, as a table and a sentence."""

import math
from collections.abc import Sequence

from tutelage import visible
from tutelage.evaluation.coverage import Against, Covered, Gap
from tutelage.reports.listed import DECIDED, Listed, marked
from tutelage.reports.table import model_name

TITLE = "Coverage: what is left of the distance to the teacher"
HEAD = ("", "KL to teacher, nats", "Left of it, %", "Against held-out text")


def listed(found: Sequence[Covered]) -> Listed | None:
    """None where there is no other set than the held-out one."""
    if not any(one.others for one in found):
        return None
    return Listed(title=TITLE, note=note(found), head=HEAD, rows=rows(found))


def note(found: Sequence[Covered]) -> str:
    """The student's result in words, then how it was measured."""
    said = [sentence(one, other) for one in found[:1] for other in one.others]
    how = (
        f"Left: KL over that of the student before training, ± one standard error. {DECIDED} more than noise (95%, "
        "independent sets, corrected for their number)."
    )
    return " ".join([*said, how])


def sentence(covered: Covered, other: Against) -> str:
    """Whether the student covers a set as well as the text that it learned from."""
    name, of_set = model_name(covered.model), visible.line(other.gap.name.replace("_", " "))
    if not other.decided:
        return f"Held-out text and {of_set} text are not shown to differ in what is left of the {name}’s distance."
    how = "more" if other.ratio > 1 else "less"
    return (
        f"On {of_set} text {other.ratio:.2g} times as much of the distance is left as on held-out text "
        f"({other.low:.2g} to {other.high:.2g}): the {name} covers it {'less' if how == 'more' else 'better'}."
    )


def rows(found: Sequence[Covered]) -> list[list[str]]:
    """A row for each model and set."""
    return [
        row
        for one in found
        for row in (_row(one.model, one.in_domain), *(_row(one.model, other.gap, other) for other in one.others))
    ]


def _row(model: str, gap: Gap, against: Against | None = None) -> list[str]:
    times = ""
    if against is not None:
        interval = f"{against.low:.2f}–{against.high:.2f}" if math.isfinite(against.high) else "?"
        times = marked(f"{against.ratio:.2f} times ({interval})", against.decided)
    return [
        f"{model_name(model)}, {gap.name.replace('_', ' ')}",
        f"{gap.kl.value:.3f} ± {_error(gap.kl.stderr, digits=3)}",
        f"{100 * gap.left.value:.1f} ± {_error(100 * gap.left.stderr, digits=1)}",
        times or "–",
    ]


def _error(stderr: float, *, digits: int) -> str:
    return f"{stderr:.{digits}f}" if math.isfinite(stderr) else "?"
