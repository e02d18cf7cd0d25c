"""The transfer as one table (a column a model, a row a number), for a terminal, Markdown and the HTML page.

A value is marked as best only where its paired difference to the other trained models is more than noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from tutelage import plugins, visible
from tutelage.evaluation.transfer import HELD_OUT, METRICS, OUT_OF_DOMAIN, Cost, SetResult, Transfer
from tutelage.reports import headline
from tutelage.reports.numbers import count, decimals, estimate, seconds, size
from tutelage.types import Estimate

ORDER = ("held_out_loss", "perplexity", "kl_to_teacher", "top1_agreement", "ece")  # the table without `every`
_SECTIONS = {HELD_OUT: "Held-out text", OUT_OF_DOMAIN: "Out of domain"}
_BEST = "●"
_MARKDOWN = {c: f"\\{c}" for c in "\\`*_{}[]#|!~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value and its standard error as shown; `error` is "" for a plain number, both where nothing was measured."""

    value: str = ""
    error: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of every model, in the order of the table's models."""

    section: str
    label: str
    unit: str
    better: str  # "lower", "higher" or ""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What every rendering shows; names and sentences are already safe to print."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]
    footnote: str

    def sections(self) -> list[tuple[str, list[Row]]]:
        """The rows of each section, in order."""
        names = list(dict.fromkeys(row.section for row in self.rows))
        return [(name, [row for row in self.rows if row.section == name]) for name in names]


def table_of(transfer: Transfer, *, every: bool = False) -> Table:
    """The table of a transfer: the metrics that a person needs first, or all of them."""
    rows = [
        row
        for name, result in transfer.sets.items()
        for row in _metric_rows(name, result, transfer=transfer, every=every)
    ]
    return Table(
        models=tuple(model_name(m) for m in transfer.models),
        rows=(*rows, *_cost_rows(transfer)),
        sentences=tuple(headline.sentences(transfer)),
        footnote=_footnote(transfer),
    )


def model_name(name: str) -> str:
    """A model's name as people read it."""
    return visible.line(name.replace("_", " "))


def metric_names(result: SetResult, *, every: bool = True) -> list[str]:
    """The metrics of a set: the usual ones first, or alone."""
    found = {metric for by_metric in result.estimates.values() for metric in by_metric}
    return [m for m in ORDER if m in found] + (sorted(found - set(ORDER)) if every else [])


def to_rich(table: Table, *, width: int) -> Group:
    """For a terminal `width` columns wide."""
    shown = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    shown.add_column("", no_wrap=width >= 80)
    for name in table.models:
        shown.add_column(Text(name, justify="right"), justify="right", no_wrap=width >= 80)
    for section, rows in table.sections():
        shown.add_row(Text(section, style="bold cyan"))
        for row in rows:
            shown.add_row(Text(_label(row)), *(_rich_cell(cell) for cell in row.cells))
    sentences = [Text.assemble("• ", s) for s in table.sentences]
    return Group(shown, Text(table.footnote, style="dim"), Text(""), *sentences)


def to_markdown(table: Table) -> str:
    """A GitHub table; every text is escaped, so that no name can end a cell or open a tag."""
    head = ["", *(markdown_text(name) for name in table.models)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(table.models)}"]
    for section, rows in table.sections():
        lines.append(f"| **{markdown_text(section)}** |{' |' * len(table.models)}")
        lines += [f"| {markdown_text(_label(row))} | {' | '.join(map(_md_cell, row.cells))} |" for row in rows]
    said = [f"- {markdown_text(sentence)}" for sentence in table.sentences]
    return "\n".join([*lines, "", markdown_text(table.footnote), "", *said]) + "\n"


def to_html(table: Table) -> str:
    """A fragment for a notebook: a plain table that takes its colours from the page around it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.models)
    body = []
    for section, rows in table.sections():
        body.append(f'<tr><th colspan="{len(table.models) + 1}" style="text-align:left">{escape(section)}</th></tr>')
        for row in rows:
            cells = "".join(f"<td>{_html_cell(cell)}</td>" for cell in row.cells)
            body.append(f'<tr><td style="text-align:left">{escape(_label(row))}</td>{cells}</tr>')
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in table.sentences)
    rows_html = "".join(body)
    return (
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows_html}</tbody></table>"
        f"<p><small>{escape(table.footnote)}</small></p><ul>{said}</ul>"
    )


def _metric_rows(name: str, result: SetResult, *, transfer: Transfer, every: bool) -> list[Row]:
    section = _SECTIONS.get(name, visible.line(name.replace("_", " ")))
    trained = [m for m in headline.trained(transfer) if m in result.estimates]
    rows = []
    for metric in metric_names(result, every=every):
        module = plugins.load(METRICS, metric)
        best = best_of(result, metric, models=trained, higher=module.HIGHER_IS_BETTER)
        estimates = [result.estimates[model].get(metric) for model in transfer.models]
        known = [e for e in estimates if e is not None]
        n_decimals = min(decimals(e) for e in known)
        rows.append(
            Row(
                section=section,
                label=(module.__doc__ or metric).splitlines()[0].split(":")[0],
                unit={"share": "%", "nats": "nats"}.get(module.UNIT, ""),
                better={True: "higher", False: "lower", None: ""}[module.HIGHER_IS_BETTER],
                cells=tuple(
                    _cell(e, n_decimals, best=model == best)
                    for model, e in zip(transfer.models, estimates, strict=True)
                ),
            )
        )
    if any(result.n_unscored.values()):
        cells = tuple(Cell(value=str(result.n_unscored[m])) for m in transfer.models)
        rows.append(Row(section=section, label="Unscored sequences", unit="", better="", cells=cells))
    return rows


def best_of(result: SetResult, metric: str, *, models: Sequence[str], higher: bool | None) -> str | None:
    """The model that beats every other of `models` by more than noise; None when no model does.

    Noise is judged over all comparisons of the set together.  `higher` None: no value is better than another.
    """
    if higher is None:
        return None
    for model in models:
        others = [result.difference(metric, first=model, second=other) for other in models if other != model]
        if others and all(d is not None and d.is_sure and (d.value > 0) == higher for d in others):
            return model
    return None


def _cell(found: Estimate | None, n_decimals: int, *, best: bool) -> Cell:
    if found is None:
        return Cell()
    if found.stderr == 0 and found.value in (0, 1):  # the teacher against itself
        return Cell(value=f"{found.value * (100 if found.unit == 'share' else 1):.0f}", best=best)
    value, error = estimate(found, n_decimals=n_decimals)
    return Cell(value=value, error=error, best=best)


def _cost_rows(transfer: Transfer) -> list[Row]:
    def row(label: str, unit: str, shown: Callable[[Cost], str]) -> Row:
        costs = [transfer.costs.get(model) for model in transfer.models]
        cells = tuple(Cell(value=shown(cost) if cost is not None else "") for cost in costs)
        return Row(section="Cost", label=label, unit=unit, better="", cells=cells)

    rows = [
        row("Parameters", "", lambda c: count(c.parameters)),
        row("Size", "", lambda c: size(c.parameter_bytes)),
        row("Speed", "tokens/s", lambda c: f"{c.rate_tok_per_s:,.0f}" if c.rate_tok_per_s is not None else ""),
        row("Training", "", lambda c: seconds(c.training_s) if c.training_s is not None else ""),
    ]
    return [r for r in rows if any(cell.value for cell in r.cells)]


def _footnote(transfer: Transfer) -> str:
    sizes = "; ".join(
        f"{_SECTIONS.get(name, name).lower()}: {r.n_sequences} sequences, {r.n_tokens:,} tokens"
        for name, r in transfer.sets.items()
    )
    others = "the other trained model" if len(headline.trained(transfer)) == 2 else "every other trained model"
    marked = f"  {_BEST} better than {others} by more than noise (95%, paired, all comparisons together)."
    return visible.line(
        f"± one standard error, counting sequences ({sizes}).{marked if len(headline.trained(transfer)) > 1 else ''}"
    )


def _label(row: Row) -> str:
    return f"{row.label}, {row.unit}" if row.unit else row.label


def _rich_cell(cell: Cell) -> Text:
    if not cell.value:
        return Text("–", style="dim")
    text = Text(f"{_BEST} " if cell.best else "", style="green")
    text.append(cell.value, style="bold green" if cell.best else "default")
    return text.append(f" ±{cell.error}", style="not bold dim") if cell.error else text


def _html_cell(cell: Cell) -> str:
    value = f"<b>{_BEST} {escape(cell.value)}</b>" if cell.best else escape(cell.value or "–")
    return f"{value} <small>± {escape(cell.error)}</small>" if cell.error else value


def _md_cell(cell: Cell) -> str:
    shown = f"**{cell.value}** {_BEST}" if cell.best else cell.value or "–"
    return f"{shown} ± {cell.error}" if cell.error else shown


def markdown_text(text: str) -> str:
    """One line of text for Markdown: nothing in it is a tag, a cell, an emphasis or a link."""
    escaped = "".join(_MARKDOWN.get(c, c) for c in visible.line(text))
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")  # GitHub makes links of bare addresses
