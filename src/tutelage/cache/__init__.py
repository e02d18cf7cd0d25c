"""The teacher cache: soft labels on disk, tiny, unbiased, verified.

`TeacherCache` reads one, row by row; `inspect`, `verify`, `show` and `merge` are the verbs of `tutelage cache`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.cache.checks import verify
    from tutelage.cache.merging import merge
    from tutelage.cache.readable import show
    from tutelage.cache.reader import TeacherCache
    from tutelage.cache.report import inspect

_PLACES = {
    "TeacherCache": "reader",
    "inspect": "report",
    "merge": "merging",
    "show": "readable",
    "verify": "checks",
}
__all__ = ["TeacherCache", "inspect", "merge", "show", "verify"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tutelage.cache' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"tutelage.cache.{_PLACES[name]}"), name)
