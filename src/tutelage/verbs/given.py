"""What the functions of the library take instead of a recipe's fields: models and data that are already in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import ConfigError
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.recipe import Recipe, load_recipe
from tutelage.training.prepare import InMemory


def given_objects(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str],
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    tokenizer: Any = None,
    data: Sequence[object] | None = None,
) -> tuple[Recipe, InMemory]:
    """The checked recipe, with fingerprints where objects stand for its fields, and the objects.

    Raises ConfigError for a recipe that is wrong, or that names what is also given as an object.
    """
    written, memory = _with_memory(recipe, teacher=teacher, student=student, tokenizer=tokenizer, data=data)
    return load_recipe(written, overrides), memory


def _with_memory(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    teacher: nn.Module | None,
    student: nn.Module | None,
    tokenizer: Any,
    data: Sequence[object] | None,
) -> tuple[str | Path | Mapping[str, Any] | Recipe, InMemory]:
    if teacher is None and student is None and data is None:
        return recipe, InMemory(tokenizer=tokenizer)
    if not isinstance(recipe, Mapping):
        raise ConfigError("CONFIG", "objects in memory need the recipe as a dict without the fields they stand for")
    written = {key: value for key, value in recipe.items()}
    if teacher is not None:
        written["teacher"] = {**_beside(written, "teacher"), "memory": _fingerprint("teacher", teacher)}
    if student is not None:
        written["student"] = {**_beside(written, "student"), "memory": _fingerprint("student", student)}
    examples: dict[str, Sequence[object]] = {}
    if data is not None:
        if isinstance(data, str):
            raise ConfigError("CONFIG", "data is one string; expected a list of texts: data=[text]")
        text = json.dumps(list(data), sort_keys=True, default=str)
        fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        examples[fingerprint] = data
        section = _beside(written, "data")
        written["data"] = {**section, "sources": [*section.get("sources", []), {"memory": fingerprint}]}
    return written, InMemory(teacher=teacher, student=student, tokenizer=tokenizer, examples=examples)


def _beside(written: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a section says beside the object that stands for its model or sources."""
    section = written.get(name, {})
    if not isinstance(section, Mapping):
        raise ConfigError("CONFIG", f"{name} is given twice: {section!r} in the recipe, and as an object; give one")
    return dict(section)


def _fingerprint(name: str, model: nn.Module) -> str:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "CONFIG", f"{name}= is {type(model).__name__}, expected a model; a name or path stands in the recipe"
        )
    return weights_fingerprint(model)
