"""Pages that are made from the code: `python -m tutelage._docs` writes them, `--check` fails when one is stale.

docs/recipe.md   every field of a recipe, from recipe/sections.py      docs/cli.md     the verbs, from cli/
docs/errors.md   every code, from errors.py and where it is raised     recipe.schema.json   for editors, in the package
"""

import ast
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any  # annotations are whatever Python allows

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tutelage import errors, io
from tutelage.losses.names import DIVERGENCES, FEATURES
from tutelage.recipe import json_schema
from tutelage.recipe.fields import Section
from tutelage.recipe.problems import limits, sections_of
from tutelage.recipe.sections import Recipe

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE.parents[1]
_NOTE = "<!-- made from the code by `python -m tutelage._docs`: change the code, not this page -->"
_EXIT = {
    name: value.exit_code
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.TutelageError)
}

_RECIPE_HEAD = f"""# The recipe

{_NOTE}

One YAML file says everything that defines a result. `tutelage init` writes a commented one; any field can be changed
for one call: `tutelage train recipe.yaml training.seed=1 loss.0.weight=0.5`. All mistakes are listed at once. The
resolved recipe (long forms, defaults, absolute paths) is stored in the run.

- Relative paths count from the recipe's folder; `~` is your home folder. From a `dict` in Python they count from the
  working directory.
- Numbers may be written `2_000_000`, `2e6`, `1e-3`. Only `true` and `false` are yes and no. No key may stand twice.
  `null` means off.
- A field that would have no effect is an error, and so is a literal key or password.
- Editors complete and check recipes with `tutelage schema > recipe.schema.json` and, as first line of the recipe,
  `# yaml-language-server: $schema=recipe.schema.json`.
"""
_ERRORS_HEAD = f"""# Errors, warnings and notes

{_NOTE}

One line on stderr: `error[CODE]: what was found, what was expected, what to type next`. `warning[CODE]` and
`note[CODE]` have the same form, and the run goes on. `--debug` shows where in the program an error arose.
"""


def pages() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    return {
        _ROOT / "docs/recipe.md": recipe_page(),
        _ROOT / "docs/errors.md": errors_page(),
        _ROOT / "docs/cli.md": cli_page(),
        _PACKAGE / "recipe.schema.json": json.dumps(json_schema(), indent=1) + "\n",
    }


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = [tuple(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row) for row in rows]
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recipe_page() -> str:
    """docs/recipe.md."""
    parts = [_RECIPE_HEAD]
    for section, path in _sections():
        parts.append(f"## {path or 'The whole recipe'}\n\n{_one_line(section.__doc__)}\n\n{_fields(section)}\n")
    parts.append(f"## Divergences\n\n{_with_own_fields(DIVERGENCES)}\n")
    parts.append(f"## Features\n\n{_with_own_fields(FEATURES)}\n")
    return "\n".join(parts)


def _with_own_fields(named: Mapping[str, tuple[str, ...]]) -> str:
    rows = [(f"`{name}`", ", ".join(f"`{field}`" for field in fields) or "–") for name, fields in named.items()]
    return _table(("name", "its own fields"), *rows)


def _sections(section: type[Section] = Recipe, path: str = "") -> Iterator[tuple[type[Section], str]]:
    """Every section once, at the first place where it stands."""
    seen: set[type[Section]] = set()
    waiting = [(section, path)]
    while waiting:
        section, path = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield section, path
        inner = []
        for name, field in section.model_fields.items():
            if found := sections_of(field.annotation):
                mark = "[]" if "tuple" in str(field.annotation) else ""
                inner.append((found, f"{path}.{name}{mark}".removeprefix(".")))
        waiting = inner + waiting


def _fields(section: type[Section]) -> str:
    rows = [("field", "type", "default", "meaning")]
    for name, field in section.model_fields.items():
        if name == "memory":
            continue  # not for recipes that people write
        allowed = limits(field)
        kind = _kind(field.annotation) + (f" {allowed}" if allowed else "")
        rows.append((f"`{name}`", kind, _default(field), field.description or ""))
    return _table(*rows)


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(v) if isinstance(v, bool) else v}`" for v in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in inner if part is not type(None))
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation.__name__
    words = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    return words.get(annotation, "mapping")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    value = field.default
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_defaults=True)
    elif isinstance(value, tuple):
        value = [item.model_dump(mode="json") if isinstance(item, Section) else item for item in value]
    return f"`{json.dumps(value)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def errors_page() -> str:
    """docs/errors.md."""
    found = _uses()
    rows = [("code", "meaning", "appears as")]
    for code, meaning in errors.CODES.items():
        rows.append((f"`{code}`", meaning, "; ".join(sorted(found.get(code, ())) or ["–"])))
    tree = (errors.__doc__ or "").split("\n\n")[1]
    return f"{_ERRORS_HEAD}\n```text\n{tree}\n```\n\n{_table(*rows)}\n"


def _uses() -> dict[str, set[str]]:
    """How each code appears, read from the calls in the source: `error, exit 3`, `warning`, `note`."""
    found: dict[str, set[str]] = {"BUG": {"error, exit 1"}, "STOPPED": {"note, exit 130 or 143"}}
    for path in sorted(_PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            if call.args and isinstance(call.args[0], ast.Constant):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                if call.args[0].value in errors.CODES:
                    found.setdefault(call.args[0].value, set()).update(_appearance(name))
            elif (
                isinstance(code := named.get("code"), ast.Constant) and code.value in errors.CODES and "level" in named
            ):
                found.setdefault(code.value, set()).update(_levels(named["level"]))  # what `doctor` finds
    return found


def _levels(level: ast.expr) -> set[str]:
    """The levels that an expression may give: constants, or a choice between two."""
    return {str(part.value) for part in ast.walk(level) if isinstance(part, ast.Constant)} & {
        "error",
        "warning",
        "note",
    }


def _appearance(name: str) -> set[str]:
    if name in _EXIT:
        return {f"error, exit {_EXIT[name]}"}
    return {name if name in ("warning", "note") else "error"}


def cli_page() -> str:
    """docs/cli.md."""
    from tutelage.cli import app

    group = typer.main.get_command(app)
    parts = [f"# The command line\n\n{_NOTE}\n\n{_help(group.help)}\n\n{_one_line(group.epilog)}\n"]
    for name, command in _commands(group, ""):
        rows = [("flag", "meaning", "default")]
        for parameter in command.params:
            rows.append((_flags(parameter), parameter.help or "", _parameter_default(parameter)))
        rows.append(("`-h`, `--help`", "Show the help of the verb.", "–"))
        parts.append(f"## tutelage{name}\n\n{_help(command.help)}\n\n{_table(*rows)}\n")
    return "\n".join(parts)


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every verb, those of a group under its name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _help(text: str | None) -> str:
    """Help text as Markdown: a block after a backspace keeps its lines."""
    paragraphs = []
    for paragraph in (text or "").split("\n\n"):
        kept = paragraph.removeprefix("\b\n")
        paragraphs.append(f"```text\n{kept}\n```" if kept != paragraph else _one_line(paragraph))
    return "\n\n".join(paragraphs)


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(f"`{flag}`" for flag in [*parameter.opts[:-1], parameter.opts[-1] + metavar])


def _parameter_default(parameter: Any) -> str:
    if parameter.required:
        return "**required**"
    return "–" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def main(arguments: list[str]) -> int:
    """Writes the pages, or with --check says which are stale; the exit code."""
    if not (_ROOT / "pyproject.toml").exists():
        print("python -m tutelage._docs works in a clone of the project only", file=sys.stderr)
        return 2
    fresh = pages()
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(_ROOT))
        if "--check" not in arguments:
            io.write_text(path, fresh[path], private=False)
    if stale and "--check" in arguments:
        print("stale; run: python -m tutelage._docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
