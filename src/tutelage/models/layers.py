"""The decoder layers of a transformers causal LM: where they are, how to skip some, what a config says of each.

A config describes its layers in four ways, and all have to follow when some are taken out: lists with an entry a layer
(`layer_types`), lists of layers (`mlp_only_layers`), numbers of layers counted from the first
(`first_k_dense_replace`), and periods (`decoder_sparse_step`), of which only those that a list can replace are
followed.  Whether the result is what it should be is measured by `student.from_layers`, not believed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from tutelage.errors import ConfigError
from tutelage.models.head import body
from tutelage.types import CausalLM

_FROM_THE_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "num_hash_layers")
_LISTS_OF_LAYERS = ("layers", "layer_ids", "idxs", "indices", "indexes")  # how the names of such fields end
_NOT_OF_LAYERS = ("token_id", "token_ids", "architectures", "limit", "betas")  # lists of anything else


def decoder_layers(model: CausalLM) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder layers of a transformers causal LM.

    The name is the path inside the model, e.g. `model.layers`.  ConfigError[MODEL_LOAD] when no module list has as many
    entries as the config has layers.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    decoder = body(model).get_decoder()  # of a model with images: not the part that sees
    inside = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and id(module) in inside:
            return name, module
    raise ConfigError(
        "MODEL_LOAD",
        f"{type(model).__name__}: no list of {n_layers} decoder layers found; "
        "give the student as {model: …} or {config: …}",
    )


def expert_weights(model: CausalLM) -> list[nn.Parameter]:
    """The weights of a mixture's experts, which transformers keeps as tensors [experts, …] of one module a layer."""
    n_experts = n_experts_of(model.config)
    return [p for p in model.parameters() if p.dim() == 3 and p.shape[0] == n_experts] if n_experts else []


def n_experts_of(config: Any) -> int | None:
    """How many experts a layer has; None of a model that is no mixture."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next((n for name in names if (n := getattr(config.get_text_config(), name, None))), None)


@contextmanager
def replaced(layers: Sequence[nn.Module], forward: Callable[[int, Callable[..., Any]], Any]) -> Iterator[None]:
    """Each layer computes `forward(index, its own forward)` inside, and as before outside."""
    for index, layer in enumerate(layers):
        layer.forward = forward(index, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance attribute; the class's own method is back


def passed_through(hidden: Any, *, like: Any) -> Any:
    """What a layer that is skipped returns: its input, in the form of what it returned before (BLOOM gives tuples)."""
    return (hidden, *(None for _ in like[1:])) if isinstance(like, tuple) else hidden


@contextmanager
def skipping(layers: Sequence[nn.Module], skipped: set[int]) -> Iterator[None]:
    """The model without these layers; what they return is learned from a forward that they run and that is dropped."""

    def forward(index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def skippable(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(hidden, *args, **kwargs)
            return passed_through(hidden, like=output) if index in skipped else output

        return skippable

    with replaced(layers, forward):
        yield


def keep_layers(config: Any, kept: Sequence[int], *, n_layers: int) -> None:
    """Change a text config in place so that it describes the layers `kept` (rising) alone."""
    _periods_as_lists(config, n_layers=n_layers)
    for name, value in list(vars(config).items()):
        if isinstance(value, list):
            setattr(config, name, _kept_of_list(name, value, kept, n_layers=n_layers))
        elif name in _FROM_THE_FIRST and isinstance(value, int):
            setattr(config, name, sum(layer < value for layer in kept))
    config.num_hidden_layers = len(kept)


def _kept_of_list(name: str, value: list[Any], kept: Sequence[int], *, n_layers: int) -> list[Any]:
    if name.endswith(_NOT_OF_LAYERS):
        return value
    if name.endswith(_LISTS_OF_LAYERS) and _are_layers(value, n_layers=n_layers):
        return [new for new, old in enumerate(kept) if old in value]
    return [value[layer] for layer in kept] if len(value) == n_layers else value


def _are_layers(value: list[Any], *, n_layers: int) -> bool:
    """Whether a list holds numbers of layers; one of two marks a layer, [0, 1] of two layers, is taken as marks."""
    numbers = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in value)
    if not numbers or value != sorted(set(value)) or not all(0 <= layer < n_layers for layer in value):
        return False
    return len(value) != n_layers or n_layers > 2


def _periods_as_lists(config: Any, *, n_layers: int) -> None:
    """Qwen's mixtures stand at every so manyeth layer: the others, written out, are a list that can be cut."""
    step, plain = getattr(config, "decoder_sparse_step", None), getattr(config, "mlp_only_layers", None)
    if step is not None and plain is not None and step > 1:
        between = (layer for layer in range(n_layers) if (layer + 1) % step)
        config.mlp_only_layers = sorted({*plain, *between})
        config.decoder_sparse_step = 1
