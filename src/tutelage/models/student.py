"""Students made from a teacher: some of its layers, or a configuration trained from nothing."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tutelage import console
from tutelage.errors import ConfigError
from tutelage.models.head import spread_ids, trunk
from tutelage.models.layers import decoder_layers, keep_layers, skipping
from tutelage.models.quantized import refuse_copy
from tutelage.randomness import derive_seed
from tutelage.types import CausalLM, TokenView

_ROUNDINGS = 8.0  # of its dtype, by which a student may differ from its teacher with layers skipped


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

    What the config says of each layer follows.  Raises ConfigError[CONFIG] for layers that no config of this kind can
    describe; warns with LAYERS where they compute something else at their new places.
    """
    refuse_copy(teacher.config, what="student.layers copies layers")
    name, modules = decoder_layers(teacher)
    kept = sorted(set(layers))
    _check_count(len(modules), len(kept))
    if len(kept) != len(layers) or kept[0] < 0 or kept[-1] >= len(modules):
        raise ConfigError(
            "CONFIG", f"student.layers: {list(layers)}: each of 0 to {len(modules) - 1} may stand there once"
        )
    config = of_layers(teacher.config, kept)
    weights: dict[str, torch.Tensor] = {}
    position = {f"{name}.{old}.": f"{name}.{new}." for new, old in enumerate(kept)}
    for key, tensor in teacher.state_dict().items():
        if not key.startswith(f"{name}."):
            weights[key] = tensor
            continue
        prefix = f"{name}.{key[len(name) + 1 :].split('.', 1)[0]}."
        if prefix in position:
            weights[position[prefix] + key[len(prefix) :]] = tensor
    student = _with_weights(config, weights, dtype=next(teacher.parameters()).dtype, kept=kept)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student = student.to(next(teacher.parameters()).device)
    _warn_unless_alike(teacher, student, kept=kept)
    return student


def _with_weights(
    config: Any, weights: Mapping[str, torch.Tensor], *, dtype: torch.dtype, kept: Sequence[int]
) -> CausalLM:
    """The model of a config with these weights; ConfigError[CONFIG] where its layers are of other kinds than theirs."""
    what = f"student.layers: no {type(config).__name__} describes layers {', '.join(map(str, kept))} of the teacher"
    instead = "keep layers in the pattern of the teacher's, or give the student as {model: …} or {config: …}"
    try:
        student = empty(config, dtype=dtype)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError("CONFIG", f"{what} ({said}); {instead}") from error
    own = {key: tensor.shape for key, tensor in student.state_dict().items()}
    given = {key: tensor.shape for key, tensor in weights.items()}
    if differing := sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key)):
        raise ConfigError("CONFIG", f"{what} ({differing[0]} differs); {instead}")
    student.load_state_dict(weights, strict=True)
    return student


@torch.no_grad()
def _warn_unless_alike(teacher: CausalLM, student: CausalLM, *, kept: Sequence[int]) -> None:
    """A warning where the student is not the teacher with the other layers skipped, measured on a few tokens.

    So it is where a layer computes by its place: GPT-2 with `scale_attn_by_inverse_layer_idx`.
    """
    _, modules = decoder_layers(teacher)
    device = next(teacher.parameters()).device
    ids_BT = spread_ids(teacher.get_output_embeddings().weight.shape[0]).to(device)
    view = TokenView.of(ids_BT, ids_BT)
    with skipping(list(modules), {*range(len(modules))} - {*kept}):
        expected = trunk(teacher, view).float()
    differing, size = (trunk(student, view).float() - expected).abs().max().item(), expected.abs().max().item()
    if not differing <= _ROUNDINGS * torch.finfo(next(teacher.parameters()).dtype).eps * max(1.0, size):
        console.warning(
            "LAYERS",
            f"{type(teacher).__name__}: layers {', '.join(map(str, kept))} compute something else at their new places "
            f"(difference {differing:.1e}, expected 0): the student starts farther from the teacher than was measured",
        )


def of_layers(config: Any, kept: Sequence[int]) -> Any:
    """The config of a model with these layers (rising) of the one that `config` describes."""
    copied = copy.deepcopy(config)
    text = copied.get_text_config()
    keep_layers(text, kept, n_layers=text.num_hidden_layers)
    return copied


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
