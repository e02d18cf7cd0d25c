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
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        raise IntegrityError("DATA_READ", f"no file matches '{pattern}'{_nearest(path)}; looked in {Path.cwd()}")
    return files


def _nearest(path: Path) -> str:
    """A hint: what lies where the pattern first goes wrong, by the nearest name."""
    here = Path(path.anchor) if path.anchor else Path()
    for part in path.relative_to(here).parts if path.anchor else path.parts:
        if (here / part).is_dir():
            here /= part
            continue
        names = sorted(child.name for child in here.iterdir()) if here.is_dir() else []
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
        return f" (nearest: {here / near[0]})" if near else ""
    return ""
