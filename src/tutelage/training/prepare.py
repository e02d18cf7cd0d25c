"""From a recipe to everything a run needs: tokenizer, data, teacher, the student's start, and what identifies them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from torch import nn

from tutelage import io
from tutelage.data.curriculum import Curriculum
from tutelage.data.loader import EvaluationBatch, Loader
from tutelage.data.split import Rows
from tutelage.data.store import Store
from tutelage.errors import ConfigError
from tutelage.losses.terms import Term
from tutelage.models import adapters, grid, load, packing, vocabulary
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import head_of
from tutelage.models.origin import Origin
from tutelage.recipe import Recipe
from tutelage.roles import STUDENT, TEACHER, control
from tutelage.teachers.cached import CachedTeacher
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training import curriculum, features, micro_batch, starts, teachers, widths
from tutelage.training.compiling import require_compiler
from tutelage.training.corpus import Corpus, Examples
from tutelage.training.importance import LayerChoice
from tutelage.training.plan import terms_of
from tutelage.training.precision import ComputePath, choose_compute_path
from tutelage.training.starts import Start
from tutelage.types import Batch, CausalLM

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
    teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None  # None also where it trains
    teacher_start: CausalLM | None  # of one that trains: float32, on the CPU; copy before training
    students: dict[str, CausalLM]  # the start weights by name, likewise
    terms: dict[str, tuple[Term, ...]]  # of each student's loss, those that compare layers settled
    layers: dict[str, LayerChoice | None]
    origins: dict[str, Origin]
    loader: Loader
    evaluation_sets: dict[str, Callable[[], list[EvaluationBatch]]]
    measured_rows: dict[str, tuple[Store, Rows]]  # the rows of each evaluation set, in the order of `row_N`
    provenance: dict[str, io.Json]

    def held_out(self) -> list[Batch]:
        """The held-out rows as batches, for evaluation while training."""
        return [item.batch for item in self.evaluation_sets["held_out"]()]

    def start(self, name: str = STUDENT) -> CausalLM:
        """A fresh copy of a student's start."""
        return copy.deepcopy(self.students[name])

    def quantize_of(self, name: str) -> str | None:
        """The grid of a student's weights, and of its control's."""
        learners = self.recipe.learners.items()
        return next((one.section.quantize for own, one in learners if name in (own, control(own))), None)

    def as_saved(self, model: CausalLM, name: str) -> CausalLM:
        """A model with the weights of `name` as a plain one, adapters merged and weights rounded, perhaps in place."""
        return grid.rounded(adapters.merged(model), self.quantize_of(name))


def prepare(recipe: Recipe, *, memory: InMemory, earlier: Mapping[str, Any] | None = None) -> Prepared:
    """Load, check and measure everything; `earlier` is the provenance of the unfinished run that goes on.

    What was measured for that run (compute path, layers) is taken from there, so that a resumed run is the same run.
    """
    _require_objects(recipe, memory)
    teachers.require_answers(recipe)
    compute = _compute_path(recipe, earlier or {})
    tokenizer = memory.tokenizer if memory.tokenizer is not None else teachers.tokenizer_of(recipe)
    stop_ids = _compare_with_students(recipe, tokenizer)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    data = Corpus(recipe, tokenizer, examples=memory.examples)
    model = _teacher_model(recipe, memory.teacher, n_vocabulary=n_vocabulary, compute=compute)
    if model is not None:
        head_of(model, n_vocabulary=n_vocabulary)  # has it a row for every token? before one is looked up
    teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None = _cached(recipe, data, model=model, compute=compute)
    makers = starts.Makers(
        recipe=recipe,
        in_memory=memory.student,
        teacher=model,
        n_vocabulary=n_vocabulary,
        compute=compute,
        probe=lambda n_tokens: _probe(data, model, n_tokens=n_tokens, n_vocabulary=n_vocabulary),
    )
    made = {name: starts.start_of(makers, name, measured=_measured(earlier, name)) for name in recipe.learners}
    students = {name: start.model for name, start in made.items()}
    teacher_start = starts.wide(copy.deepcopy(model), compute) if recipe.trains_teacher else None
    if teacher is None and teacher_start is None:
        lent = memory.teacher is not None
        teacher = teachers.asked(
            recipe, model, compute=compute, n_vocabulary=n_vocabulary, tokenizer=tokenizer, lent=lent
        )
    teaching = teacher.model if isinstance(teacher, LiveTeacher) else teacher_start
    teachers.verify_all(students.values(), teaching, n_vocabulary=n_vocabulary, max_length=recipe.data.max_length)
    terms = _terms(recipe, made, teacher=teacher)
    _shape_batches(
        data, recipe, students=students, teacher=teacher, teacher_start=teacher_start, compute=compute,
        n_vocabulary=n_vocabulary, earlier=earlier or {}, terms=terms,
    )  # fmt: skip
    teachers.require_rows_of_run(recipe, data, teacher)
    for name, ids in stop_ids.items():
        students[name].generation_config.eos_token_id = list(ids)
    order = _curriculum(recipe, data, teacher=teacher, compute=compute)
    return Prepared(
        recipe=recipe,
        compute=compute,
        tokenizer=tokenizer,
        n_vocabulary=n_vocabulary,
        teacher=teacher,
        teacher_start=teacher_start,
        students=students,
        terms=terms,
        layers={name: start.layers for name, start in made.items()},
        origins={name: start.origin for name, start in made.items()},
        loader=data.loader(curriculum=order),
        evaluation_sets=data.evaluation_sets(),
        measured_rows=data.measured_rows(),
        provenance=_provenance(data, teacher=teacher_start or teacher, starts=made, compute=compute, order=order),
    )


def _compute_path(recipe: Recipe, earlier: Mapping[str, Any]) -> ComputePath:
    """That of the run that goes on, or the one asked for; refuses a device that is not there, the teacher's too."""
    training, recorded = recipe.training, earlier.get("compute", {})
    compute = choose_compute_path(
        str(recorded.get("weight_dtype", training.precision)),
        device=str(recorded.get("device", training.device)),
        threads=training.threads,
    )
    teachers.device_of(recipe, compute)
    if training.compile:
        require_compiler(compute.device)
    return compute


def _terms(
    recipe: Recipe, starts: Mapping[str, Start], *, teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None
) -> dict[str, tuple[Term, ...]]:
    """What each student learns, with the layers that are compared."""
    live = teacher.model if isinstance(teacher, LiveTeacher) else None
    return {
        name: features.settled(
            terms_of(recipe.learners[name].loss),
            student=start.model,
            teacher=live,
            kept=start.origin.layers,
            channels=start.origin.channels,
        )
        for name, start in starts.items()
    }


def _cached(recipe: Recipe, data: Corpus, *, model: nn.Module | None, compute: ComputePath) -> CachedTeacher | None:
    """The teacher's cache, if the recipe names one."""
    if recipe.teacher is None or recipe.teacher.cache is None:
        return None
    terms = [t for one in recipe.learners.values() for t in terms_of(one.loss) if t.source == TEACHER]
    return teachers.cached(recipe, data, terms=terms, model=model, compute=compute)


def _probe(data: Corpus, teacher: CausalLM | None, *, n_tokens: int, n_vocabulary: int) -> list[Batch]:
    """A few windows to measure a student's start on, of one document each for a teacher that would mix them."""
    assert teacher is not None, "only what is made of the teacher is measured"
    data.packed = packing.difference(teacher, n_vocabulary=n_vocabulary) == 0.0
    return data.probe(n_tokens)


def _shape_batches(
    data: Corpus,
    recipe: Recipe,
    *,
    students: Mapping[str, CausalLM],
    teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None,
    teacher_start: CausalLM | None,
    compute: ComputePath,
    n_vocabulary: int,
    earlier: Mapping[str, Any],
    terms: Mapping[str, tuple[Term, ...]],
) -> None:
    """Whether a row may hold several documents, and how many rows fit at once: as in the run that goes on, or found."""
    learning = {**({TEACHER: teacher_start} if teacher_start is not None else {}), **students}
    packed, at_once = earlier.get("packed"), earlier.get("micro_batch")
    if packed is None:
        packed = packing.all_pack([*learning.values(), *running(teacher)], n_vocabulary=n_vocabulary)
    data.packed = bool(packed)
    if recipe.training.micro_batch == "auto":
        data.micro_batch = at_once or micro_batch.of_recipe(
            recipe, data.loader(), starts=learning, teacher=teacher, compute=compute, n_vocabulary=n_vocabulary,
            terms=terms,
        )  # fmt: skip


def _curriculum(
    recipe: Recipe,
    data: Corpus,
    *,
    teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None,
    compute: ComputePath,
) -> Curriculum | None:
    """In which order the training rows come, where the recipe does not leave it to chance."""
    if recipe.data.curriculum is None:
        return None
    assert teacher is not None, "recipe rules: somebody's loss gives the order"
    identity = _teacher_identity(teacher)
    return curriculum.of_recipe(recipe, data, teacher=teacher, identity=identity, device=compute.device)


def running(teacher: LiveTeacher | EnsembleTeacher | CachedTeacher | None) -> list[CausalLM]:
    """The models that answer while others learn."""
    if isinstance(teacher, EnsembleTeacher):
        return [member.model for member in teacher.members]
    return [teacher.model] if isinstance(teacher, LiveTeacher) else []


def _teacher_model(
    recipe: Recipe, in_memory: nn.Module | None, *, n_vocabulary: int, compute: ComputePath
) -> CausalLM | None:
    """The teacher's weights, if the run needs them: from a cache it learns without, but for a student of its layers."""
    if recipe.teacher is not None and recipe.teacher.config is not None:
        return teachers.from_nothing(recipe, n_vocabulary=n_vocabulary)
    is_cached = recipe.teacher is not None and recipe.teacher.cache is not None
    if is_cached and all(not learner.section.copies_teacher for learner in recipe.learners.values()):
        return None
    return teachers.weights_of(recipe, in_memory, compute=compute)


def _provenance(
    data: Corpus,
    *,
    teacher: CausalLM | LiveTeacher | EnsembleTeacher | CachedTeacher | None,
    starts: Mapping[str, Start],
    compute: ComputePath,
    order: Curriculum | None,
) -> dict[str, io.Json]:
    """What identifies a run beside its recipe: a resumed run must have the same."""
    return {
        "data": data.identity(order),
        "tokenizer": data.fingerprint,
        "template": vocabulary.template_fingerprint(data.tokenizer),
        "teacher": _teacher_identity(teacher),
        "students": {name: weights_fingerprint(start.model) for name, start in starts.items()},
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "compute": dict(compute.as_json()),
        "world_size": 1,
        "tutelage": metadata.version("tutelage"),
        "packed": data.packed,
        **({"micro_batch": data.micro_batch} if data.micro_batch is not None else {}),
        "layers": {name: _layers_json(start.layers) for name, start in starts.items()},
        "widths": {name: widths.to_json(start.width) for name, start in starts.items() if start.width is not None},
    }


def _measured(earlier: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """What an unfinished run has measured for a student's start."""
    return {what: (earlier or {}).get(what, {}).get(name) for what in ("layers", "widths")}


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
    asked = any(learner.section.memory for learner in recipe.learners.values())
    lacking += ["the student"] if asked and memory.student is None else []
    if lacking:
        raise ConfigError(
            "CONFIG",
            f"the recipe was made with objects in memory, and {', '.join(lacking)} cannot be read from a file; "
            "call tutelage.train() with them again",
        )


# --- tokenizer ---
def _compare_with_students(recipe: Recipe, tokenizer: Any) -> dict[str, tuple[int, ...]]:
    """The ids that each student has to stop on, where there are several.

    Raises IntegrityError[TOKENIZER_MISMATCH] or [TEMPLATE_MISMATCH] before any model loads.
    """
    stop_ids = {}
    for name, learner in recipe.learners.items():
        section = learner.section
        if section.model is None or (recipe.teacher is None and recipe.students is None):
            continue
        own = load.load_tokenizer(section.model, revision=section.revision)
        vocabulary.compare_tokenizers(tokenizer, own)
        if recipe.data.chat_template is None:
            vocabulary.compare_templates(tokenizer, own)
        ids = vocabulary.compare_ends(tokenizer, own)
        if len(ids) > 1:
            stop_ids[name] = ids
    return stop_ids


# --- provenance ---
def _teacher_identity(teacher: CausalLM | LiveTeacher | EnsembleTeacher | CachedTeacher | None) -> io.Json:
    """Its weights; of a cache also how they were stored, since another draw or codec is another teacher."""
    if isinstance(teacher, CachedTeacher):
        return f"cache {teacher.cache.manifest.identity()}"
    if isinstance(teacher, LiveTeacher | EnsembleTeacher):
        return teacher.fingerprint  # of rounded weights as they are: another one than the plain teacher's
    return weights_fingerprint(teacher) if teacher is not None else None


def _layers_json(choice: LayerChoice | None) -> io.Json:
    if choice is None:
        return None
    return {"kept": list(choice.kept), "dropped": [list(d) for d in choice.dropped], "n_positions": choice.n_positions}
