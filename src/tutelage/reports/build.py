"""The report: one static HTML page, from a run's results, that opens offline and loads nothing.

Every text that a model, a recipe or a file name brought in passes `visible` and the template's autoescape; the page's
own policy (`default-src 'none'`) forbids scripts and remote files besides.
"""

import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage import __version__, io, visible
from tutelage.evaluation.show import Shown
from tutelage.evaluation.tasks import TaskResult
from tutelage.evaluation.transfer import HELD_OUT, Transfer
from tutelage.reports import headline, pareto, tasks
from tutelage.reports.figures import Panel, loss_curves
from tutelage.reports.table import model_name, table_of

_TEMPLATES = Path(__file__).parent / "templates"
_TERMS = {
    "cross_entropy": "Cross-entropy on the true tokens",
    "cross_entropy_argmax": "Cross-entropy on the teacher’s first choice",
    "forward_kl": "Forward KL to the teacher",
    "soft_cross_entropy": "Cross-entropy on a stored sample of the teacher",
    "reverse_kl": "Reverse KL to the teacher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a page is made of; `metrics` are the lines of metrics.jsonl, `recipe` is YAML text."""

    run: str
    transfer: Transfer
    shown: Shown | None = None
    tasks: TaskResult | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    recipe: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_report(report: Report) -> str:
    """The page as text: the same report gives the same bytes."""
    models = report.transfer.models
    table = table_of(report.transfer)
    return _template().render(
        run=report.run,
        version=__version__,
        title=headline.title(report.transfer),
        findings=[s.partition(": ") for s in table.sentences],
        table=table,
        sections=table.sections(),
        n_sequences=report.transfer.sets[HELD_OUT].n_sequences if HELD_OUT in report.transfer.sets else 0,
        names={m: model_name(m) for m in models},
        colours={m: i for i, m in enumerate(models)},
        panels=[_panel(p) for p in loss_curves(report.metrics, models=models)],
        sizes={"title": pareto.TITLE, "note": pareto.NOTE, "head": pareto.HEAD, "rows": pareto.rows(report.transfer)},
        answered=_answered(report.tasks),
        shown=report.shown,
        first_choices=_first_choices(report.shown),
        recipe=report.recipe,
        provenance=json.dumps(report.provenance, indent=2, ensure_ascii=False, default=str)
        if report.provenance
        else "",
        commands=_commands(report),
    )


def write_report(path: Path, report: Report) -> Path:
    """Writes the page, whole or not at all."""
    io.write_text(path, build_report(report))
    return path


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"safe_text": visible.text, "safe_line": visible.line, "token": visible.token}
    return environment.get_template("report.html.j2")


def _answered(result: TaskResult | None) -> dict[str, Any]:
    if result is None:
        return {"rows": []}
    return {"title": tasks.TITLE, "note": tasks.note(result), "head": tasks.head(result), "rows": tasks.rows(result)}


def _panel(panel: Panel) -> dict[str, Any]:
    title = _TERMS.get(panel.term, panel.term.replace("_", " ").capitalize())
    return {"panel": panel, "title": title, "svg": Markup(panel.svg)}  # our own drawing: numbers only


def _first_choices(shown: Shown | None) -> list[list[int]]:
    """The teacher's listed token ids for each prompt, most likely first."""
    if shown is None or shown.teacher is None:
        return [[] for _ in (shown.prompts if shown else ())]
    return [[c.token_id for c in view.models[shown.teacher].candidates] for view in shown.prompts]


def _commands(report: Report) -> dict[str, Any]:
    """The command that makes each figure again."""
    run = shlex.quote(report.run)
    prompts = report.shown.prompts if report.shown else ()
    return {
        "table": f"tutelage evaluate {run}",
        "curves": f"tutelage train {run}/recipe.yaml --run-dir {run}",
        "shown": [f"tutelage show {run} {shlex.quote(view.prompt.text)}" for view in prompts],
    }
