"""Whether the files of a model hold all of its weights: transformers fills what is missing with random numbers.

`info` is what `from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)` gives beside the model.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tutelage import console
from tutelage.errors import IntegrityError

_NAMED = 3  # of what may be thousands
_TABLES = (".masked_bias",)  # of old GPT-2 files: a constant, no weight


def require_whole(source: str, info: Mapping[str, Any]) -> None:
    """IntegrityError[MODEL_LOAD] where weights are missing or of another shape; says which ones nobody asked for."""
    if (problem := problem_in(info)) is not None:
        raise IntegrityError("MODEL_LOAD", f"{source}: {problem}")
    if said := unused_in(info):
        console.note("UNUSED_WEIGHTS", f"{source}: {said}")


def problem_in(info: Mapping[str, Any]) -> str | None:
    """What of a model its files do not give it, with the way on."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        return (
            f"{len(mismatched)} weights have other shapes in its files than config.json says ({name}: {list(there)} in "
            f"the file, {list(wanted)} by the config); take the config.json that was saved with these files"
        )
    if missing := info["missing_keys"]:
        return (
            f"its files lack {len(missing)} weights that config.json asks for ({_some(missing)}), and those would be "
            "random; download it again, or save it anew as a causal language model with its own config.json"
        )
    return None


def unused_in(info: Mapping[str, Any]) -> str:
    """What its files hold that the model has no place for; "" for nothing."""
    unused = [name for name in info["unexpected_keys"] if not name.endswith(_TABLES)]
    return f"{len(unused)} weights in its files are no part of the model ({_some(unused)})" if unused else ""


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:_NAMED]) + (", …" if len(first) > _NAMED else "")
