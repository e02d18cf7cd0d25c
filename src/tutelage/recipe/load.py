"""A recipe from a file, a mapping or another recipe, with every mistake listed at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # a recipe before its check is whatever the user wrote

from pydantic import ValidationError

from tutelage.errors import ConfigError
from tutelage.recipe import rules, short, text
from tutelage.recipe.problems import Path as FieldPath
from tutelage.recipe.problems import Problem, dotted, of_validation
from tutelage.recipe.sections import Recipe

Assignment = tuple[FieldPath, Any]


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe; `overrides` are `section.field=value` with YAML values.

    Relative paths count from the recipe file's folder, or from the working directory when there is no file.
    Raises ConfigError[CONFIG] with every mistake, or ConfigError[KEY_IN_CONFIG] before any value could be shown.
    """
    if isinstance(source, Recipe) and not overrides:
        return source  # checked, and what it leaves open may be filled in by who uses it
    written, label, folder = _read(source)
    assignments = [text.assignment(override) for override in overrides]
    long, problems = _assign(written, assignments)
    if literal := text.literal_keys(written) + text.literal_keys(long):
        lines = dict.fromkeys(f"{dotted(problem.path)} {problem.message}" for problem in literal)
        raise ConfigError("KEY_IN_CONFIG", f"{label}: {'; '.join(lines)}")
    long = short.recipe(long)
    recipe = None
    try:
        recipe = Recipe.model_validate(long, context={"folder": folder})
    except ValidationError as error:
        problems += of_validation(error)
    known = {problem.path for problem in problems}
    problems += [problem for problem in rules.broken(long) if problem.path not in known]
    if problems or recipe is None:
        lines = dict.fromkeys(f"{dotted(_in_words(p.path, written, assignments))} {p.message}" for p in problems)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigError("CONFIG", f"{count} in {label}: {'; '.join(lines)}")
    return recipe


def _read(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict[str, Any], str, Path]:
    """The tree as the user wrote it, what to call it, and the folder that relative paths count from."""
    if isinstance(source, Recipe):
        return source.resolved(), "recipe", Path.cwd()
    if isinstance(source, Mapping):
        return _plain(source), "recipe", Path.cwd()
    path = Path(source)
    return text.read(path), str(path), path.absolute().parent


def _plain(value: Any) -> Any:
    """Mappings as dict, sequences as list, paths as text: what a YAML file would have given."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _assign(tree: dict[str, Any], assignments: list[Assignment]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree with the overrides; a section that a path leads into is written out first."""
    problems = []
    for path, value in assignments:
        long = _written_out(tree, str(path[0])) if path[1:] else tree
        try:
            tree = text.assigned(long, path, value=value)
        except LookupError as error:
            problems.append(Problem(path, f"cannot be set: {error.args[0]}"))
    return tree, problems


def _written_out(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The tree with one section in its long form; what that says of other sections must not take their place."""
    section = short.recipe({name: tree[name]}) if name in tree else {}
    return {**tree, name: section[name]} if section else tree


def _in_words(path: FieldPath, written: dict[str, Any], assignments: list[Assignment]) -> FieldPath:
    """The path in the user's own words: those of the override that set it, or those of the file."""
    for assigned, value in reversed(assignments):
        if path[: len(assigned)] == assigned:
            return (*assigned, *_as_written(path[len(assigned) :], value))
    return _as_written(path, written)


def _as_written(path: FieldPath, tree: Any) -> FieldPath:
    """A short form ends where it stands, without the fields that it expands to."""
    kept: list[str | int] = []
    for part in path:
        if isinstance(part, int) and isinstance(tree, dict):
            continue  # one term stands for a list of one
        if isinstance(part, str) and isinstance(tree, list) and part in ("listed", "sources"):
            continue  # a list stands for the field that holds it
        if tree is not None and not isinstance(tree, dict | list):
            break
        kept.append(part)
        tree = _inside(tree, part)
    return tuple(kept)


def _inside(tree: Any, part: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(part)
    return tree[part] if isinstance(tree, list) and isinstance(part, int) and part < len(tree) else None
