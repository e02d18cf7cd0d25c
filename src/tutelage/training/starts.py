"""What a student begins as: a model of its own, a config's random weights, or the teacher with less of everything."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import console
from tutelage.errors import ConfigError
from tutelage.models import adapters, grid, load, quantized, student
from tutelage.models.cast import cast
from tutelage.models.layers import decoder_layers
from tutelage.models.origin import Origin, extent_of, origin_in
from tutelage.models.width import Kept, narrowed, wanted_sizes
from tutelage.recipe import Layers, Lora, Recipe, Width
from tutelage.recipe import Student as StudentSection
from tutelage.training import teachers, widths
from tutelage.training.importance import LayerChoice, choose_layers
from tutelage.training.precision import ComputePath
from tutelage.types import Batch, CausalLM

_LAYER_TOKENS = 768  # of the training data, for the importance of layers
_WIDTH_TOKENS = 2048  # for that of channels, neurons and heads: one forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The start weights in float32 or wider on the CPU, and what was measured to make them."""

    model: CausalLM
    layers: LayerChoice | None = None
    width: Kept | None = None
    origin: Origin  # what of the teacher it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Makers:
    """What starts are made of; `probe(n)` gives the first windows of the training data, about n tokens."""

    recipe: Recipe
    in_memory: nn.Module | None
    teacher: nn.Module | None
    n_vocabulary: int
    compute: ComputePath
    probe: Callable[[int], list[Batch]]


def start_of(makers: Makers, name: str, *, measured: Mapping[str, Any]) -> Start:
    """The start of one student of the recipe.

    `measured`: what an unfinished run has recorded of `layers` and `widths`; it is taken from there.
    """
    section = makers.recipe.learners[name].section
    choice = kept = None
    if section.copies_teacher:
        model, layers, choice = _copied(makers, section, measured=measured.get("layers"))
        assert makers.teacher is not None, "recipe rules: a copy needs a teacher"
        origin = Origin(teacher=extent_of(makers.teacher.config), layers=layers)
    else:
        model, origin = _own(makers, section, name=name), _recorded(makers, section)
    model = wide(model, makers.compute)
    if section.width is not None:
        kept = _kept(makers, section.width, model, measured=measured.get("widths"))
        narrow = narrowed(model, kept)
        console.say(f"{name}: {_size(model)} parameters narrowed to {_size(narrow)}")
        model, origin = narrow, replace(origin, channels=kept.hidden)
    seed = makers.recipe.training.seed
    if section.init is not None:
        model = student.partly_random(model, section.init.random, seed=seed, name=name)
    if section.lora is not None:
        adapters.tell_what_stays(model, name=name)
        model = adapters.adapted(model, adapter_of(section.lora), seed=seed, name=name)
        n_learned = sum(p.numel() for p in adapters.learned_parameters(model).values())
        console.say(f"{name}: {n_learned:,} of {_size(model)} parameters are trained (rank {section.lora.rank})")
    if section.quantize is not None:
        on_it = grid.rounding_of(model, section.quantize, name=name).inputs_first
        n_rounded = sum(model.get_parameter(key).numel() for key in on_it)
        console.say(f"{name}: {n_rounded:,} of {_size(model)} parameters are rounded to {section.quantize}")
    return Start(model=model.eval(), layers=choice, width=kept, origin=origin)


def adapter_of(section: Lora) -> adapters.Adapter:
    """What a recipe says of adapters."""
    alpha = section.alpha if section.alpha is not None else 2.0 * section.rank
    return adapters.Adapter(rank=section.rank, alpha=alpha, targets=section.targets, dora=section.dora)


def wide(model: CausalLM, compute: ComputePath) -> CausalLM:
    """The same model with start weights: float32 or wider, on the CPU."""
    return cast(model, torch.promote_types(compute.weight_dtype, torch.float32), device="cpu").eval()


def _size(model: CausalLM) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,}"


def _recorded(makers: Makers, section: StudentSection) -> Origin:
    """What a model's folder says that it was made of: the start that a comparison has made for all its runs."""
    if section.model is None or makers.teacher is None:
        return Origin()
    return origin_in(Path(section.model), teacher=makers.teacher.config)


def _own(makers: Makers, section: StudentSection, *, name: str) -> CausalLM:
    """A model that is not made of the teacher's weights."""
    recipe = makers.recipe
    if section.memory is not None:
        assert makers.in_memory is not None, "_require_objects"
        quantized.refuse_student(makers.in_memory.config, name=f"the {name}")
        return copy.deepcopy(makers.in_memory)
    if section.model is not None:
        quantized.refuse_student(load.load_config(section.model, section.revision), name=section.model)
        return load.load_model(section.model, revision=section.revision, dtype="float32", device="cpu")
    assert section.config is not None, "recipe rules: a student is one of its kinds"
    base = teachers.config_of(recipe, makers.teacher)
    if base is None:
        raise ConfigError("CONFIG", "student.config: fields of the teacher's config are replaced; give a teacher")
    seed = recipe.training.seed
    return student.from_config(section.config, base=base, n_vocabulary=makers.n_vocabulary, seed=seed, name=name)


# --- depth ---
def _copied(
    makers: Makers, section: StudentSection, *, measured: Mapping[str, Any] | None
) -> tuple[CausalLM, tuple[int, ...] | None, LayerChoice | None]:
    """The teacher with the layers that the recipe keeps, and which they are: None, all, where it narrows alone."""
    assert makers.teacher is not None, "recipe rules: a copy needs a teacher"
    if section.layers is None:
        quantized.refuse_copy(makers.teacher.config, what="student.width copies channels")
        return copy.deepcopy(makers.teacher), None, None
    layers, choice = _layers(makers, section.layers, makers.teacher, measured=measured)
    return student.from_layers(makers.teacher, layers), tuple(sorted(layers)), choice


def _layers(
    makers: Makers, wanted: Layers, teacher: nn.Module, *, measured: Mapping[str, Any] | None
) -> tuple[Sequence[int], LayerChoice | None]:
    n_layers = len(decoder_layers(teacher)[1])
    if wanted.listed is not None:
        return wanted.listed, None
    if wanted.evenly is not None:
        return student.evenly(n_layers, wanted.evenly), None
    assert wanted.important is not None
    n_kept = wanted.important
    student.evenly(n_layers, n_kept)  # refuses an impossible count before the measurement
    if measured:
        choice = LayerChoice(
            kept=tuple(measured["kept"]),
            dropped=tuple((int(layer), float(kl)) for layer, kl in measured["dropped"]),
            n_positions=int(measured["n_positions"]),
        )
        return choice.kept, choice
    with console.Progress("measuring which layers matter", total=n_layers - n_kept) as bar:
        choice = choose_layers(
            _measuring(makers, teacher),
            _probe(makers, _LAYER_TOKENS),
            n_kept=n_kept,
            n_vocabulary=makers.n_vocabulary,
            progress=lambda done, _total: bar.update(done),
        )
    return choice.kept, choice


def _measuring(makers: Makers, model: nn.Module) -> CausalLM:
    """A copy on the compute path."""
    return cast(copy.deepcopy(model), makers.compute.weight_dtype, device=makers.compute.device)


def _probe(makers: Makers, n_tokens: int) -> list[Batch]:
    return [batch.to(makers.compute.device) for batch in makers.probe(n_tokens)]


# --- width ---
def _kept(makers: Makers, wanted: Width, model: CausalLM, *, measured: Mapping[str, Any] | None) -> Kept:
    """What of each width stays, by a measurement on the copy with the layers that stay."""
    sizes = wanted_sizes(model.config, **wanted.model_dump())
    if measured:
        return widths.from_json(measured)
    importance = widths.measure_widths(_measuring(makers, model), _probe(makers, _WIDTH_TOKENS))
    return widths.choose_widths(model, importance, sizes=sizes)
