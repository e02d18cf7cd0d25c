"""Low-rank adapters: a model whose weights stay as they are, and what is learned beside them (needs `peft`).

LoRA, Hu et al., arXiv:2106.09685: W + alpha/rank * B A, where B begins at zero, so that the model begins unchanged.
DoRA, Liu et al., arXiv:2402.09353: the norm of each row of that sum is learned too.

An adapted model is the model itself with adapted layers inside, so that its trunk and head are found as before.
"""

import copy
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import console, io
from tutelage.errors import ConfigError
from tutelage.models.layers import expert_weights
from tutelage.models.quiet import quiet_transformers
from tutelage.randomness import derive_seed
from tutelage.tensor_file import pieces
from tutelage.types import CausalLM

ALL_LINEAR = "all-linear"
_LEARNED = ".lora_"  # in the names of what an adapter learns, of DoRA's norms too
_ADAPTER = "default"  # peft's name for the only one


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is learned beside which layers; `targets` are names of modules, or `all-linear`: all but the head."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...] = ALL_LINEAR
    dora: bool = False


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters that are not merged."""
    return any(_LEARNED in name for name, _ in model.named_parameters())


def learned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training changes, by name: the adapters of an adapted model, everything of any other."""
    everything = dict(model.named_parameters())
    return {name: parameter for name, parameter in everything.items() if _LEARNED in name} or everything


def adapted(model: CausalLM, adapter: Adapter, *, seed: int, name: str = "student") -> CausalLM:
    """`model` itself with adapters inside, drawn by the seed; the same outputs as before, bitwise for LoRA.

    ConfigError[MISSING_EXTRA] without peft, [CONFIG] for targets that the model does not have.
    """
    peft = _peft()
    found = target_modules(model, adapter)
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=found,
        use_dora=adapter.dora,
        fan_in_fan_out=any(type(model.get_submodule(target)).__name__ == "Conv1D" for target in found),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers that are laid out the other way than most
        torch.manual_seed(derive_seed(seed, f"{name} adapters"))
        _inject(peft, settings, model)
    model.requires_grad_(False)
    for parameter in learned_parameters(model).values():
        parameter.requires_grad_(True)
    return model.eval()


def _inject(peft: Any, settings: Any, model: CausalLM) -> None:
    """Adapters beside exactly the layers that `settings` names; ConfigError[CONFIG] for those that peft refuses."""
    try:
        if not _is_renamed(settings, model):
            peft.inject_adapter_in_model(settings, model)
            return
        held = nn.Module()  # without a config: peft does not know what it holds, and takes the names as they are
        held.model = model
        own = set(settings.target_modules)
        settings.target_modules = {f"model.{name}" for name in own}
        model.peft_config = peft.inject_adapter_in_model(settings, held).peft_config
        settings.target_modules = own
    except (ValueError, TypeError, RecursionError, NotImplementedError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            "CONFIG",
            f"peft adapts no {type(model).__name__} so ({said}); name other layers in student.lora.targets, or leave "
            "lora out",
        ) from error


def _is_renamed(settings: Any, model: CausalLM) -> bool:
    """Whether peft would adapt experts in place of layers that are named: it takes their names for those of old files.

    So it does for plain and shared layers of Qwen's and DeepSeek's mixtures (peft 0.19 to 0.21, transformers 5).
    """
    try:
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # an older peft
        return False
    converted = copy.deepcopy(settings)
    try:
        conversion.convert_peft_config_for_transformers(converted, model=model, conversions=None)
    except ValueError:  # some of the names alone
        return True
    return bool(converted.target_parameters)


def target_modules(model: CausalLM, adapter: Adapter) -> list[str]:
    """The full names of the layers that get an adapter; ConfigError[CONFIG] where a target is none of them."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if module is not head and _is_linear(module)]
    if not linear:
        raise ConfigError("CONFIG", f"{type(model).__name__} has no linear layer but its head; leave lora out")
    if adapter.targets == ALL_LINEAR:
        return linear
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in adapter.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ConfigError(
                "CONFIG",
                f"student.lora.targets: {target!r} is no linear layer of {type(model).__name__}; it has "
                f"{', '.join(known)}; or leave targets out for all of them",
            )
    return [n for n in linear if any(n == target or n.endswith(f".{target}") for target in adapter.targets)]


def _is_linear(module: nn.Module) -> bool:
    """Whether a layer is a matrix and gives its product alone: routers that are linear layers give more."""
    if type(module) is nn.Linear or type(module).__name__ == "Conv1D":
        return True
    if not isinstance(module, nn.Linear) or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # of nn.MultiheadAttention, which reads the weight and calls no layer
    with torch.no_grad():
        return isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)


def tell_what_stays(model: CausalLM, *, name: str) -> None:
    """A note where a mixture's experts, most of its weights, get no adapter: they are no linear layers."""
    if n_experts := sum(weight.numel() for weight in expert_weights(model)):
        n_all = sum(parameter.numel() for parameter in model.parameters())
        console.note(
            "ADAPTERS",
            f"{name}: the experts of {type(model).__name__} ({n_experts:,} of {n_all:,} parameters) stay as they are: "
            "adapters stand beside linear layers; to train experts leave lora out",
        )


def n_learned(model: CausalLM, adapter: Adapter) -> int:
    """How many parameters the adapters of a model will have, on any device (meta too), without peft."""
    shapes = [model.get_submodule(name).weight.shape for name in target_modules(model, adapter)]
    outputs = [getattr(model.get_submodule(n), "out_features", None) for n in target_modules(model, adapter)]
    norms = sum(out if out is not None else shape[1] for out, shape in zip(outputs, shapes, strict=True))
    return adapter.rank * sum(sum(shape) for shape in shapes) + (norms if adapter.dora else 0)


@torch.no_grad()
def merged(model: CausalLM) -> CausalLM:
    """A plain model with the adapters added into its weights; a model without adapters is given back as it is."""
    if not is_adapted(model):
        return model
    layer = _peft().tuners.tuners_utils.BaseTunerLayer
    plain = copy.deepcopy(model)
    for name, module in [(n, m) for n, m in plain.named_modules() if isinstance(m, layer)]:
        module.merge()
        owner, _, attribute = name.rpartition(".")
        setattr(plain.get_submodule(owner), attribute, module.get_base_layer())
    del plain.peft_config
    return plain


def save_adapter(model: CausalLM, folder: Path, *, base: str, revision: str | None) -> None:
    """Write the adapters alone, whole or not at all: `PeftModel.from_pretrained(base, folder)` reads them.

    Those that it would put beside other layers are not written, with a note.
    """
    settings = copy.copy(model.peft_config[_ADAPTER])
    if _is_renamed(settings, model):
        console.note("ADAPTERS", f"{folder.name}: not saved alone, peft would read other layers of this mixture")
        return
    settings.base_model_name_or_path, settings.revision, settings.inference_mode = base, revision, True
    tensors = {f"base_model.model.{name.replace(f'.{_ADAPTER}', '')}": parameter.detach()
               for name, parameter in learned_parameters(model).items()}  # fmt: skip
    partial = folder.with_name(folder.name + ".partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    with quiet_transformers():
        settings.save_pretrained(partial)
    io.write_new(partial / "adapter_model.safetensors", pieces(tensors))
    io.commit_directory(partial, folder, replace=True)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("MISSING_EXTRA", 'student.lora needs peft; run: pip install "tutelage[lora]"') from error
    return peft
