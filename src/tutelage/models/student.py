"""Students made from a teacher: some of its layers, or a configuration trained from nothing."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tutelage.errors import ConfigError
from tutelage.randomness import derive_seed
from tutelage.types import CausalLM


def decoder_layers(model: CausalLM) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder layers of a transformers causal LM.

    The name is the path inside the model, e.g. `model.layers`.  ConfigError[MODEL_LOAD] when no module list has as many
    entries as the config has layers.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return name, module
    raise ConfigError(
        "MODEL_LOAD",
        f"{type(model).__name__}: no list of {n_layers} decoder layers found; "
        "give the student as {model: …} or {config: …}",
    )


def evenly(n_layers: int, n_kept: int) -> list[int]:
    """`n_kept` of `n_layers` layers at even distances, first and last included."""
    _check_count(n_layers, n_kept)
    if n_kept == 1:
        return [0]
    return [round(i * (n_layers - 1) / (n_kept - 1)) for i in range(n_kept)]


def _check_count(n_layers: int, n_kept: int) -> None:
    if not 1 <= n_kept <= n_layers:
        raise ConfigError("CONFIG", f"student.layers: {n_kept} asked, the teacher has {n_layers}; give 1 to {n_layers}")


def from_layers(teacher: CausalLM, layers: Sequence[int]) -> CausalLM:
    """A new model with the teacher's weights and only the layers named, in the teacher's order and dtype.

    Lists in the config with one entry a layer (such as `layer_types`) are cut in the same way.
    """
    name, modules = decoder_layers(teacher)
    kept = sorted(set(layers))
    _check_count(len(modules), len(kept))
    if len(kept) != len(layers) or kept[0] < 0 or kept[-1] >= len(modules):
        raise ConfigError(
            "CONFIG", f"student.layers: {list(layers)}: each of 0 to {len(modules) - 1} may stand there once"
        )
    config = copy.deepcopy(teacher.config)
    text_config = config.get_text_config()
    for key, value in list(vars(text_config).items()):
        if isinstance(value, list) and len(value) == len(modules):
            setattr(text_config, key, [value[i] for i in kept])
    text_config.num_hidden_layers = len(kept)
    weights: dict[str, torch.Tensor] = {}
    position = {f"{name}.{old}.": f"{name}.{new}." for new, old in enumerate(kept)}
    for key, tensor in teacher.state_dict().items():
        if not key.startswith(f"{name}."):
            weights[key] = tensor
            continue
        prefix = f"{name}.{key[len(name) + 1 :].split('.', 1)[0]}."
        if prefix in position:
            weights[position[prefix] + key[len(prefix) :]] = tensor
    student = empty(config, dtype=next(teacher.parameters()).dtype)
    student.load_state_dict(weights, strict=True)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(next(teacher.parameters()).device)


def shortened(config: Any, n_layers: int) -> Any:
    """A config with so many layers, lists with one entry a layer cut or repeated to fit."""
    copied = copy.deepcopy(config)
    text = copied.get_text_config()
    n_now = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == n_now:
            setattr(text, key, _stretched(value, n_layers))
    text.num_hidden_layers = n_layers
    return copied


def from_config(
    config: Mapping[str, Any], *, base: Any, n_vocabulary: int, seed: int, name: str = "student"
) -> CausalLM:
    """A randomly initialised model: the config `base` (of a student: the teacher's) with fields of `config` replaced.

    The vocabulary is the tokenizer's real size, so that no row of the head is padding.  float32, eval mode.
    """
    merged = copy.deepcopy(base)
    known = merged.to_dict()
    unknown = [key for key in config if key not in known and not hasattr(merged, key)]
    if unknown:
        raise ConfigError("CONFIG", f"{name}.config: unknown for {type(merged).__name__}: {', '.join(unknown)}")
    if isinstance(config.get("vocab_size"), int) and config["vocab_size"] < n_vocabulary:
        found = f"vocab_size {config['vocab_size']}, the tokenizer has {n_vocabulary} tokens; leave it out"
        raise ConfigError("CONFIG", f"{name}.config: {found}")
    try:
        return _of_values(merged, {**known, "vocab_size": n_vocabulary, **config}, config, seed=seed, name=name)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{name}.config: {', '.join(config)} make no {type(merged).__name__}"
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError("CONFIG", f"{what} ({said}); compare with the config.json of a model of its kind") from error


def _of_values(base: Any, values: dict[str, Any], config: Mapping[str, Any], *, seed: int, name: str) -> CausalLM:
    """The model of a config with these values; whatever the library raises for values that make none."""
    values.pop("quantization_config", None)
    if "head_dim" not in config and {"hidden_size", "num_attention_heads"} & set(config) and "head_dim" in values:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    if "num_hidden_layers" in config and isinstance(values.get("layer_types"), list):
        values["layer_types"] = _stretched(values["layer_types"], int(config["num_hidden_layers"]))
    merged = type(base).from_dict(values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, f"{name} weights"))
        return empty(merged, dtype=torch.float32)


@torch.no_grad()
def partly_random(model: CausalLM, share: float, *, seed: int, name: str = "student") -> CausalLM:
    """`model` itself, every parameter moved by `share` of the way to what its initialiser draws by the seed.

    w + share * (random - w), as shrink and perturb: Ash and Adams, arXiv:1910.08475.  Share 0 changes nothing, 1 is a
    model from nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, f"{name} random share"))
        drawn = dict(empty(copy.deepcopy(model.config), dtype=torch.float32).named_parameters())
    for key, parameter in model.named_parameters():
        parameter.lerp_(drawn[key].to(device=parameter.device, dtype=parameter.dtype), share)
    return model


def _stretched(pattern: list[Any], n: int) -> list[Any]:
    """The first n entries of a repeating pattern of layer kinds."""
    return [pattern[i % len(pattern)] for i in range(n)]


def empty(config: Any, *, dtype: torch.dtype) -> CausalLM:
    """A model of that config, eval mode, weights as its initialiser draws them."""
    from transformers import AutoModelForCausalLM

    model: CausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
