"""A recipe's facts: its text, tokenised once as training would, and its models' sizes, from their configs alone."""

from dataclasses import replace
from typing import Any  # configs of transformers are untyped

import torch
from transformers import AutoModelForCausalLM

from tutelage.cache.codec import Budget
from tutelage.errors import ConfigError
from tutelage.models import adapters, load, student, vocabulary, width
from tutelage.planning.facts import Endpoint, Facts, Text
from tutelage.planning.flops import Size, size_of
from tutelage.planning.storage import Form
from tutelage.recipe import Layers, Recipe
from tutelage.recipe import Student as StudentSection
from tutelage.recipe.sections import Cache
from tutelage.training import teachers
from tutelage.training.corpus import Corpus
from tutelage.training.starts import adapter_of

_USD_PER = 1e6  # prices are for a million tokens


def facts_of(recipe: Recipe) -> Facts:
    """What the recipe says, with its text tokenised (kept, and found again by `train` and `label`)."""
    tokenizer = teachers.tokenizer_of(recipe)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    teacher = _teacher_config(recipe)
    return Facts(
        text=_text(recipe, Corpus(recipe, tokenizer, examples={})),
        students=_sizes(recipe, teacher, n_vocabulary=n_vocabulary),
        teacher=size_of(teacher, n_vocabulary=n_vocabulary) if teacher is not None else None,
        endpoint=_endpoint(recipe) if teacher is None else None,
        teacher_is_new=recipe.teacher is not None and recipe.teacher.config is not None,
        number_bytes={"float32": 4, "float64": 8}.get(recipe.training.precision, 2),
        draws=(recipe.cache.draws or 1) if recipe.cache is not None else 1,
    )


def student_sizes(recipe: Recipe) -> dict[str, Size]:
    """How large each student will be, by the configs alone; ConfigError where one cannot be made."""
    n_vocabulary = vocabulary.real_vocabulary(teachers.tokenizer_of(recipe))
    return _sizes(recipe, _teacher_config(recipe), n_vocabulary=n_vocabulary)


def _sizes(recipe: Recipe, teacher: Any, *, n_vocabulary: int) -> dict[str, Size]:
    return {
        name: _student_size(learner.section, name=name, teacher=teacher, n_vocabulary=n_vocabulary)
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


def _text(recipe: Recipe, corpus: Corpus) -> Text:
    n_R = corpus.store.lengths[corpus.split.train]
    unique = float(n_R.sum())
    held_out = sum(float(store.lengths[rows].sum()) for store, rows in corpus.measured_rows().values())
    stored = corpus.store.n_trained[corpus.split.train].sum() / max(1.0, unique)
    training = recipe.training
    if training.tokens is not None:
        trained = float(training.tokens)
    elif training.steps is not None:
        trained = float(training.steps * training.batch_tokens)
    else:
        assert training.epochs is not None, "recipe rules: one length"
        trained = training.epochs * unique
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


def _student_size(section: StudentSection, *, name: str, teacher: Any, n_vocabulary: int) -> Size:
    config = _student_config(section, name=name, teacher=teacher, n_vocabulary=n_vocabulary)
    size = size_of(config, n_vocabulary=n_vocabulary)
    if section.lora is None:
        return size
    with torch.device("meta"):
        n_learned = adapters.n_learned(AutoModelForCausalLM.from_config(config), adapter_of(section.lora))
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
    copied = _with_layers(teacher, section.layers)
    if section.width is not None:
        copied = width.narrow_config(copied, width.wanted_sizes(copied, **section.width.model_dump()))
    return copied


def _with_layers(teacher: Any, layers: Layers | None) -> Any:
    """The teacher's config with as many layers as the student keeps."""
    if layers is None:
        return teacher
    n_layers = len(layers.listed) if layers.listed is not None else layers.evenly or layers.important
    values = teacher.to_dict()
    if isinstance(values.get("layer_types"), list):
        values["layer_types"] = values["layer_types"][:n_layers]
    return type(teacher).from_dict({**values, "num_hidden_layers": n_layers})


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
