"""Ratchets: what keeps the repository readable and safe is counted here, so that it cannot slip."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.errors import CODES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tutelage"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = sorted(p for folder in ("src", "tests", "scripts", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}
MOST_LINES, MOST_FUNCTION_LINES, MOST_FOLDERS = 400, 60, 3

# A room may import from its own level and from those above it in this list.
_BASE = "errors types io reading plugins randomness console home locks roles tensor_file visible _compiled"
LEVELS = (
    set(_BASE.split()),
    {"recipe", "data", "losses"},
    {"models", "rundir"},
    {"losses.family", "cache"},  # the seam, where models, heads and losses meet; the teacher's outputs on disk
    {"teachers"},
    {"training"},
    {"evaluation", "generation"},
    {"reports", "planning"},
    {"verbs"},
    {"cli"},
    {"__init__", "__main__", "_docs"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
LIGHT = (
    "recipe",
    "errors",
    "cli",
    "console",
    "home",
    "io",
    "reading",
    "plugins",
    "randomness",
    "rundir",
    "losses.names",
)


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(module: str) -> int:
    """The level of `losses.family`, or else of its room; 0 for what is no room (a name of `tutelage` itself)."""
    parts = module.split(".")
    return LEVEL_OF.get(".".join(parts[:2]), LEVEL_OF.get(parts[0], 0))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module name that a file imports, wherever the import stands, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of what is called: `write_text` of `path.write_text(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


# --- size ---
def test_no_file_is_longer_than_400_lines():
    lines = {short(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON}
    assert {p: n for p, n in lines.items() if n > MOST_LINES} == {}


def test_no_function_is_longer_than_60_lines():
    found = {
        f"{short(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {where: n for where, n in found.items() if n > MOST_FUNCTION_LINES} == {}


def test_no_source_lies_deeper_than_three_folders():
    assert [short(p) for p in SOURCES if len(p.relative_to(PACKAGE).parents) > MOST_FOLDERS] == []


def test_no_file_is_named_after_nothing():
    nothing = {"utils", "helpers", "common", "manager", "handler", "misc"}
    assert [short(p) for p in SOURCES if p.stem.strip("_") in nothing] == []


# --- order ---
def test_every_room_has_its_place_in_the_order():
    assert {room(p) for p in SOURCES} - LEVEL_OF.keys() == set()


def test_imports_go_one_way():
    wrong = []
    for path in SOURCES:
        own = level_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        for name, line in imported(TREES[path]):
            package, _, module = name.partition(".")
            if package == "tutelage" and level_of(module) > own:
                wrong.append(f"{short(path)}:{line} imports {name}")
    assert wrong == []


def test_losses_know_no_teacher_and_the_trainer_no_source_of_data():
    for path in SOURCES:
        names = {name for name, _ in imported(TREES[path])}
        if room(path) == "losses":
            assert not any(n.startswith(("tutelage.teachers", "tutelage.data", "tutelage.recipe")) for n in names)
        if path.name == "trainer.py":
            assert not any(n.startswith(("tutelage.data", "tutelage.recipe", "tutelage.teachers")) for n in names)


# --- safety ---
WRITERS = {
    "open": "rb",  # only with a mode that reads
    **dict.fromkeys(
        ("write_text", "write_bytes", "unlink", "rmdir", "rename", "renames", "replace", "mkdir", "touch"), ""
    ),
    **dict.fromkeys(("makedirs", "rmtree", "move", "copy2", "copyfile", "copytree", "symlink_to", "hardlink_to"), ""),
    **dict.fromkeys(("NamedTemporaryFile", "mkstemp", "truncate", "ftruncate", "extractall"), ""),
}
FILE_OBJECTS = {"os", "shutil", "tempfile", "pathlib"}


def writes_files(name: str, call: ast.Call) -> bool:
    """Whether a call writes, renames or deletes a file (`io.rename` and `str.replace` do not count)."""
    if name not in WRITERS or (call.args and ast.unparse(call.args[0]) == "os.devnull"):
        return False
    bare = isinstance(call.func, ast.Name)
    if name == "open":
        modes = [*call.args[1 if bare else 0 :][:1], *(k.value for k in call.keywords if k.arg == "mode")]
        return any(not isinstance(m, ast.Constant) or re.search(r"[wxa+]", str(m.value)) for m in modes)
    if bare:
        return name not in {"replace", "rename", "truncate"}  # of dataclasses
    owner = call.func.value
    if isinstance(owner, ast.Name) and owner.id == "io":
        return False
    if name in {"replace", "rename", "truncate"}:  # strings, dataclasses and frames have them too
        return isinstance(owner, ast.Name) and owner.id in FILE_OBJECTS
    return True


def test_the_scan_for_writers_sees_the_ways_to_write():
    for code in ("open('x', 'w')", "p.open(mode='ab')", "p.write_text('')", "os.replace(a, b)", "shutil.rmtree(p)"):
        ((name, call),) = calls(ast.parse(code))
        assert writes_files(name, call), code
    for code in ("open('x')", "p.open('rb')", "io.write_text(p, '')", "text.replace('a', 'b')"):
        ((name, call),) = calls(ast.parse(code))
        assert not writes_files(name, call), code


def test_only_io_writes_renames_or_deletes_files():
    found = [
        f"{short(path)} {name}"
        for path in SOURCES
        if room(path) != "io"
        for name, call in calls(TREES[path])
        if writes_files(name, call)
    ]
    assert found == []


def test_nothing_is_pickled_or_loaded_by_torch():
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for path in SOURCES:
        assert not {n for n, _ in imported(TREES[path]) if n.split(".")[0] in forbidden}, short(path)
        for name, call in calls(TREES[path]):
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            assert not (name in {"load", "save"} and isinstance(owner, ast.Name) and owner.id == "torch"), short(path)
            allowed = [k.value for k in call.keywords if k.arg == "allow_pickle"]
            assert all(isinstance(v, ast.Constant) and v.value is False for v in allowed), short(path)


def test_remote_code_is_never_allowed_by_a_literal():
    for path, tree in TREES.items():
        for _, call in calls(tree):
            for keyword in call.keywords:
                if keyword.arg == "trust_remote_code":
                    assert not (isinstance(keyword.value, ast.Constant) and keyword.value.value is True), short(path)


def committed_files() -> list[Path]:
    """What git has, and what it would take; in an unpacked archive everything but the environments."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)]


def test_no_registry_host_and_no_machine_path_is_written_down():
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"))]
    hosts += [".".join(parts) for parts in (("download", "pytorch", "org"), ("deb", "debian", "org"))]
    words = [*hosts, "/" + "root/", "/" + "work/", "/" + "opt/"]
    for path in committed_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert [word for word in words if word in text] == [], short(path)


def test_nothing_is_left_for_later():
    words = ["TO" + "DO", "FIX" + "ME", "X" * 3]
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        assert [w for w in words if re.search(rf"\b{w}\b", text)] == [], short(path)


# --- errors ---
def test_every_code_that_is_used_is_known_and_every_known_code_is_used():
    used: dict[str, str] = {}
    for path in SOURCES:
        for name, call in calls(TREES[path]):
            first = call.args[0] if call.args else None
            spoken = name.endswith("Error") or name in {"note", "warning"}
            if spoken and isinstance(first, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9_]+", str(first.value)):
                used.setdefault(str(first.value), short(path))
    assert {code: where for code, where in used.items() if code not in CODES} == {}
    text = "\n".join(p.read_text(encoding="utf-8") for p in SOURCES if p.name != "errors.py")
    assert [code for code in CODES if f'"{code}"' not in text] == []


# --- imports and data ---
@pytest.mark.parametrize("module", ["tutelage", *(f"tutelage.{name}" for name in LIGHT)])
def test_what_needs_no_torch_imports_none(module):
    heavy = "{'torch', 'transformers', 'matplotlib', 'tensorboard'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["train", "--help"]])
def test_help_and_version_import_no_torch(flags):
    code = (
        "import sys\nfrom tutelage.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "assert not status, status\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_the_package_ships_is_there():
    assert list((PACKAGE / "recipes").glob("*.yaml"))
    assert (PACKAGE / "recipe.schema.json").is_file()
    assert (PACKAGE / "py.typed").is_file()


def test_every_public_part_says_what_it_is():
    silent = []
    for path in SOURCES:
        tree = TREES[path]
        kinds = (ast.ClassDef, ast.FunctionDef)
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        members = [m for c in classes for m in c.body if isinstance(m, kinds)]
        nodes = [tree, *(n for n in tree.body if isinstance(n, kinds)), *members]
        public = [n for n in nodes if not getattr(n, "name", "x").startswith("_")]
        silent += [f"{short(path)} {getattr(n, 'name', 'module')}" for n in public if not ast.get_docstring(n)]
    assert silent == []


# --- the two commands ---
def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    assert {"demo", "test"} <= named <= targets


def test_every_pinned_version_is_exact_and_every_dependency_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = set(re.findall(r'^\s*"([A-Za-z0-9_-]+)(?:>=|==)', project, re.MULTILINE))
    wanted |= set(re.findall(r'"([A-Za-z0-9_-]+)(?:[>=]=[^"]*)?"', project.partition("dev = [")[2].partition("]")[0]))
    assert {w for w in wanted if re.sub(r"[-_.]+", "-", w).lower() not in pinned} == set()
