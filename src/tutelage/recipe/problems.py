"""Mistakes in a recipe as lines that say where, what, and what was probably meant."""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard  # Any: what the user wrote

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tutelage import __version__
from tutelage.recipe.fields import DEVICE_PATTERN, Section, shown
from tutelage.recipe.models import Teacher
from tutelage.recipe.sections import Evaluation, Recipe

Path = tuple[str | int, ...]

_LATER: dict[type[Section], tuple[str, ...]] = {
    Teacher: ("top_k",),
    Evaluation: ("tasks", "probes"),
}
_SYNONYMS = {
    "lr": "learning_rate",
    "batch_size": "batch_tokens",
    "per_device_train_batch_size": "micro_batch",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "n_layers": "layers",
    "num_layers": "layers",
    "max_seq_length": "max_length",
    "seq_len": "max_length",
    "dtype": "precision",
    "bf16": "precision",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "grad_clip": "max_grad_norm",
    "name": "model",
    "path": "model",
    "kl": "forward_kl",
    "kld": "forward_kl",
    "fkl": "forward_kl",
    "rkl": "reverse_kl",
    "js": "jensen_shannon",
    "jsd": "jensen_shannon",
    "tvd": "total_variation",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the path of the field, and what follows it in the sentence."""

    path: Path
    message: str


def dotted(path: Path) -> str:
    """`("loss", 0, "beta")` as loss[0].beta."""
    names = [part if isinstance(part, int) or re.fullmatch(r"[\w-]+", part) else repr(part) for part in path]
    text = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
    return text.removeprefix(".") or "recipe"


def nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that was probably meant."""
    if _SYNONYMS.get(name.lower()) in known:
        return _SYNONYMS[name.lower()]
    if len(name) >= 4 and (whole := [k for k in known if name.lower() in k]):
        return whole[0]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return near[0] if near else None


def sections_of(annotation: Any) -> type[Section] | None:
    """The section inside Optional, tuple and Annotated, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, dict, typing.Annotated):
        for part in typing.get_args(annotation):
            if found := sections_of(part):
                return found
    return None


_BY_NAME = ("students", "writers")  # mappings of a user's names to sections


def section_at(path: Path) -> type[Section] | None:
    """The section that stands at a path of the recipe."""
    section: type[Section] | None = Recipe
    by_name = False  # the next part is a name of the user's, such as a student's
    for part in path:
        if by_name:
            by_name = False
        elif isinstance(part, str):
            by_name = section in (Recipe, Teacher) and part in _BY_NAME
            section = _section_of_field(section, part)
    return section


def _section_of_field(section: type[Section] | None, name: str) -> type[Section] | None:
    if section is None or name not in section.model_fields:
        return None
    return sections_of(section.model_fields[name].annotation)


def field_at(path: Path) -> FieldInfo | None:
    """The field at a path of the recipe."""
    section = section_at(path[:-1]) if path else None
    return section.model_fields.get(str(path[-1])) if section else None


def _limits_at(path: Path) -> str:
    """The range of the number at a path, or of the numbers in the list that it is in."""
    if path and isinstance(path[-1], int):
        field = field_at(path[:-1])
        return _range(_rules_inside(field.annotation)) if field else ""
    return limits(field_at(path))


def limits(field: FieldInfo | None) -> str:
    """The allowed range of a number, as `> 0` or `in [0, 1)`; empty when there is none."""
    return _range(_rules(field.annotation, field.metadata)) if field else ""


def _range(rules: Iterator[Any]) -> str:
    low = high = None
    for rule in rules:
        if (found := getattr(rule, "gt", None)) is not None:
            low = ("(", found)
        elif (found := getattr(rule, "ge", None)) is not None:
            low = ("[", found)
        elif (found := getattr(rule, "lt", None)) is not None:
            high = (")", found)
        elif (found := getattr(rule, "le", None)) is not None:
            high = ("]", found)
    if low and high:
        return f"in {low[0]}{low[1]}, {high[1]}{high[0]}"
    if low:
        return f"{'>' if low[0] == '(' else '>='} {low[1]}"
    return f"{'<' if high[0] == ')' else '<='} {high[1]}" if high else ""


def _rules(annotation: Any, metadata: typing.Iterable[Any] = ()) -> Iterator[Any]:
    """The annotations of a field, also those inside Optional; not those inside a list."""
    for rule in metadata:
        yield from getattr(rule, "metadata", None) or [rule]
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *rules = typing.get_args(annotation)
        yield from _rules(inner, rules)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _rules(part)


def _rules_inside(annotation: Any) -> Iterator[Any]:
    """The annotations of the entries of a list."""
    for part in typing.get_args(annotation):
        if typing.get_origin(annotation) is tuple:
            yield from _rules(part)
        else:
            yield from _rules_inside(part)


def of_validation(error: ValidationError) -> list[Problem]:
    """One problem for each mistake that pydantic found."""
    return [_problem(detail) for detail in error.errors(include_url=False) if not _is_echo(detail)]


def _without_types(path: Path) -> Path:
    """pydantic puts the type of each free-form value between the names of a config."""
    inside = 3 if path[0] == "students" else 2
    if path[0] not in ("teacher", "student", "students") or path[inside - 1 : inside] != ("config",):
        return path
    return (*path[:inside], *path[inside::2])


def _is_echo(detail: ErrorDetails) -> bool:
    """A list that is "too short" only because its entries are wrong, each named on its own."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _problem(detail: ErrorDetails) -> Problem:
    path, kind, found = detail["loc"], detail["type"], detail["input"]
    path = _without_types(path)
    context = detail.get("ctx", {})
    if kind == "missing":
        return Problem(path, _missing(path))
    if kind == "extra_forbidden":
        return Problem(path, _unknown_field(path))
    if kind in ("unknown_name", "literal_error"):
        known = context["known"] if kind == "unknown_name" else _literals(str(context["expected"]))
        return Problem(path, unknown_name(found, tuple(known)))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        section = section_at(path)
        names = f" with {', '.join(_public(section))}" if section else ""
        return Problem(path, f"must be a mapping{names}, got {shown(found)}")
    if kind == "too_short" and found:
        return Problem(path, f"needs at least {context['min_length']} entries, got {len(found)}")
    if kind in ("too_short", "string_too_short"):
        return Problem(path, "must not be empty")
    if kind == "too_long":
        return Problem(path, f"has too many entries, got {shown(found)}")
    if kind == "string_pattern_mismatch":
        if context["pattern"] != DEVICE_PATTERN:  # a student's name, which pydantic puts before the word [key]
            allowed = "letters, digits, - and _, beginning with a letter"
            return Problem(path[:-1] if path[-1:] == ("[key]",) else path, f"must be {allowed}, got {shown(found)}")
        return Problem(path, f"must be auto, cpu, mps, cuda or cuda:N, got {shown(found)}")
    if kind in ("interval", "extent", "count", "layers"):
        return Problem(path, detail["msg"])
    return Problem(path, _wrong_value(path, kind=kind, found=found, message=detail["msg"]))


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}


def _wrong_value(path: Path, *, kind: str, found: Any, message: str) -> str:
    allowed = _limits_at(path)
    if kind in _KINDS:
        expected = f"{_KINDS[kind]} {allowed}".strip()
    elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        expected = allowed or message.removeprefix("Input should be ")
    else:
        return f"{message[0].lower()}{message[1:]}, got {shown(found)}"
    return f"must be {expected}, got {shown(found)}{_at_the_ends(path, found)}"


def _at_the_ends(path: Path, found: Any) -> str:
    """The name of the divergence that a blend degenerates to."""
    if path[-1:] == ("beta",) and found in (0, 1) and not isinstance(found, bool):
        return "; for beta=0 use forward_kl, for beta=1 reverse_kl"
    if path[-1:] == ("alpha",) and path[-2:-1] != ("lora",) and found == 0 and not isinstance(found, bool):
        return "; for alpha=0 use forward_kl or reverse_kl"
    if path == ("data", "held_out", "share") and found == 0:
        return "; to keep nothing write null"
    return ""


def _missing(path: Path) -> str:
    field = field_at(path)
    return f"is missing ({field.description})" if field and field.description else "is missing"


def _public(section: type[Section]) -> tuple[str, ...]:
    return tuple(name for name in section.model_fields if name != "memory")


def _unknown_field(path: Path) -> str:
    section, name = section_at(path[:-1]), str(path[-1])
    if section is None:
        return "unknown"
    known = _public(section)
    columns = section_at((*path[:-1], "columns")) if "columns" in known else None
    known += _public(columns) if columns is not None else ()  # their short form
    if name in _LATER.get(section, ()):
        return f"is not in this version ({__version__}); it knows {', '.join(known)}"
    if near := nearest(name, known):
        return f"unknown ({near}?)"
    if elsewhere := _elsewhere(name):
        return f"unknown ({elsewhere}?)"
    return f"unknown; known: {', '.join(known)}"


def _elsewhere(name: str) -> str | None:
    """The path of a field of that name in another section."""
    name = _SYNONYMS.get(name, name)
    found = [path for path in all_fields() if path.rpartition(".")[2] == name]
    return min(found, key=lambda path: path.count("."), default=None)


def all_fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """The dotted path of every field, `[]` for a place in a list, `.NAME` for a name of the user's."""
    for name in _public(section):
        field = section.model_fields[name]
        yield prefix + name
        if inner := sections_of(field.annotation):
            mark = ".NAME" if name in _BY_NAME else "[]" if "tuple" in str(field.annotation) else ""
            yield from all_fields(inner, f"{prefix}{name}{mark}.")


def unknown_name(found: Any, known: tuple[str, ...]) -> str:
    """For a value that must be one of several names."""
    near = nearest(found, known) if isinstance(found, str) else None
    return f"{shown(found)} unknown{f' ({near}?)' if near else ''}; known: {', '.join(known)}"


def _literals(expected: str) -> tuple[str, ...]:
    """pydantic's "'a', 'b' or 'c'" as names."""
    return tuple(part.strip().strip("'") for part in expected.replace(" or ", ", ").split(","))


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is an ordinary number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
