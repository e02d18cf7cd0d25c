"""A recipe's facts: its text, tokenised once as training would, and its models' sizes, from their configs alone."""

import math
from dataclasses import dataclass, replace
from typing import Any  # configs of transformers are untyped

import torch
from transformers import AutoModelForCausalLM

from tutelage.cache.codec import Budget
from tutelage.errors import ConfigError
from tutelage.models import adapters, grid, load, student, vocabulary, width
from tutelage.planning.facts import Endpoint, Facts, Text
from tutelage.planning.flops import Size, size_of, together
from tutelage.planning.storage import Form
from tutelage.planning.unanswered import is_unanswered, text_to_come, trained_tokens
from tutelage.recipe import Layers, Recipe
from tutelage.recipe import Student as StudentSection
from tutelage.recipe.sections import Cache
from tutelage.training import features, teachers
from tutelage.training.corpus import Corpus
from tutelage.training.plan import rows_per_step
from tutelage.training.starts import adapter_of

_USD_PER = 1e6  # prices are for a million tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A recipe's facts, and the configs that they were read from."""

    facts: Facts
    n_vocabulary: int
    positions_per_token: float  # that training computes: windows are not quite full, and the last step is a whole one
    teacher: Any | None
    students: dict[str, Any]


def facts_of(recipe: Recipe) -> Facts:
    """What the recipe says, with its text tokenised (kept, and found again by `train` and `label`)."""
    return known_of(recipe).facts


def known_of(recipe: Recipe) -> Known:
    """`facts_of`, with the configs that they were read from.

    Answers that are not there yet count as long as they may be: `generate.max_tokens` each.
    """
    tokenizer = teachers.tokenizer_of(recipe)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    teacher = _teacher_config(recipe)
    students = _configs(recipe, teacher, n_vocabulary=n_vocabulary)
    text, positions_per_token = _text_of(recipe, tokenizer)
    facts = Facts(
        text=text,
        students=_sizes(recipe, students, n_vocabulary=n_vocabulary),
        teacher=_teacher_size(recipe, teacher, n_vocabulary=n_vocabulary),
        members=len(recipe.teacher.ensemble) if recipe.teacher is not None and recipe.teacher.ensemble else 1,
        endpoint=_endpoint(recipe) if teacher is None else None,
        teacher_is_new=recipe.teacher is not None and recipe.teacher.config is not None,
        number_bytes={"float32": 4, "float64": 8}.get(recipe.training.precision, 2),
        draws=(recipe.cache.draws or 1) if recipe.cache is not None else 1,
        caches_run=recipe.cache is not None and recipe.cache.rows == "run",
        compares_layers=any(t.features is not None for learner in recipe.learners.values() for t in learner.loss),
    )
    return Known(
        facts=facts,
        n_vocabulary=n_vocabulary,
        positions_per_token=positions_per_token,
        teacher=teacher,
        students=students,
    )


def student_sizes(recipe: Recipe) -> dict[str, Size]:
    """How large each student will be, by the configs alone; ConfigError where one cannot be made."""
    n_vocabulary = vocabulary.real_vocabulary(teachers.tokenizer_of(recipe))
    configs = _configs(recipe, _teacher_config(recipe), n_vocabulary=n_vocabulary)
    return _sizes(recipe, configs, n_vocabulary=n_vocabulary)


def _configs(recipe: Recipe, teacher: Any, *, n_vocabulary: int) -> dict[str, Any]:
    """Of the students, each with the layers that its loss names."""
    found = {}
    for name, learner in recipe.learners.items():
        found[name] = _student_config(learner.section, name=name, teacher=teacher, n_vocabulary=n_vocabulary)
        for term in learner.loss:
            if term.features is None or not isinstance(term.layers, tuple) or teacher is None:
                continue
            n_own, n_teachers = (int(c.get_text_config().num_hidden_layers) for c in (found[name], teacher))
            features.require_layers(term.layers, n_own=n_own, n_teachers=n_teachers, name=term.name)
    return found


def _sizes(recipe: Recipe, configs: dict[str, Any], *, n_vocabulary: int) -> dict[str, Size]:
    return {
        name: _student_size(learner.section, configs[name], name=name, n_vocabulary=n_vocabulary)
        for name, learner in recipe.learners.items()
    }


def form_of(recipe: Recipe) -> Form:
    """How `label` would write the teacher cache: as the recipe says, or by default."""
    cache = recipe.cache or Cache(codec="threshold", bytes_per_token=16.0, draws=1)
    fixed = {name: getattr(cache, name) for name in ("threshold", "k", "tail", "dtype")}
    budget = Budget(
        bytes_per_token=cache.bytes_per_token,
        error=cache.error,
        fixed={name: value for name, value in fixed.items() if value is not None},
    )
    return Form(name=cache.codec, codec=cache.codec, budget=budget, draws=cache.draws or 1)


def _text_of(recipe: Recipe, tokenizer: Any) -> tuple[Text, float]:
    """The text, and how many positions training computes for each of its tokens."""
    if is_unanswered(recipe):
        return text_to_come(recipe, tokenizer), 1.0
    corpus = Corpus(recipe, tokenizer, examples={})
    text, length = _text(recipe, corpus), recipe.data.max_length
    if not len(corpus.split.train) or recipe.training.steps is not None:  # whose tokens are positions
        return text, 1.0
    a_step = rows_per_step(recipe.training, max_length=length) * length
    full = float(corpus.loader().plan(0).sums(corpus.store.lengths).mean()) / length
    return text, math.ceil(text.trained / full / a_step) * a_step / text.trained


def _text(recipe: Recipe, corpus: Corpus) -> Text:
    n_R = corpus.store.lengths[corpus.split.train]
    unique = float(n_R.sum())
    held_out = sum(float(store.lengths[rows].sum()) for store, rows in corpus.measured_rows().values())
    stored = corpus.store.n_trained[corpus.split.train].sum() / max(1.0, unique)
    trained = trained_tokens(recipe, unique)
    window = float(n_R.mean()) if len(n_R) else 0.0
    return Text(trained=trained, unique=unique, held_out=held_out, window=window, trained_share=float(stored))


def _teacher_config(recipe: Recipe) -> Any:
    """The config of the teacher that is asked for distributions; None where there is none here."""
    teacher = recipe.teacher
    if teacher is None or (teacher.model is None and teacher.config is None and teacher.cache is None
                           and teacher.ensemble is None):  # fmt: skip
        return None
    if teacher.config is not None and teacher.tokenizer is not None:
        base = load.load_config(teacher.tokenizer)
        return type(base).from_dict({**base.to_dict(), **teacher.config})
    if teacher.model is not None:
        return load.load_config(teacher.model, revision=teacher.revision)
    return teachers.config_of(recipe, None)


def _teacher_size(recipe: Recipe, config: Any, *, n_vocabulary: int) -> Size | None:
    """Of several teachers all of them together."""
    if config is None or recipe.teacher is None:
        return None
    if recipe.teacher.ensemble is None:
        return size_of(config, n_vocabulary=n_vocabulary)
    members = (load.load_config(member.model, revision=member.revision) for member in recipe.teacher.ensemble)
    return together([size_of(member, n_vocabulary=n_vocabulary) for member in members])


def _student_size(section: StudentSection, config: Any, *, name: str, n_vocabulary: int) -> Size:
    size = size_of(config, n_vocabulary=n_vocabulary)
    if section.quantize is not None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        on_it = grid.rounding_of(model, section.quantize, name=name).inputs_first
        n_rounded = sum(model.get_parameter(key).numel() for key in on_it)
        return replace(size, rounded=n_rounded, packed_bytes=grid.packed_bytes(model, section.quantize))
    if section.lora is None:
        return size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        n_learned = adapters.n_learned(model, adapter_of(section.lora))
    adapters.tell_what_stays(model, name=name)
    return replace(size, multiplying=size.multiplying + n_learned, learned=n_learned)


def _student_config(section: StudentSection, *, name: str, teacher: Any, n_vocabulary: int) -> Any:
    """What config the student will have, adapters aside."""
    if section.model is not None:
        return load.load_config(section.model, revision=section.revision)
    if teacher is None:
        raise ConfigError("CONFIG", f"{name}: a model in memory has no size that a recipe tells; name it by a folder")
    if section.config is not None:
        with torch.device("meta"):
            made = student.from_config(section.config, base=teacher, n_vocabulary=n_vocabulary, seed=0, name=name)
        return made.config
    assert section.copies_teacher, "recipe rules: a student is a model, a config or a copy of the teacher"
    copied = teacher
    if section.layers is not None:
        copied = _of_layers(section.layers, teacher, name=name)
    if section.width is not None:
        copied = width.narrow_config(copied, width.wanted_sizes(copied, **section.width.model_dump()))
    return copied


def _of_layers(layers: Layers, teacher: Any, *, name: str) -> Any:
    """The teacher's config with the layers that stay; which the important ones are is not known before training."""
    n_kept, n_teacher = _n_layers(layers, teacher, name=name), int(teacher.get_text_config().num_hidden_layers)
    if layers.important is not None:
        return student.shortened(teacher, n_kept)
    return student.of_layers(teacher, layers.listed or student.evenly(n_teacher, n_kept))


def _n_layers(layers: Layers, teacher: Any, *, name: str) -> int:
    """How many layers the student keeps; ConfigError for more than the teacher has, or for one that it has not."""
    n_teacher = int(teacher.get_text_config().num_hidden_layers)
    listed = layers.listed
    n_kept = len(listed) if listed is not None else layers.evenly or layers.important or 0
    missing = [layer for layer in listed or () if layer >= n_teacher]
    if n_kept > n_teacher or missing:
        asked = f"layer {missing[0]}" if missing else f"{n_kept} layers"
        raise ConfigError(
            "CONFIG",
            f"{name}.layers: {asked} asked, the teacher has {n_teacher}; give "
            + (f"numbers from 0 to {n_teacher - 1}" if missing else f"1 to {n_teacher}"),
        )
    return n_kept


def _endpoint(recipe: Recipe) -> Endpoint | None:
    teacher, generate = recipe.teacher, recipe.generate
    if teacher is None or teacher.api is None:
        return None
    price = generate.price if generate is not None else None
    return Endpoint(
        top_logprobs=(generate.top_logprobs or 0) if generate is not None else 0,
        usd_per_prompt_token=price.prompt_usd / _USD_PER if price is not None else None,
        usd_per_answer_token=price.answer_usd / _USD_PER if price is not None else None,
    )
