"""The table of a run as HTML, for a notebook's output cell."""

from html import escape

from tutelage.reports.table import Cell, Row, Table


def to_html(table: Table) -> str:
    """A plain HTML table, every text escaped; the best model's value is bold where one is best."""
    head = "".join(f"<th>{escape(model)}</th>" for model in table.models)
    body = "".join(f"<tr><th>{escape(_label(row))}</th>{''.join(map(_cell, row.cells))}</tr>" for row in table.rows)
    notes = "".join(f"<p>{escape(sentence)}</p>" for sentence in table.sentences)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _label(row: Row) -> str:
    return f"{row.label} ({row.unit})" if row.unit else row.label


def _cell(cell: Cell) -> str:
    text = escape(f"{cell.value} ± {cell.error}" if cell.error else cell.value)
    return f"<td><b>{text}</b></td>" if cell.best else f"<td>{text}</td>"
