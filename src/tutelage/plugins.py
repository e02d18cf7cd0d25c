"""File name = option name: the only registry.

`names("evaluation/metrics")` lists the modules of a folder, `load("evaluation/metrics", "ece")` imports one.
A name that is not a file is refused with the nearest match before anything is imported, so `../x` cannot be.
"""

import difflib
import importlib
from pathlib import Path
from types import ModuleType

from tutelage.errors import ConfigError

_PACKAGE = Path(__file__).parent


def names(folder: str) -> tuple[str, ...]:
    """The parts in `folder` (relative to the package), sorted; private files do not count."""
    return tuple(sorted(p.stem for p in (_PACKAGE / folder).glob("*.py") if not p.stem.startswith("_")))


def load(folder: str, name: str) -> ModuleType:
    """The module of one part; ConfigError[CONFIG] with the list and the nearest match when there is none."""
    known = names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" ({near[0]}?)" if near else ""
        raise ConfigError("CONFIG", f"{folder}: '{name}' unknown{hint}; known: {', '.join(known)}")
    return importlib.import_module("tutelage." + folder.replace("/", ".") + "." + name)
