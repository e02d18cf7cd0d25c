"""Which files of this machine a pattern names, with a hint where it names none."""

import difflib
import glob
from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import IntegrityError


def find(patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files that the patterns name, each once, in the order of the patterns and then of their names."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(_matches(str(Path(pattern).expanduser()))))
    return tuple(found)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        raise IntegrityError("DATA_READ", f"{pattern} is a directory; name its files: {path / '*'}")
    if path.exists():
        if path.stat().st_size == 0:
            raise IntegrityError("DATA_READ", f"{pattern} is empty (0 bytes); remove it from data.sources or fill it")
        return [path]
    here, rest = _there(path)
    escaped = str(Path(glob.escape(str(here)), *rest))
    matches = sorted(Path(match) for match in glob.glob(escaped, recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        found = f"no file matches '{pattern}'{_nearest(here, rest[0])}; looked in {Path.cwd()}"
        bracket = "; a [ that is part of a name is written [[]" if any("[" in part for part in rest) else ""
        raise IntegrityError("DATA_READ", found + bracket)
    return files


def _there(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folders of a pattern that are there under these very names, and the parts behind them.

    What looks like a pattern in the name of such a folder is its name: it may be where the recipe lies.
    """
    here = Path(path.anchor)
    parts = path.relative_to(here).parts
    for number, part in enumerate(parts):
        if not (here / part).is_dir():
            return here, parts[number:]
        here /= part
    return here, ()


def _nearest(here: Path, part: str) -> str:
    """A hint: what lies where the pattern first goes wrong, by the nearest name."""
    names = sorted(child.name for child in here.iterdir()) if here.is_dir() else []
    near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
    return f" (nearest: {here / near[0]})" if near else ""
