"""The part of JSON Schema that describes the form of an answer; what is not in it is refused, never ignored."""

from typing import Any

from tutelage.errors import ConfigError

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_KNOWN = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "title", "description", "$schema",
}  # fmt: skip


def refuse_unknown(schema: Any, path: str = "json_schema") -> None:
    """ConfigError for a schema with a word that would not be checked."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ConfigError("CONFIG", f"generate.select: {path} must be a mapping")
    if unknown := sorted(schema.keys() - _KNOWN):
        raise ConfigError(
            "CONFIG", f"generate.select: {path}.{unknown[0]} is not checked here; known: {', '.join(sorted(_KNOWN))}"
        )
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in _TYPES:
            raise ConfigError("CONFIG", f"generate.select: {path}.type {kind!r} is none of {', '.join(_TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        refuse_unknown(inner, f"{path}.properties.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            refuse_unknown(schema[name], f"{path}.{name}")


def mistake(value: Any, schema: Any) -> str:
    """What does not fit, empty when all does."""
    if isinstance(schema, bool):
        return "" if schema else "nothing may stand here"
    kinds = schema.get("type")
    if kinds is not None and not any(_is_a(value, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return f"is no {kinds}"
    if "enum" in schema and not any(_same(value, allowed) for allowed in schema["enum"]):
        return "is none of the enum"
    if "const" in schema and not _same(value, schema["const"]):
        return "is not the const"
    if isinstance(value, dict):
        return _of_object(value, schema)
    if isinstance(value, list):
        return _size(len(value), schema, "Items") or next(
            (m for item in value if (m := mistake(item, schema.get("items", True)))), ""
        )
    if isinstance(value, str):
        return _size(len(value), schema, "Length")
    if isinstance(value, int | float) and not isinstance(value, bool):
        outside = value < schema.get("minimum", value) or value > schema.get("maximum", value)
        return "is outside its limits" if outside else ""
    return ""


def _of_object(value: dict[str, Any], schema: dict[str, Any]) -> str:
    if lacking := [name for name in schema.get("required", []) if name not in value]:
        return f"lacks {lacking[0]}"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, inner in value.items():
        if found := mistake(inner, properties.get(name, others)):
            return f"{name} {found}"
    return ""


def _size(n: int, schema: dict[str, Any], what: str) -> str:
    fits = schema.get(f"min{what}", n) <= n <= schema.get(f"max{what}", n)
    return "" if fits else f"has {n} {what.lower()}"


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _same(a: Any, b: Any) -> bool:
    """Equal, and true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b
