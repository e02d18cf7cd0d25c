"""From a recipe to everything a run needs: tokenizer, data, teacher, the student's start, and what identifies them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import nn

from tutelage import console, io
from tutelage.data.loader import EvaluationBatch, Loader
from tutelage.errors import ConfigError
from tutelage.models import load, student, vocabulary
from tutelage.models.cast import cast
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.recipe import Recipe
from tutelage.recipe import Student as StudentSection
from tutelage.teachers.cached import CachedTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training import teachers
from tutelage.training.corpus import Corpus, Examples
from tutelage.training.importance import LayerChoice, choose_layers
from tutelage.training.plan import terms_of
from tutelage.training.precision import ComputePath, choose_compute_path
from tutelage.types import Batch, CausalLM

_PROBE_TOKENS = 768  # of the training data, for the importance of layers
_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class InMemory:
    """Models and datasets handed to `tutelage.train()` as objects; None where the recipe names them."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    tokenizer: Any = None
    examples: Examples = field(default_factory=dict)  # by the source's `memory` fingerprint


@dataclass(slots=True, kw_only=True)
class Prepared:
    """Everything that the run trains with and measures on."""

    recipe: Recipe
    compute: ComputePath
    tokenizer: Any
    n_vocabulary: int
    teacher: LiveTeacher | CachedTeacher | None
    student: CausalLM  # the start weights, float32, on the CPU; copy before training
    layers: LayerChoice | None
    loader: Loader
    evaluation_sets: dict[str, Callable[[], list[EvaluationBatch]]]
    provenance: dict[str, io.Json]

    def held_out(self) -> list[Batch]:
        """The held-out rows as batches, for evaluation while training."""
        return [item.batch for item in self.evaluation_sets["held_out"]()]

    def start(self) -> CausalLM:
        """A fresh copy of the student's start."""
        return copy.deepcopy(self.student)


def prepare(recipe: Recipe, *, memory: InMemory, earlier: Mapping[str, Any] | None = None) -> Prepared:
    """Load, check and measure everything; `earlier` is the provenance of the unfinished run that goes on.

    What was measured for that run (compute path, layers) is taken from there, so that a resumed run is the same run.
    """
    _require_objects(recipe, memory)
    training = recipe.training
    recorded = (earlier or {}).get("compute", {})
    compute = choose_compute_path(
        str(recorded.get("weight_dtype", training.precision)),
        device=str(recorded.get("device", training.device)),
        threads=training.threads,
    )
    teachers.require_one_device(recipe, compute)
    tokenizer = memory.tokenizer if memory.tokenizer is not None else teachers.tokenizer_of(recipe)
    stop_ids = _compare_with_students(recipe, tokenizer)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    data = Corpus(recipe, tokenizer, examples=memory.examples)
    is_cached = recipe.teacher is not None and recipe.teacher.cache is not None
    needs_weights = not is_cached or recipe.student.layers is not None
    model = teachers.weights_of(recipe, memory.teacher) if needs_weights else None
    teacher: LiveTeacher | CachedTeacher | None = None
    if is_cached:
        teacher = teachers.cached(recipe, data, terms=terms_of(recipe.loss), model=model, compute=compute)
    layers, start = _student_start(
        recipe,
        memory=memory,
        teacher=model,
        n_vocabulary=n_vocabulary,
        compute=compute,
        probe=lambda: data.probe(_PROBE_TOKENS),
        earlier=earlier,
    )
    if not is_cached:
        lent = memory.teacher is not None
        teacher = teachers.live(recipe, model, compute=compute, n_vocabulary=n_vocabulary, lent=lent)
    teachers.verify([start], n_vocabulary=n_vocabulary, max_length=recipe.data.max_length)
    if isinstance(teacher, LiveTeacher):
        teachers.verify_teacher(teacher.model, n_vocabulary=n_vocabulary, max_length=recipe.data.max_length)
    if len(stop_ids) > 1:
        start.generation_config.eos_token_id = list(stop_ids)
    return Prepared(
        recipe=recipe,
        compute=compute,
        tokenizer=tokenizer,
        n_vocabulary=n_vocabulary,
        teacher=teacher,
        student=start,
        layers=layers,
        loader=data.loader(),
        evaluation_sets=data.evaluation_sets(),
        provenance=_provenance(data, teacher=teacher, start=start, compute=compute, layers=layers),
    )


def _provenance(
    data: Corpus,
    *,
    teacher: LiveTeacher | CachedTeacher | None,
    start: CausalLM,
    compute: ComputePath,
    layers: LayerChoice | None,
) -> dict[str, io.Json]:
    """What identifies a run beside its recipe: a resumed run must have the same."""
    return {
        "data": data.identity(),
        "tokenizer": data.fingerprint,
        "template": vocabulary.template_fingerprint(data.tokenizer),
        "teacher": _teacher_identity(teacher),
        "student": weights_fingerprint(start),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "compute": dict(compute.as_json()),
        "world_size": 1,
        "tutelage": metadata.version("tutelage"),
        "layers": _layers_json(layers),
    }


def _require_objects(recipe: Recipe, memory: InMemory) -> None:
    """ConfigError when the recipe was made with objects in memory that are not there."""
    lacking = [
        f"data ({source.memory[:8]})"
        for source in recipe.data.sources
        if source.memory and source.memory not in memory.examples
    ]
    lacking += (
        ["the teacher"] if recipe.teacher is not None and recipe.teacher.memory and memory.teacher is None else []
    )
    lacking += ["the student"] if recipe.student.memory and memory.student is None else []
    if lacking:
        raise ConfigError(
            "CONFIG",
            f"the recipe was made with objects in memory, and {', '.join(lacking)} cannot be read from a file; "
            "call tutelage.train() with them again",
        )


# --- tokenizer ---
def _compare_with_students(recipe: Recipe, tokenizer: Any) -> tuple[int, ...]:
    """The ids that a student with a tokenizer of its own has to stop on; () without one.

    Raises IntegrityError[TOKENIZER_MISMATCH] or [TEMPLATE_MISMATCH] before any model loads.
    """
    if recipe.student.model is None or recipe.teacher is None:
        return ()
    own = load.load_tokenizer(recipe.student.model, revision=recipe.student.revision)
    vocabulary.compare_tokenizers(tokenizer, own)
    if recipe.data.chat_template is None:
        vocabulary.compare_templates(tokenizer, own)
    return vocabulary.compare_ends(tokenizer, own)


# --- student ---
def _student_start(
    recipe: Recipe,
    *,
    memory: InMemory,
    teacher: nn.Module | None,
    n_vocabulary: int,
    compute: ComputePath,
    probe: Callable[[], list[Batch]],
    earlier: Mapping[str, Any] | None,
) -> tuple[LayerChoice | None, CausalLM]:
    """(how layers were chosen, start weights in float32 or wider on the CPU)."""
    wide = torch.promote_types(compute.weight_dtype, torch.float32)
    section, choice = recipe.student, None
    if memory.student is not None:
        start = copy.deepcopy(memory.student)
    elif section.model is not None:
        start = load.load_model(section.model, revision=section.revision, dtype="float32", device="cpu")
    elif section.config is not None:
        base = teachers.config_of(recipe, teacher)
        if base is None:
            raise ConfigError("CONFIG", "student.config: fields of the teacher's config are replaced; give a teacher")
        start = student.from_config(section.config, base=base, n_vocabulary=n_vocabulary, seed=recipe.training.seed)
    else:
        assert teacher is not None, "recipe rules: student.layers needs a teacher"
        layers, choice = _layers(
            section, teacher, n_vocabulary=n_vocabulary, compute=compute, probe=probe, earlier=earlier
        )
        start = student.from_layers(teacher, layers)
    return choice, cast(start, wide, device="cpu").eval()


def _layers(
    section: StudentSection,
    teacher: nn.Module,
    *,
    n_vocabulary: int,
    compute: ComputePath,
    probe: Callable[[], list[Batch]],
    earlier: Mapping[str, Any] | None,
) -> tuple[Sequence[int], LayerChoice | None]:
    assert section.layers is not None
    n_layers = len(student.decoder_layers(teacher)[1])
    if section.layers.listed is not None:
        return section.layers.listed, None
    if section.layers.evenly is not None:
        return student.evenly(n_layers, section.layers.evenly), None
    assert section.layers.important is not None
    n_kept = section.layers.important
    student.evenly(n_layers, n_kept)  # refuses an impossible count before the measurement
    measured = (earlier or {}).get("layers")
    if measured:
        choice = LayerChoice(
            kept=tuple(measured["kept"]),
            dropped=tuple((int(layer), float(kl)) for layer, kl in measured["dropped"]),
            n_positions=int(measured["n_positions"]),
        )
        return choice.kept, choice
    measuring = cast(copy.deepcopy(teacher), compute.weight_dtype, device=compute.device)
    with console.Progress("measuring which layers matter", total=n_layers - n_kept) as bar:
        choice = choose_layers(
            measuring,
            [batch.to(compute.device) for batch in probe()],
            n_kept=n_kept,
            n_vocabulary=n_vocabulary,
            progress=lambda done, _total: bar.update(done),
        )
    return choice.kept, choice


def _teacher_identity(teacher: LiveTeacher | CachedTeacher | None) -> io.Json:
    """Its weights; of a cache also how they were stored, since another draw or codec is another teacher."""
    if isinstance(teacher, CachedTeacher):
        return f"cache {teacher.cache.manifest.identity()}"
    return weights_fingerprint(teacher.model) if teacher is not None else None


def _layers_json(choice: LayerChoice | None) -> io.Json:
    if choice is None:
        return None
    return {"kept": list(choice.kept), "dropped": [list(d) for d in choice.dropped], "n_positions": choice.n_positions}
