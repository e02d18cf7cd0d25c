"""What is drawn with rich, as text for whatever reads it: colours only on a terminal."""

import os
import shutil
import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

_MOST_COLUMNS, _COLUMNS = 120, 100


def printed(draw: Callable[[int], RenderableType]) -> str:
    """`draw(width)` as text, with colours when stderr is a terminal; 100 columns wide where nobody says."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    width = min(shutil.get_terminal_size((_COLUMNS, 40)).columns, _MOST_COLUMNS) if terminal else _COLUMNS
    console = Console(width=width, force_terminal=terminal, highlight=False, color_system="auto" if terminal else None)
    with console.capture() as captured:
        console.print(draw(width))
    return captured.get().rstrip("\n")
