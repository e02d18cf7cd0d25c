"""Drawings with matplotlib as SVG for the page: colours of the page's style, the same bytes every time.

A drawing has its alternative in words (its `title`), since nobody hears a line.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

INK, RULE = "#010101", "#020202"  # stand-ins, replaced by the page's variables
_VARIABLES = {INK: "--muted", RULE: "--rule"}
_SETTINGS = {"svg.fonttype": "none", "font.size": 10, "axes.unicode_minus": True, "text.parse_math": False}


def drawn(
    draw: Callable[[Any], None], *, name: str, described: str, n_models: int, size_in: tuple[float, float] = (4.8, 3.0)
) -> str:
    """The SVG that `draw` made of matplotlib's axes; `described` is its alternative for who does not see it.

    Texts in it are escaped; they must be `visible` already.  Raises nothing for a font without their characters: the
    page's own font draws them.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": f"tutelage {name}"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that matplotlib's font lacks
        figure = Figure(figsize=size_in)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        figure.tight_layout()  # once; as the figure's layout engine it would run again for every drawing of savefig
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _for_page(buffer.getvalue(), described=described, n_models=n_models)


def stand_in(model: str, models: Sequence[str]) -> str:
    """A colour that becomes the page's colour of a model."""
    return f"#0f{list(models).index(model):02x}01"


def quiet(axes: Any, *, grid: str = "y") -> None:  # Any: matplotlib is untyped here
    """Axes as the page has them: no frame, no ticks, thin lines."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(axis="both", length=0, labelcolor=INK, pad=6)
    axes.grid(axis=grid, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _for_page(svg: str, *, described: str, n_models: int) -> str:
    """Without prologue, namespaces, metadata and unused ids; colours by the page's variables, as dark mode needs."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"([^>]*>)', r'\1 role="img"\2<title></title>', svg, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r'\sid="([\w-]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    for colour, variable in [*_VARIABLES.items(), *((f"#0f{i:02x}01", f"--m{i}") for i in range(n_models))]:
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"\n\s*\n+", "\n", svg)
    return svg.replace("<title></title>", f"<title>{escape(described)}</title>", 1)
