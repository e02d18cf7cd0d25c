"""The figures of the report: loss curves, reliability, slices, size against quality."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage import visible
from tutelage.evaluation.slices import Slice
from tutelage.evaluation.stats import quantile_95
from tutelage.evaluation.transfer import SetResult, Transfer
from tutelage.reports import pareto
from tutelage.reports.numbers import compact, count
from tutelage.reports.svg import INK, RULE, drawn, quiet, stand_in
from tutelage.reports.table import model_name
from tutelage.roles import model_and_term

Row = Mapping[str, Any]  # one line of metrics.jsonl

KINDS_OF_SLICES = {
    "source": "Source of the text",
    "position": "Position in the text",
    "rarity": "Rarity of the token",
    "teacher_confidence": "Confidence of the teacher",
    "length": "Length of the text",
}
_NOT_LOSSES = {"total", "gradient_norm", "learning_rate"}
_SMOOTHED_FROM = 30  # points from which a line is drawn smoothed over its raw points
_MARKERS = "osD^vPX*"  # told apart without colour
_SLICE_IN = 0.42  # height of a slice
_LABEL = 48  # characters of its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model's values of one term against tokens (or steps)."""

    model: str
    held_out: bool
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure: what it is of, the models that have it, and the drawing."""

    term: str
    x_label: str
    models: tuple[str, ...]
    svg: str
    has_held_out: bool = False


# --- training ---
def loss_curves(metrics: Sequence[Row], *, models: Sequence[str]) -> list[Panel]:
    """A panel for each term of the loss in `metrics`; a model's colour is its place in `models`."""
    x_key = "tokens" if any("tokens" in row for row in metrics) else "step"
    by_term: dict[str, list[Curve]] = {}
    for key in dict.fromkeys(k for row in metrics for k in row if "/" in k):
        model, term = model_and_term(key)
        held_out = term.startswith("held_out/")
        term = term.removeprefix("held_out/")
        if model not in models or term in _NOT_LOSSES:
            continue
        points = [(float(row[x_key]), float(row[key])) for row in metrics if _is_number(row.get(key)) and x_key in row]
        if len(points) > 1 or (held_out and points):
            x, y = zip(*points, strict=True)
            by_term.setdefault(term, []).append(Curve(model=model, held_out=held_out, x=x, y=y))
    return [_curves(term, curves, models=models, x_label=x_key) for term, curves in by_term.items()]


def smoothed(y: Sequence[float]) -> list[float]:
    """A centred moving mean over a fifteenth of the points; windows shrink at both ends, so no point is invented."""
    half = max(1, len(y) // 30)
    windows = ((i, min(half, i, len(y) - 1 - i)) for i in range(len(y)))
    return [sum(y[i - h : i + h + 1]) / (2 * h + 1) for i, h in windows]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


_WITHOUT_UNIT = ("hidden_states",)


def _curves(term: str, curves: Sequence[Curve], *, models: Sequence[str], x_label: str) -> Panel:
    def draw(axes: Any) -> None:  # Any: matplotlib is untyped here
        for curve in curves:
            _draw_curve(axes, curve, colour=stand_in(curve.model, models))
        quiet(axes)
        axes.margins(x=0.02)
        axes.locator_params(axis="both", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: compact(value))

    said = [
        f"{model_name(c.model)}{', held-out' if c.held_out else ''} from {c.y[0]:.2f} to {c.y[-1]:.2f}"
        + ("" if term in _WITHOUT_UNIT else " nats")
        for c in curves
    ]
    shown = {c.model for c in curves}
    return Panel(
        term=term,
        x_label=x_label,
        models=tuple(m for m in models if m in shown),
        has_held_out=any(c.held_out for c in curves),
        svg=drawn(draw, name=term, described=f"Lines over training: {'; '.join(said)}.", n_models=len(models)),
    )


def _draw_curve(axes: Any, curve: Curve, *, colour: str) -> None:
    if curve.held_out:
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.2, linestyle=(0, (1, 2)), marker="o", markersize=4.5)
    elif len(curve.y) >= _SMOOTHED_FROM:
        axes.plot(curve.x, curve.y, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(curve.x, smoothed(curve.y), color=colour, linewidth=1.8)
    else:
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.8)


# --- calibration ---
def reliability(result: SetResult, *, models: Sequence[str]) -> Panel | None:
    """How often each model is right where it says how sure it is: on the diagonal it means what it says."""
    shown = [m for m in models if m in result.reliability and any(result.reliability[m].n)]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        for model in shown:
            found = result.reliability[model]
            points = [(c, r, n) for n, c, r in zip(found.n, found.confidence, found.correct, strict=True) if n > 0]
            x, y, n = zip(*points, strict=True)
            colour, marker = stand_in(model, models), _marker(model, models)
            axes.plot(x, y, color=colour, linewidth=1.5)
            sizes = [10 + 70 * one / max(n) for one in n]
            axes.scatter(x, y, s=sizes, color=colour, marker=marker, linewidths=0, zorder=3)
        quiet(axes, grid="both")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_ticks())
            axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")

    said = "; ".join(f"{model_name(m)} {_gap(result, m)}" for m in shown)
    return Panel(
        term="reliability",
        x_label="confidence",
        models=tuple(shown),
        svg=drawn(
            draw,
            name="reliability",
            described=f"Reliability diagram. {said}.",
            n_models=len(models),
            size_in=(4.2, 3.9),
        ),
    )


def _gap(result: SetResult, model: str) -> str:
    found = result.reliability[model]
    total = sum(found.n)
    gap = sum(n * (c - r) for n, c, r in zip(found.n, found.confidence, found.correct, strict=True)) / total
    says = "too sure" if gap > 0 else "not sure enough"
    return f"is {says} by {abs(100 * gap):.1f} points on average"


def _ticks() -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def _marker(model: str, models: Sequence[str]) -> str:
    return _MARKERS[list(models).index(model) % len(_MARKERS)]


# --- slices ---
def slices(result: SetResult, *, metric: str, shown: Sequence[str], models: Sequence[str]) -> list[Panel]:
    """A panel for each way to divide the text: a metric of the models `shown` with its 95 % interval in every part."""
    by_kind: dict[str, list[Slice]] = {}
    for part in result.slices:
        if any(metric in part.estimates.get(m, {}) for m in shown):
            by_kind.setdefault(part.kind, []).append(part)
    return [_sliced(kind, parts, metric=metric, shown=shown, models=models) for kind, parts in by_kind.items()]


def _sliced(kind: str, parts: Sequence[Slice], *, metric: str, shown: Sequence[str], models: Sequence[str]) -> Panel:
    present = [m for m in shown if any(metric in part.estimates.get(m, {}) for part in parts)]

    def draw(axes: Any) -> None:
        for y, part in enumerate(parts):
            place = {"transform": axes.get_yaxis_transform(), "va": "center", "in_layout": False}
            axes.text(0, y - 0.3, _label(part), color=INK, fontsize=9, **place)
            for n, model in enumerate(present):
                found = part.estimates.get(model, {}).get(metric)
                if found is None or not math.isfinite(found.value):
                    continue
                level, colour = y + 0.06 + 0.24 * n / max(1, len(present) - 1), stand_in(model, models)
                half = quantile_95(found.n) * found.stderr if found.n > 1 else 0.0
                axes.plot([found.value - half, found.value + half], [level, level], color=colour, linewidth=1.2)
                axes.plot([found.value], [level], color=colour, marker=_marker(model, models), markersize=5)
        quiet(axes, grid="x")
        axes.set(ylim=(len(parts) - 0.4, -0.7), yticks=[])
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.locator_params(axis="x", nbins=5)

    said = "; ".join(
        f"{part.name}: " + ", ".join(f"{model_name(m)} {part.estimates[m][metric].value:.2f}" for m in present)
        for part in parts
        if all(metric in part.estimates.get(m, {}) for m in present)
    )
    return Panel(
        term=KINDS_OF_SLICES.get(kind, kind.replace("_", " ").capitalize()),
        x_label=metric,
        models=tuple(present),
        svg=drawn(
            draw,
            name=f"slices {kind}",
            described=visible.line(f"{metric.replace('_', ' ')} by part. {said}."),
            n_models=len(models),
            size_in=(4.8, 0.55 + _SLICE_IN * len(parts)),
        ),
    )


def _label(part: Slice) -> str:
    name = visible.line(part.name)
    tokens = count(part.n_tokens).replace(" ", "")
    return f"{name if len(name) <= _LABEL else name[: _LABEL - 1] + '…'}  ({tokens} tokens)"


# --- size against quality ---
def sizes(transfer: Transfer, *, models: Sequence[str]) -> Panel | None:
    """Parameters against held-out loss, and the line that no smaller model is below; None for one student alone."""
    points = pareto.points(transfer)
    if not points:
        return None

    def draw(axes: Any) -> None:
        best = [p for p in points if not p.beaten_by]
        axes.step([p.parameters for p in best], [p.loss for p in best], where="post", color=RULE, linewidth=1.4)
        for p in points:
            colour = stand_in(p.model, models)
            half = quantile_95(p.n) * p.stderr if p.n > 1 else 0.0
            axes.plot([p.parameters] * 2, [p.loss - half, p.loss + half], color=colour, linewidth=1.2)
            axes.plot(
                [p.parameters], [p.loss], color=colour, marker=_marker(p.model, models), markersize=7,
                markerfacecolor=colour if not p.beaten_by else "none",
            )  # fmt: skip
        quiet(axes, grid="both")
        axes.margins(x=0.08, y=0.1)
        axes.locator_params(axis="both", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: compact(value))

    said = "; ".join(f"{model_name(p.model)} {count(p.parameters)} and {p.loss:.3f} nats" for p in points)
    return Panel(
        term="sizes",
        x_label="parameters",
        models=tuple(p.model for p in points),
        svg=drawn(draw, name="sizes", described=f"Parameters and held-out loss. {said}.", n_models=len(models)),
    )
