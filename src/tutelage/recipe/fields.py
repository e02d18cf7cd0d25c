"""What a recipe's fields are made of: the section every other one is, and the kinds of value that sections share."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal  # Any: what pydantic hands to a validator is whatever the user wrote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticCustomError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"
_DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


class Section(BaseModel):
    """A part of a recipe: immutable, strict about types, and without room for unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that are off by default and off are left out, so that a later version may add fields."""
        fields = type(self).model_fields
        return {k: v for k, v in handler(self).items() if v is not None or fields[k].default is not None}


def _whole(value: Any) -> Any:
    """2e6 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count_or_auto(value: Any) -> Any:
    """One sentence for both: a union would complain once for each of its kinds."""
    found = _whole(value)
    if found == "auto" or (type(found) is int and found >= 1):
        return found
    raise PydanticCustomError("count", "must be auto, or a whole number from 1, got {got}", {"got": shown(value)})


def _interval(value: float) -> float:
    if 0 < value < 1 or (value >= 1 and value == math.floor(value)):
        return value if value < 1 else int(value)
    raise PydanticCustomError(
        "interval", "must be a whole number of tokens >= 1, or a share of the run in (0, 1), got {got}", {"got": value}
    )


def _extent(value: float) -> float:
    if 0 < value < 1 or (value >= 1 and value == math.floor(value)):
        return value if value < 1 else int(value)
    raise PydanticCustomError(
        "extent", "must be a whole number >= 1, or a share of the teacher's in (0, 1), got {got}", {"got": value}
    )


def _dtype(value: Any) -> Any:
    return _DTYPE_ALIASES.get(value, value) if isinstance(value, str) else value


def is_local(model: str) -> bool:
    """Whether a model is named by a place on this machine and not by a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")


def _absolute(text: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(text).expanduser())


def _folder(info: ValidationInfo) -> Path:
    """The recipe's folder: relative paths count from there."""
    return Path((info.context or {}).get("folder", Path.cwd()))


def is_url(text: str) -> bool:
    """Whether a text names something behind a URL (`s3://bucket/key`) and not a path of this machine."""
    return _URL.match(text) is not None


def _place(text: str, info: ValidationInfo) -> str:
    """A URL stays; a path becomes absolute."""
    return text if is_url(text) else _path(text, info)


def _path(text: str, info: ValidationInfo) -> str:
    return _absolute(text, _folder(info))


def _model(text: str, info: ValidationInfo) -> str:
    """A hub id stays; a place becomes absolute: written as one, or there when the recipe is read."""
    there = _absolute(text, _folder(info))
    return there if is_local(text) or os.path.exists(there) else text


def _function(text: str, info: ValidationInfo) -> str:
    """`path.py:name`, the path counted from the recipe's folder, or `module:name`."""
    place, _, name = text.rpartition(":")
    if place.endswith(".py") and name.isidentifier():
        return f"{_path(place, info)}:{name}"
    if name.isidentifier() and all(part.isidentifier() for part in place.split(".")):
        return text
    raise PydanticCustomError("function", "must be module:name or path.py:name")


def _template(text: str, info: ValidationInfo) -> str:
    return text if "{{" in text or "{%" in text else _path(text, info)


def shown(value: Any) -> str:
    """What was found, on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    """A validator for names that a table elsewhere holds."""

    def check(value: str) -> str:
        if value not in names:
            raise PydanticCustomError("unknown_name", "unknown", {"known": names})
        return value

    return check


Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int)]
Count = Annotated[Whole, Field(ge=1)]
CountOrAuto = Annotated[
    Count | Literal["auto"], PlainValidator(_count_or_auto, json_schema_input_type=Count | Literal["auto"])
]
Index = Annotated[Whole, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Interval = Annotated[float, AfterValidator(_interval), Field(gt=0)]
Extent = Annotated[float, AfterValidator(_extent), Field(gt=0)]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN)]
PLACE = re.compile(r"^(cpu|disk|mps|cuda(:\d+)?)$")  # of a part of a model
Place = Annotated[str, Field(pattern=PLACE.pattern)]
DtypeAlias = BeforeValidator(_dtype)
PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]
PlaceText = Annotated[str, Field(min_length=1), AfterValidator(_place)]
FunctionText = Annotated[str, Field(min_length=1), AfterValidator(_function)]
ModelText = Annotated[str, Field(min_length=1), AfterValidator(_model)]
TemplateText = Annotated[str, Field(min_length=1), AfterValidator(_template)]
Listed = Field(strict=False)  # YAML has lists, a frozen section holds tuples
