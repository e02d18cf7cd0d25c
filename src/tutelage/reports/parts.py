"""Parts of the report that are tables of their own: the worst slices, the hardest inputs."""

from tutelage import plugins, roles
from tutelage.evaluation.slices import Slice
from tutelage.evaluation.transfer import METRICS, SetResult, Transfer
from tutelage.reports.figures import KINDS_OF_SLICES
from tutelage.reports.listed import Listed
from tutelage.reports.numbers import decimals, estimate
from tutelage.reports.table import metric_names, model_name
from tutelage.types import Estimate

_MOST_METRICS = 3


def worst(result: SetResult, transfer: Transfer) -> Listed | None:
    """The slices where the student is worst, the worst first; None where nothing was divided."""
    parts = [result.slices[place] for place in result.worst if place < len(result.slices)]
    students = roles.students(transfer.models)
    if not parts or not students:
        return None
    metrics = [m for m in metric_names(result) if any(m in p.estimates.get(students[0], {}) for p in parts)]
    shown = metrics[:_MOST_METRICS] if "kl_to_teacher" in metrics[:_MOST_METRICS] else _with_kl(metrics)
    return Listed(
        title="Where the student is worst",
        note=f"Numbers of the {model_name(students[0])}, ± one standard error, counting sequences.",
        head=["", *map(_label, shown), "Sequences", "Tokens"],
        rows=[_worst_row(part, students[0], shown) for part in parts],
    )


def hardest(result: SetResult, transfer: Transfer) -> Listed | None:
    """The inputs that are hardest for the student, with an excerpt; None where none were kept."""
    if not result.hardest:
        return None
    models = [m for m in transfer.models if any(m in hard.values for hard in result.hardest)]
    columns = [
        (model, metric)
        for metric in ("kl_to_teacher", "held_out_loss")
        for model in models
        if any(metric in hard.values.get(model, {}) for hard in result.hardest)
        and not (metric == "kl_to_teacher" and model == transfer.teacher)
    ]
    return Listed(
        title="The hardest inputs",
        note="Means over the tokens of one text; the row is its place in evaluation/records.jsonl.",
        head=["", *(f"{model_name(model)}: {_label(metric)}" for model, metric in columns), "Row"],
        rows=[
            [hard.text, *(_plain(hard.values.get(model, {}).get(metric)) for model, metric in columns), str(hard.row)]
            for hard in result.hardest
        ],
    )


def _with_kl(metrics: list[str]) -> list[str]:
    return [*metrics[: _MOST_METRICS - 1], *(m for m in metrics if m == "kl_to_teacher")]


def _worst_row(part: Slice, student: str, metrics: list[str]) -> list[str]:
    kind = KINDS_OF_SLICES.get(part.kind, part.kind.replace("_", " "))
    found = part.estimates.get(student, {})
    cells = [_shown(found.get(metric)) for metric in metrics]
    name = f"{kind}: {part.name}" + (f"\n{part.example}" if part.example else "")
    return [name, *cells, f"{part.n_sequences:,}", f"{part.n_tokens:,}"]


def _label(metric: str) -> str:
    module = plugins.load(METRICS, metric)
    name = (module.__doc__ or metric).splitlines()[0].split(":")[0]
    unit = {"share": "%", "nats": "nats"}.get(module.UNIT, "")
    return f"{name}, {unit}" if unit else name


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    value, error = estimate(found, n_decimals=min(decimals(found), 3))
    return f"{value} ± {error}"


def _plain(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "–"
