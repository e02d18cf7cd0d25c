"""The report as Markdown, for an issue or a pull request, and as JSON, for programs."""

import json
from dataclasses import replace
from typing import Any

from tutelage import __version__, visible
from tutelage.evaluation.transfer import HELD_OUT
from tutelage.reports import pareto, parts
from tutelage.reports.listed import Listed
from tutelage.reports.report import Report
from tutelage.reports.table import markdown_text, table_of, to_markdown

FORMAT = 1


def to_json(report: Report) -> dict[str, Any]:
    """Everything that the page shows, as plain JSON values with the raw texts."""
    return {
        "generator": f"tutelage report {__version__}",
        "format": FORMAT,
        "run": report.run,
        "runs": dict(report.runs),
        "title": report.title,
        "findings": report.findings,
        "transfer": report.transfer.json(),
        "tables": [
            {"title": t.title, "note": t.note, "head": list(t.head), "rows": [list(row) for row in t.rows]}
            for t in _tables(report)
        ],
        "explorer": report.explorer.json() if report.explorer else None,
        "next_tokens": report.shown.json() if report.shown else None,
        "recipe": report.recipe,
        "provenance": json.loads(json.dumps(report.provenance, default=str)),
        "commands": report.commands,
    }


def build_markdown(report: Report) -> str:
    """Headline, findings, tables and commands in GitHub's Markdown; no text in it can end a cell or make a link."""
    lines = [
        f"<!-- tutelage report {__version__} -->",
        f"# {markdown_text(report.title)}",
        "",
        to_markdown(replace(table_of(report.transfer), sentences=tuple(report.findings))),
    ]
    for extra in _tables(report):
        lines += [f"## {markdown_text(extra.title)}", "", *_rows(extra), "", markdown_text(extra.note), ""]
    lines += ["## Made by", "", "```sh", *dict.fromkeys(_commands(report)), "```", ""]
    return "\n".join(lines)


def _commands(report: Report) -> list[str]:
    """One line each; a folder's name that could end the fence is not written as it is."""
    commands = (report.commands["table"], report.commands["report"])
    return [visible.line(command).replace("`", "\\x60") for command in commands]


def _tables(report: Report) -> list[Listed]:
    """All tables but the first."""
    result = report.transfer.sets.get(HELD_OUT)
    sizes = Listed(title=pareto.TITLE, note=pareto.NOTE, head=pareto.HEAD, rows=pareto.rows(report.transfer))
    found = (parts.worst(result, report.transfer), parts.hardest(result, report.transfer)) if result else ()
    return [t for t in (*report.tables, sizes, *(t for t in found if t is not None)) if t.rows]


def _rows(table: Listed) -> list[str]:
    lines = [f"| {' | '.join(map(markdown_text, table.head))} |", f"|---|{'---:|' * (len(table.head) - 1)}"]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]


def _cell(text: str) -> str:
    """A cell on one line."""
    return markdown_text(" ".join(text.split()))
