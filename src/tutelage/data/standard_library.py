"""Python's own documentation and source code: text that is on every machine that can run this program.

Nothing is imported but read: the documentation is what `ast` finds in the files of the standard library.  It
differs between versions of Python.
"""

import ast
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tutelage.data.example import Example

_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
}
_TOPICS = Path("pydoc_data/topics.py")
MIN_CHARACTERS = 80  # a shorter docstring repeats its name
_DOCUMENTED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def files() -> tuple[Path, ...]:
    """The Python files of the standard library without its tests, in the order of their names."""
    paths = []
    for folder, subfolders, names in os.walk(_root()):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return tuple(Path(path) for path in sorted(paths))


@cache
def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read_docs(source: str) -> Iterator[Example]:
    """The topics of `help()` and the docstrings: one document for each module and each top-level class or function."""
    seen: set[bytes] = set()
    docstrings = (item for path in files() if path != _root() / _TOPICS for item in _docstrings(path))
    for name, text in itertools.chain(_topics(), docstrings):
        example = Example(source=source, name=name, text=text)
        if len(text) >= MIN_CHARACTERS and example.document not in seen:
            seen.add(example.document)
            yield example


def read_source(source: str) -> Iterator[Example]:
    """The source files without their docstrings, which `read_docs` has.

    Their order is that of hashed names, so that any beginning is a fair sample.
    """
    for path in sorted(files(), key=lambda path: hashlib.sha256(_relative(path).encode()).digest()):
        tree = _tree(path)
        code = _without_docstrings(path.read_text(encoding="utf-8"), tree) if tree else ""
        if len(code) >= MIN_CHARACTERS and _relative(path) != str(_TOPICS):
            yield Example(source=source, name=_relative(path), text=code)


def _topics() -> list[tuple[str, str]]:
    tree = _tree(_root() / _TOPICS)
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign)] if tree else []
    topics = {} if not tables else ast.literal_eval(tables[0])
    return [(f"topic {name}", text.strip()) for name, text in sorted(topics.items())]


def _tree(path: Path) -> ast.Module | None:
    """The parsed file; None for the few that are templates or broken on purpose."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each documented object of a module."""
    tree = _tree(path)
    module = ".".join(path.relative_to(_root()).with_suffix("").parts).removesuffix(".__init__")
    if tree is None:
        return
    if text := ast.get_docstring(tree):
        yield module, f"{module}\n\n{text.strip()}"
    for node in tree.body:
        if isinstance(node, _DOCUMENTED) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", _help(node, module)


def _help(node: _DOCUMENTED, owner: str) -> str:
    """What `help()` would show of an object: its call and docstring, and those of its public methods."""
    call = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
    blocks = [f"{owner}.{node.name}{call}", (ast.get_docstring(node) or "").strip()]
    if isinstance(node, ast.ClassDef):
        methods = [child for child in node.body if isinstance(child, _DOCUMENTED) and ast.get_docstring(child)]
        blocks += [_help(child, node.name) for child in methods if not child.name.startswith("_")]
    return "\n\n".join(block for block in blocks if block) if len([b for b in blocks if b]) > 1 else ""


def _without_docstrings(code: str, tree: ast.Module) -> str:
    lines = code.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | _DOCUMENTED) and ast.get_docstring(node) is not None:
            string = node.body[0]
            lines[string.lineno - 1 : string.end_lineno] = [""] * ((string.end_lineno or 0) - string.lineno + 1)
    return "\n".join(line for line in lines if line.strip())


def _relative(path: Path) -> str:
    return str(path.relative_to(_root()))
