"""A table with a title, a note on how it was measured, names of columns and rows of text: for a terminal and a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from tutelage import visible
from tutelage.evaluation.shares import Share

DECIDED = "●"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The first column is of words, the others are of numbers; every text is safe to print."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_rich(self) -> RichTable:
        """For a terminal."""
        shown = RichTable(
            title=self.title, title_justify="left", title_style="bold", caption=self.note, caption_justify="left",
            box=None, padding=(0, 2, 0, 0), pad_edge=False,
        )  # fmt: skip
        for i, name in enumerate(self.head):
            shown.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            shown.add_row(*(Text(visible.line(cell)) for cell in row))
        return shown


def percent(found: Share) -> str:
    """A share with its 95 % interval: `12.0 (8.1–17.3)`; "–" of nothing."""
    if found.n <= 0:
        return "–"
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def marked(text: str, decided: bool) -> str:
    """The text, marked where it is more than noise."""
    return f"{text} {DECIDED}" if decided else text
