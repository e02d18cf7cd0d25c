"""Loss curves as SVG for the page: no text but numbers, colours from the page's style, the same bytes every time."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.reports.numbers import compact
from tutelage.roles import model_and_term

Row = Mapping[str, Any]  # one line of metrics.jsonl

_NOT_LOSSES = {"total", "gradient_norm", "learning_rate"}
_SIZE_IN = (5.2, 3.1)
_INK, _RULE = "#010101", "#020202"  # stand-ins, replaced by the page's variables
_SMOOTHED_FROM = 30  # points from which a line is drawn smoothed over its raw points


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model's values of one term against tokens (or steps)."""

    model: str
    held_out: bool
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure: a term of the loss, the models that have it, and the drawing."""

    term: str
    x_label: str
    models: tuple[str, ...]
    has_held_out: bool
    svg: str


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
    return [_panel(term, curves, models=models, x_label=x_key) for term, curves in by_term.items()]


def smoothed(y: Sequence[float]) -> list[float]:
    """A centred moving mean over a fifteenth of the points; windows shrink at both ends, so no point is invented."""
    half = max(1, len(y) // 30)
    windows = ((i, min(half, i, len(y) - 1 - i)) for i in range(len(y)))
    return [sum(y[i - h : i + h + 1]) / (2 * h + 1) for i, h in windows]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _panel(term: str, curves: Sequence[Curve], *, models: Sequence[str], x_label: str) -> Panel:
    shown = {c.model for c in curves}
    return Panel(
        term=term,
        x_label=x_label,
        models=tuple(m for m in models if m in shown),
        has_held_out=any(c.held_out for c in curves),
        svg=_svg(term, curves, models=models),
    )


def _svg(term: str, curves: Sequence[Curve], *, models: Sequence[str]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": f"tutelage {term}", "svg.fonttype": "none", "font.size": 10, "axes.unicode_minus": True}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE_IN, layout="tight")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for curve in curves:
            _draw(axes, curve, colour=_stand_in(list(models).index(curve.model)))
        _style(axes)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _for_page(buffer.getvalue(), n_models=len(models))


def _draw(axes: Any, curve: Curve, *, colour: str) -> None:  # Any: matplotlib is untyped here
    if curve.held_out:
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.2, linestyle=(0, (1, 2)), marker="o", markersize=4.5)
    elif len(curve.y) >= _SMOOTHED_FROM:
        axes.plot(curve.x, curve.y, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(curve.x, smoothed(curve.y), color=colour, linewidth=1.8)
    else:
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.8)


def _style(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(axis="both", length=0, labelcolor=_INK, pad=6)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.locator_params(axis="both", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))


def _stand_in(i: int) -> str:
    return f"#0f{i:02x}01"


def _for_page(svg: str, *, n_models: int) -> str:
    """Without prologue, namespaces, metadata and unused ids; colours by the page's variables, as dark mode needs."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r'\sid="([\w-]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    for stand_in, variable in [
        (_INK, "--muted"),
        (_RULE, "--rule"),
        *((_stand_in(i), f"--m{i}") for i in range(n_models)),
    ]:
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*\n+", "\n", svg)
