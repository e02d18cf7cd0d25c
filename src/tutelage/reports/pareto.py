"""Size against quality: which models of a family are worth their parameters, for a terminal and the HTML page."""

from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from tutelage import roles
from tutelage.evaluation.transfer import HELD_OUT, Transfer
from tutelage.reports.numbers import count, size
from tutelage.reports.table import model_name
from tutelage.types import Estimate

HEAD = ("", "Parameters", "Size", "Tokens/s", "Held-out loss, nats", "KL to teacher, nats", "Beaten by")
TITLE = "Size against quality"
NOTE = "Beaten by: a model that is no larger and has a lower held-out loss (or is smaller at the same)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model; `beaten_by` is a model that is no larger and no worse in held-out loss, "" when there is none."""

    cells: tuple[str, ...]
    beaten_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One model on the chart: its parameters, its held-out loss in nats, and who beats it ("": nobody)."""

    model: str
    parameters: int
    loss: float
    stderr: float
    n: int
    beaten_by: str


def lines(transfer: Transfer) -> list[Line]:
    """The models of a family from small to large; none for a run with one student."""
    models = _from_small_to_large(transfer)
    return [_line(model, models, transfer) for model in models]


def points(transfer: Transfer) -> list[Point]:
    """The same models for a chart."""
    models = _from_small_to_large(transfer)
    found = []
    for model, line in zip(models, lines(transfer), strict=True):
        loss = transfer.sets[HELD_OUT].estimates[model]["held_out_loss"]
        parameters = transfer.costs[model].parameters
        found.append(
            Point(
                model=model,
                parameters=parameters,
                loss=loss.value,
                stderr=loss.stderr,
                n=loss.n,
                beaten_by=line.beaten_by,
            )
        )
    return found


def _from_small_to_large(transfer: Transfer) -> list[str]:
    result = transfer.sets.get(HELD_OUT)
    if result is None or len(roles.students(transfer.models)) < 2:
        return []
    models = [m for m in transfer.models if m in transfer.costs and "held_out_loss" in result.estimates.get(m, {})]
    return sorted(models, key=lambda m: (transfer.costs[m].parameters, result.estimates[m]["held_out_loss"].value))


def to_rich(transfer: Transfer) -> RichTable | None:
    """For a terminal; None for a run with one student."""
    shown = RichTable(
        title=TITLE, title_justify="left", title_style="bold", caption=NOTE, caption_justify="left", box=None,
        padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    for i, name in enumerate(HEAD):
        shown.add_column(
            Text(name, justify="left" if i in (0, len(HEAD) - 1) else "right"), justify="right" if i else "left"
        )
    found = lines(transfer)
    for line in found:
        shown.add_row(*(Text(cell) for cell in (*line.cells, _verdict(line))))
    return shown if found else None


def rows(transfer: Transfer) -> list[list[str]]:
    """For the page: a row of cells for each model, in the order of HEAD."""
    return [[*line.cells, _verdict(line)] for line in lines(transfer)]


def _line(model: str, models: list[str], transfer: Transfer) -> Line:
    estimates, costs = transfer.sets[HELD_OUT].estimates, transfer.costs

    def beats(other: str) -> bool:
        loss, theirs = estimates[model]["held_out_loss"].value, estimates[other]["held_out_loss"].value
        smaller = costs[other].parameters - costs[model].parameters
        return smaller <= 0 and theirs <= loss and (smaller < 0 or theirs < loss)

    rate = costs[model].rate_tok_per_s
    return Line(
        cells=(
            model_name(model),
            count(costs[model].parameters),
            size(costs[model].parameter_bytes),
            f"{rate:,.0f}" if rate is not None else "–",
            _nats(estimates[model]["held_out_loss"]),
            _nats(estimates[model].get("kl_to_teacher")),
        ),
        beaten_by=next((model_name(other) for other in models if other != model and beats(other)), ""),
    )


def _nats(found: Estimate | None) -> str:
    return f"{found.value:.3f}" if found is not None else "–"


def _verdict(line: Line) -> str:
    return line.beaten_by or "–"
