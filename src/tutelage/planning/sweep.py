"""Settings of a sweep: which fields of a recipe take which values, and every combination of them.

`FIELD=VALUE,VALUE,…`: the values are YAML, with commas between them, so that a list is one value, and so is a mapping:
`student.layers=[0,3],[0,2]`.  Several fields make a product.  Only what a student is, what it learns and how its
optimizer goes may change: everything else is what all settings have in common, or what a comparison decides itself.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # values are whatever YAML gives

from tutelage.errors import ConfigError
from tutelage.recipe import text

_FREE = ("student", "loss")
_OF_TRAINING = ("learning_rate", "schedule", "warmup", "decay", "weight_decay", "betas", "max_grad_norm", "ema")
_DECIDED = {
    "training.tokens": "compare decides the length; give --tokens or --hours",
    "training.steps": "compare decides the length; give --tokens or --hours",
    "training.epochs": "compare decides the length; give --tokens or --hours",
    "training.seed": "compare decides the seeds; give --seeds",
    "control": "control is one of the techniques of every setting; give --techniques",
    "students": "a comparison has one student; sweep student",
}
_COMMON = (
    "all settings of a sweep have it in common, so that their students are measured alike; set it for all: {name}=…"
)
_MOST_LETTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One combination of values; `label` is what tables call it, "" of a comparison without a sweep."""

    label: str
    folder: str  # of its runs, below that of the sweep: it follows from fields and values alone
    overrides: tuple[str, ...]  # as on the command line


ALONE = Setting(label="", folder="", overrides=())


def settings_of(asked: Sequence[str], *, overrides: Sequence[str] = ()) -> list[Setting]:
    """Every combination, the last field's values in turn first; `overrides` are those of the whole recipe.

    Raises ConfigError for a field that stands twice or may not be swept, for a value that stands twice, and for none.
    """
    fields: dict[str, list[Any]] = {}
    given = [_field(override) for override in overrides]
    for one in asked:
        field, values = _parsed(one)
        _require_free(field)
        for other in (*fields, *given):
            if _overlap(field, other):
                where = "" if field == other else f" (beside {other})"
                raise ConfigError("CONFIG", f"--set {field}: given twice{where}; name each field once, with all values")
        fields[field] = values
    short = _short_names(list(fields))
    return [
        _setting(dict(zip(fields, values, strict=True)), short=short) for values in itertools.product(*fields.values())
    ]


def _field(assignment: str) -> str:
    return assignment.partition("=")[0].replace("[", ".").replace("]", "")


def _parsed(asked: str) -> tuple[str, list[Any]]:
    field, equals, values = asked.partition("=")
    path, listed = text.assignment(f"{field}=[{values}]") if equals else text.assignment(asked)
    name = ".".join(map(str, path))
    if not listed:
        raise ConfigError("CONFIG", f"--set {name}: no value; give two or more, such as student.layers=12,16,20")
    written = [_canonical(value) for value in listed]
    for value in written:
        if written.count(value) > 1:
            raise ConfigError("CONFIG", f"--set {name}: {value} stands there twice; give each value once")
    return name, list(listed)


def _require_free(field: str) -> None:
    section, _, rest = field.partition(".")
    if section in _FREE or (section == "training" and rest.partition(".")[0] in _OF_TRAINING):
        return
    if field in _DECIDED:
        raise ConfigError("CONFIG", f"--set {field}: {_DECIDED[field]}")
    if section == "training" and not rest:
        raise ConfigError("CONFIG", "--set training: name one field of it, such as training.learning_rate=1e-3,3e-4")
    raise ConfigError(
        "CONFIG",
        f"--set {field}: {_COMMON.format(name=field)} (swept are student, loss, and of training "
        f"{', '.join(_OF_TRAINING)})",
    )


def _overlap(a: str, b: str) -> bool:
    """Whether one stands inside the other, so that the second would take the first one's place."""
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each, where that tells them apart."""
    last = [field.rpartition(".")[2] for field in fields]
    return dict(zip(fields, last if len(set(last)) == len(last) else fields, strict=True))


def _setting(values: Mapping[str, Any], *, short: Mapping[str, str]) -> Setting:
    return Setting(
        label=" ".join(f"{short[field]}={_shown(value)}" for field, value in values.items()),
        folder="+".join(_place(field, value) for field, value in sorted(values.items())),
        overrides=tuple(f"{field}={_canonical(value)}" for field, value in values.items()),
    )


def _canonical(value: Any) -> str:
    """JSON, which is YAML too."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _canonical(value).replace('"', "").replace(", ", ",")


def _place(field: str, value: Any) -> str:
    """A folder's name that no other value of the field has."""
    shown = _shown(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    plain = is_number or (isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w-]*", value))
    if not plain:
        digest = hashlib.sha256(_canonical(value).encode()).hexdigest()[:8]
        shown = f"{re.sub(r'[^A-Za-z0-9.]+', '-', shown)[:_MOST_LETTERS].strip('-.')}-{digest}"
    return f"{field}={shown}"
