"""The page: one static HTML file that opens offline and loads nothing.

Every text that a model, a recipe or a file name brought in passes `visible` and the template's autoescape, or is JSON
that cannot end its element; the page's own policy forbids everything but our one script, by its hash.
"""

import base64
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage import __version__, io, roles, visible
from tutelage.evaluation.show import Shown
from tutelage.evaluation.transfer import HELD_OUT, Transfer
from tutelage.reports import explore, figures, headline, pareto, parts
from tutelage.reports.figures import Panel
from tutelage.reports.listed import Listed
from tutelage.reports.report import Report
from tutelage.reports.table import model_name, table_of

_TEMPLATES = Path(__file__).parent / "templates"
_TERMS = {
    "cross_entropy": "Cross-entropy on the true tokens",
    "cross_entropy_argmax": "Cross-entropy on the teacher’s first choice",
    "forward_kl": "Forward KL to the teacher",
    "soft_cross_entropy": "Cross-entropy on a stored sample of the teacher",
    "reverse_kl": "Reverse KL to the teacher",
    "hidden_states": "Distance of hidden states to the teacher’s (no unit)",
    "attention_relations": "KL of attention relations to the teacher’s",
}
_SLICED = ("kl_to_teacher", "held_out_loss")  # the first one that was measured is drawn


def build_report(report: Report) -> str:
    """The page as text: the same report gives the same bytes."""
    transfer, table = report.transfer, table_of(report.transfer)
    result = transfer.sets.get(HELD_OUT)
    script, sliced = _script() if report.explorer else "", _sliced_by(transfer)
    return _template().render(
        report=report,
        version=__version__,
        policy=_policy(script),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        title=report.title,
        findings=[s.partition(": ") for s in report.findings],
        table=table,
        sections=table.sections(),
        names={m: model_name(m) for m in transfer.models},
        colours={m: i for i, m in enumerate(transfer.models)},
        series=_series(transfer.models),
        sizes=_drawing(figures.sizes(transfer, models=transfer.models)),
        size_table=_sizes(transfer),
        reliability=_drawing(figures.reliability(result, models=transfer.models) if result else None),
        slices=[_drawing(panel) for panel in _slices(transfer, metric=sliced)],
        sliced=sliced,
        part_tables=_part_tables(transfer),
        tables=report.tables,
        explorer=explore.context(report.explorer) if report.explorer else None,
        panels=[_drawing(p) for p in figures.loss_curves(report.metrics, models=transfer.models)],
        first_choices=_first_choices(report.shown),
        show_commands=[report.show_command(v.prompt.text) for v in (report.shown.prompts if report.shown else ())],
        provenance=json.dumps(report.provenance, indent=2, ensure_ascii=False, default=str)
        if report.provenance
        else "",
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


@functools.cache
def _script() -> str:
    return (_TEMPLATES / "explorer.js").read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """The page's content security policy: nothing from elsewhere, and no script but ours, known by its hash."""
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


_ALIKE = {"student": "1", "control": "5"}  # a role's colour and the one of the palette that could be taken for it


def _series(models: Sequence[str]) -> dict[str, str]:
    """The colour of each model: its role's, or the next one of the palette that is like no role's that is there."""
    own = {roles.TEACHER: "teacher", roles.before(roles.STUDENT): "before", roles.STUDENT: "student"}
    own[roles.control(roles.STUDENT)] = "control"
    taken = {_ALIKE[own[model]] for model in models if own.get(model) in _ALIKE}
    free = itertools.cycle(n for n in "123456" if n not in taken)
    return {model: own[model] if model in own else next(free) for model in models}


def _drawing(panel: Panel | None) -> dict[str, Any] | None:
    if panel is None:
        return None
    title = _TERMS.get(panel.term, panel.term.replace("_", " ").capitalize())
    return {"panel": panel, "title": title, "svg": Markup(panel.svg)}  # our own drawing: texts in it are escaped


def _sizes(transfer: Transfer) -> Listed:
    note = f"From small to large. {pareto.NOTE}"
    return Listed(title=pareto.TITLE, note=note, head=pareto.HEAD, rows=pareto.rows(transfer))


def _sliced_by(transfer: Transfer) -> str:
    """The metric that the slices are drawn in, "" where nothing was divided."""
    parts = transfer.sets[HELD_OUT].slices if HELD_OUT in transfer.sets else ()
    measured = {metric for part in parts for found in part.estimates.values() for metric in found}
    return next((metric for metric in _SLICED if metric in measured), "")


def _slices(transfer: Transfer, *, metric: str) -> list[Panel]:
    if not metric:
        return []
    shown = headline.trained(transfer)
    return figures.slices(transfer.sets[HELD_OUT], metric=metric, shown=shown, models=transfer.models)


def _part_tables(transfer: Transfer) -> list[Listed]:
    result = transfer.sets.get(HELD_OUT)
    found = (parts.worst(result, transfer), parts.hardest(result, transfer)) if result else ()
    return [table for table in found if table is not None]


def _first_choices(shown: Shown | None) -> list[list[int]]:
    """The teacher's listed token ids for each prompt, most likely first."""
    if shown is None or shown.teacher is None:
        return [[] for _ in (shown.prompts if shown else ())]
    return [[c.token_id for c in view.models[shown.teacher].candidates] for view in shown.prompts]
