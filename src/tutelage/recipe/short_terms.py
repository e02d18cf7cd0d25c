"""The short forms of the terms of a loss and of their schedules; see `short.py`."""

from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.losses.names import DIVERGENCES, FEATURES

_TARGETS = ("ground_truth", "teacher_argmax")
_PARAMETER_DEFAULTS = {"beta": 0.5, "alpha": 0.1}
_FEATURE_DEFAULTS = {"distance": "cosine", "projection": False, "relation_heads": "auto"}


def schedule(value: Any) -> Any:
    """A number is constant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"schedule": "constant", "start": value}
    return value


def term(value: Any) -> Any:
    """`forward_kl` is `{divergence: forward_kl}`; `{forward_kl: 0.9}` says the weight too; so with other kinds."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, weight),) = value.items()
        if name in DIVERGENCES or name in FEATURES or name in _TARGETS:
            return {**term(name), "weight": weight}
    if not isinstance(value, str):
        return value
    if value in ("cross_entropy", *_TARGETS):
        return {"cross_entropy": "ground_truth" if value == "cross_entropy" else value}
    return {"features" if value in FEATURES else "divergence": value}


def layer_pairs(value: Any) -> Any:
    """`{3: 5}` is `[[3, 5]]`: the student's layer and the teacher's; keys of JSON are text."""
    if not isinstance(value, dict):
        return value
    return [[int(own) if isinstance(own, str) and own.isdecimal() else own, its] for own, its in value.items()]


def loss(value: Any) -> Any:
    """One term is a list of one."""
    if isinstance(value, str | dict):
        value = [value]
    return [term(item) for item in value] if isinstance(value, list | tuple) else value


def complete_term(value: Any) -> Any:
    """A term with the defaults that depend on its kind: a temperature, beta, alpha, layers."""
    value = term(value)
    if isinstance(value, dict) and isinstance(value.get("features"), str):
        own = {name: _FEATURE_DEFAULTS[name] for name in FEATURES.get(value["features"], ())}
        return {"layers": "auto", **own, **{k: v for k, v in value.items() if v is not None}}
    if not isinstance(value, dict) or not isinstance(value.get("divergence"), str):
        return value
    filled = {name: _PARAMETER_DEFAULTS[name] for name in DIVERGENCES.get(value["divergence"], ())}
    return {"temperature": 1.0, **filled, **{k: v for k, v in value.items() if v is not None}}


def complete_decay(value: Any) -> Any:
    """Whatever follows warm-up, stable, decay: the last fifth decays unless something else is said."""
    if isinstance(value, dict) and value.get("schedule", "") == "wsd" and value.get("decay") is None:
        return {**value, "decay": 0.2}
    return value


def complete_schedule(value: Any) -> Any:
    """A number is constant, and `wsd` has a decay."""
    return complete_decay(schedule(value))
