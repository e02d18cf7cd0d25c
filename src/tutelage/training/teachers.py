"""The teacher of a recipe: its tokenizer, its weights, live on the compute path or read from its cache."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PretrainedConfig

from tutelage import console
from tutelage.cache.ensemble import held_out_of
from tutelage.cache.given import is_given
from tutelage.cache.manifest import HELD_OUT, START
from tutelage.cache.reader import TeacherCache
from tutelage.data.answers import SOFT, read_card
from tutelage.errors import ConfigError, IntegrityError
from tutelage.losses.stored import refuse_unservable
from tutelage.losses.terms import Term
from tutelage.models import load, placement, quantized, student, vocabulary
from tutelage.models.cast import cast
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import refuse_padding_mass, refuse_too_long, verify_head
from tutelage.recipe import Recipe, Teacher
from tutelage.roles import TEACHER
from tutelage.teachers.cached import CachedTeacher
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training.corpus import Corpus
from tutelage.training.plan import rows_of_run
from tutelage.training.precision import ComputePath, choose_device
from tutelage.types import CausalLM


def tokenizer_of(recipe: Recipe) -> Any:
    """The tokenizer that data are read with: the teacher's, its cache's, or the student's where there is no teacher."""
    teacher = recipe.teacher
    if teacher is not None and teacher.model is None and teacher.cache is not None:
        _require_soft(teacher)
        TeacherCache(teacher.cache)  # refuses a folder that holds none, or a damaged one
        return load.load_start(Path(teacher.cache) / START)[0]
    if teacher is not None and teacher.tokenizer is not None:
        return load.load_tokenizer(teacher.tokenizer)
    if teacher is not None and teacher.ensemble is not None:
        return load.load_tokenizer(teacher.ensemble[0].model, revision=teacher.ensemble[0].revision)
    named = [learner.section for learner in recipe.learners.values() if learner.section.model is not None]
    writes_text = teacher is not None and teacher.model is None and (teacher.answers or teacher.api) is not None
    section = teacher if teacher is not None and not writes_text else named[0] if named else None
    if section is None or section.model is None:
        raise ConfigError("CONFIG", "a model in memory needs its tokenizer: tutelage.train(…, tokenizer=tokenizer)")
    return load.load_tokenizer(section.model, revision=section.revision)


def _require_soft(teacher: Teacher) -> None:
    """ConfigError when a loss asks for what an endpoint gave beside its answers, and it gave nothing."""
    if teacher.answers is None or Path(str(teacher.cache)) != Path(teacher.answers) / SOFT:
        return
    read_card(Path(teacher.answers))
    if not Path(str(teacher.cache)).is_dir():
        raise ConfigError(
            "CACHE_ABSENT",
            f"{teacher.answers} holds text without log-probabilities; ask for them with generate.top_logprobs=5, or "
            "set loss=cross_entropy",
        )


def require_answers(recipe: Recipe) -> None:
    """ConfigError where an endpoint is named and no folder for what it writes: only `compare` makes one itself."""
    teacher = recipe.teacher
    if teacher is not None and teacher.api is not None and teacher.answers is None:
        raise ConfigError(
            "CONFIG",
            "teacher.answers is missing: name the folder that generate writes and train reads, and leave data.sources "
            "out; only tutelage compare makes one itself",
        )


def device_of(recipe: Recipe, compute: ComputePath) -> str:
    """Where the teacher runs; ConfigError for a device that is not there, and for a teacher that learns elsewhere."""
    section = recipe.teacher
    if section is None:
        return compute.device
    if isinstance(section.device_map, Mapping):
        for place in section.device_map.values():
            if place != "disk":
                choose_device(f"cuda:{place}" if isinstance(place, int) else place, field="teacher.device_map")
    if section.device == "auto":
        return compute.device
    wanted = choose_device(section.device, field="teacher.device")
    if recipe.trains_teacher and wanted != compute.device:
        raise ConfigError(
            "CONFIG",
            f"teacher.device: {wanted}, and its students train on {compute.device}; who learns together shares a "
            "device: set training.device, leave teacher.device out",
        )
    return wanted


def weights_of(recipe: Recipe, in_memory: nn.Module | None, *, compute: ComputePath) -> nn.Module | None:
    """The teacher in the dtype it was saved in; a recipe that names one has it measured even if no term asks it.

    Where its weights are to be rounded, they are, and it is on the compute path.
    """
    if in_memory is not None:
        return in_memory
    if recipe.teacher is None or recipe.teacher.model is None:
        return None
    source, revision, quantize = recipe.teacher.model, recipe.teacher.revision, recipe.teacher.quantize
    dtype, device = _dtype(recipe, compute), device_of(recipe, compute)
    name = str(dtype).removeprefix("torch.")
    if recipe.teacher.device_map is not None:
        model = load.load_model(source, revision=revision, dtype=name, device_map=recipe.teacher.device_map)
        console.tell(f"teacher: {placement.summary(model)}")
        return model
    if quantize is None:
        rounded = quantized.stored_as(load.load_config(source, revision)) is not None
        return load.load_model(source, revision=revision, dtype="auto", device=device if rounded else "cpu")
    quantized.require(quantize, device=device, dtype=dtype)
    return load.load_model(source, revision=revision, dtype=name, device=device, quantize=quantize)


def saved_fingerprint(recipe: Recipe, model: nn.Module) -> str:
    """What the teacher's weights are known by as they were saved; one with a device map is read in its own dtype."""
    section = recipe.teacher
    if section is None or section.model is None or section.device_map is None:
        return weights_fingerprint(model)
    own = load.load_model(section.model, revision=section.revision, dtype="auto", device_map=section.device_map)
    return weights_fingerprint(own)


def on_cpu(section: Teacher) -> nn.Module:
    """The teacher outside of a run, as it was saved, its weights rounded or spread if the recipe says so."""
    assert section.model is not None, "who calls has asked"
    if section.device_map is not None:
        return load.load_model(section.model, revision=section.revision, device_map=section.device_map)
    if section.quantize is None:
        return load.load_model(section.model, revision=section.revision, dtype="auto", device="cpu")
    quantized.require(section.quantize, device="cpu", dtype=torch.float32)
    return load.load_model(
        section.model, revision=section.revision, dtype="float32", device="cpu", quantize=section.quantize
    )


def _dtype(recipe: Recipe, compute: ComputePath) -> torch.dtype:
    """What the teacher computes in: as the recipe says, or as the student."""
    named = recipe.teacher.dtype if recipe.teacher is not None else "auto"
    dtype: torch.dtype = compute.weight_dtype if named == "auto" else getattr(torch, named)
    return dtype


def from_nothing(recipe: Recipe, *, n_vocabulary: int) -> CausalLM:
    """The teacher that `teacher.config` describes, its weights drawn by the run's seed."""
    section = recipe.teacher
    assert section is not None and section.config is not None and section.tokenizer is not None, "recipe rules"
    base, seed = load.load_config(section.tokenizer), recipe.training.seed
    return student.from_config(section.config, base=base, n_vocabulary=n_vocabulary, seed=seed, name=TEACHER)


def asked(
    recipe: Recipe, model: CausalLM | None, *, compute: ComputePath, n_vocabulary: int, tokenizer: Any, lent: bool
) -> LiveTeacher | EnsembleTeacher | None:
    """Who is asked at every step: `model`, or the members of an ensemble."""
    if recipe.teacher is not None and recipe.teacher.ensemble is not None:
        return ensemble(recipe, compute=compute, n_vocabulary=n_vocabulary, tokenizer=tokenizer)
    return live(recipe, model, compute=compute, n_vocabulary=n_vocabulary, lent=lent)


def ensemble(recipe: Recipe, *, compute: ComputePath, n_vocabulary: int, tokenizer: Any) -> EnsembleTeacher:
    """The members on the compute path; IntegrityError[TOKENIZER_MISMATCH] where one counts in other tokens."""
    assert recipe.teacher is not None and recipe.teacher.ensemble is not None
    members = []
    for section in recipe.teacher.ensemble:
        vocabulary.compare_tokenizers(tokenizer, load.load_tokenizer(section.model, revision=section.revision))
        model = load.load_model(section.model, revision=section.revision, dtype="auto", device="cpu")
        member = live(recipe, model, compute=compute, n_vocabulary=n_vocabulary, lent=False)
        assert member is not None
        verify_teacher(member.model, n_vocabulary=n_vocabulary, max_length=recipe.data.max_length)
        members.append(member)
    return EnsembleTeacher(members, weights=[section.weight for section in recipe.teacher.ensemble])


def config_of(recipe: Recipe, model: nn.Module | None) -> PretrainedConfig | None:
    """The teacher's config, of a cache too, of several the first one's: `student.config` changes fields of it."""
    if model is not None:
        config: PretrainedConfig = model.config
        return config
    if recipe.teacher is not None and recipe.teacher.ensemble is not None:
        first = recipe.teacher.ensemble[0]
        own: PretrainedConfig = load.load_config(first.model, revision=first.revision)
        return own
    if recipe.teacher is None or recipe.teacher.cache is None:
        return None
    found: PretrainedConfig = load.load_start(Path(recipe.teacher.cache) / START)[1]
    return found


def live(
    recipe: Recipe, model: CausalLM | None, *, compute: ComputePath, n_vocabulary: int, lent: bool
) -> LiveTeacher | None:
    """The teacher on the compute path, or in the dtype that the recipe names; a lent one stays as its owner has it."""
    if model is None or recipe.teacher is None:
        return None
    if quantized.is_quantized(model) or recipe.teacher.device_map is not None:  # it lies where it was loaded
        return LiveTeacher(model, n_vocabulary=n_vocabulary, answers_on=compute.device)
    own = _on_same_weights(model) if lent else model
    placed = cast(own, _dtype(recipe, compute), device=device_of(recipe, compute))
    return LiveTeacher(placed, n_vocabulary=n_vocabulary, answers_on=compute.device)


def _on_same_weights(model: CausalLM) -> CausalLM:
    """A model of our own on the caller's weights: to convert, freeze or switch it leaves the caller's alone."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    return copy.deepcopy(model, shared)


def verify(models: Sequence[CausalLM], *, n_vocabulary: int, max_length: int) -> None:
    """Refuse models that would be taken for something else: length, head."""
    for model in models:
        refuse_too_long(model, max_length=max_length)
        verify_head(model, n_vocabulary=n_vocabulary)


def verify_teacher(model: CausalLM, *, n_vocabulary: int, max_length: int) -> None:
    """`verify`, and that the teacher puts no mass on rows that its tokenizer does not have."""
    verify([model], n_vocabulary=n_vocabulary, max_length=max_length)
    refuse_padding_mass(model, n_vocabulary=n_vocabulary)


def verify_all(students: Iterable[CausalLM], teacher: CausalLM | None, *, n_vocabulary: int, max_length: int) -> None:
    """`verify` of the students, `verify_teacher` of the teacher if there is one."""
    verify(list(students), n_vocabulary=n_vocabulary, max_length=max_length)
    if teacher is not None:
        verify_teacher(teacher, n_vocabulary=n_vocabulary, max_length=max_length)


# --- from a cache ---
def cached(
    recipe: Recipe, corpus: Corpus, *, terms: Sequence[Term], model: nn.Module | None, compute: ComputePath
) -> CachedTeacher:
    """The open cache, after everything that could make it the wrong one for this recipe has been looked at.

    Training rows that it lacks are an error, or are left out of `corpus` where `data.missing_soft` says drop; where
    only those of the run are needed, `require_rows_of_run` is to be called once it is known how rows are packed.
    """
    assert recipe.teacher is not None and recipe.teacher.cache is not None
    cache = TeacherCache(recipe.teacher.cache)
    _require_same_teacher(cache, corpus, model=model)
    asked = cache.manifest.asked
    refuse_unservable(terms, kind=cache.codec.KIND, temperature=asked.temperature)
    _refuse_or_warn_without_tail(cache, terms)
    _require_rows(recipe, corpus, cache)
    return CachedTeacher(cache, device=compute.device)


def _refuse_or_warn_without_tail(cache: TeacherCache, terms: Sequence[Term]) -> None:
    """A renormalised top k: `forward_kl` has a biased minimum, other divergences see a teacher that excludes tokens."""
    manifest = cache.manifest
    if manifest.asked.codec != "topk" or manifest.settings.get("tail"):
        return
    what = f"{cache.folder} keeps {manifest.settings['k']} tokens a position renormalised, without a tail"
    others = [term.name for term in terms if term.kind == "divergence" and term.divergence != "forward_kl"]
    if others:
        raise ConfigError(
            "CODEC_CANNOT",
            f"{what}: {others[0]} would be infinite or cut off wherever the student is right about another token; use "
            "forward_kl, or label with cache.tail=true or codec hidden",
        )
    console.warning(
        "BIASED_LOSS",
        f"{what}: the student learns to be too sure; label with cache.tail=true or codec threshold",
    )


def _require_same_teacher(cache: TeacherCache, corpus: Corpus, *, model: nn.Module | None) -> None:
    asked = cache.manifest.asked
    if asked.tokenizer != corpus.fingerprint:
        raise IntegrityError(
            "CACHE_MISMATCH",
            f"{cache.folder} was made with tokenizer {asked.tokenizer[:8]}.., this run has {corpus.fingerprint[:8]}..; "
            f"give the cache's own tokenizer (that of {asked.teacher.name}), or label anew",
        )
    members = (asked.teacher, *(member.teacher for member in cache.manifest.members))
    rounded = next((teacher.quantize for teacher in members if teacher.quantize is not None), None)
    if model is not None and rounded is not None:
        raise IntegrityError(
            "CACHE_MISMATCH",
            f"{cache.folder} was made by {asked.teacher.name} rounded to {rounded}, and the student copies weights "
            "that are not rounded; give student.model, or label with the plain teacher",
        )
    if model is not None and weights_fingerprint(model) not in {teacher.saved_weights for teacher in members}:
        raise IntegrityError(
            "CACHE_MISMATCH",
            f"{cache.folder} was made by {asked.teacher.name} ({asked.teacher.saved_weights[:8]}..), teacher.model is "
            f"another one ({weights_fingerprint(model)[:8]}..); name the one it was made by, or label anew",
        )


def require_rows_of_run(recipe: Recipe, corpus: Corpus, teacher: object) -> None:
    """CACHE_MISS when a cache that need hold no other rows than those of this run lacks some of them."""
    if isinstance(teacher, CachedTeacher) and _is_for_run(recipe):
        _training_rows_here(recipe, corpus, teacher.cache, rows=rows_of_run(recipe.training, corpus.loader()))


def _is_for_run(recipe: Recipe) -> bool:
    return recipe.cache is not None and recipe.cache.rows == "run"


def _training_rows_here(
    recipe: Recipe, corpus: Corpus, cache: TeacherCache, *, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which of these rows are in the cache; CACHE_MISS unless all are, or `data.missing_soft` says drop."""
    here = cache.has(corpus.store.keys[rows])
    if not here.all():
        first = int(rows[~here][0])
        where = f" (first: row {first}, {corpus.store.name(first)})"
        drop = recipe.data.missing_soft == "drop"
        _say_missing(cache, "training", n_missing=int((~here).sum()), n_rows=len(here), where=where, drop=drop)
    return here


def _require_rows(recipe: Recipe, corpus: Corpus, cache: TeacherCache) -> None:
    """Every row is in the cache; else CACHE_MISS, or they are left out where `data.missing_soft` says drop."""
    drop = recipe.data.missing_soft == "drop"
    given = is_given(cache.manifest)
    if not _is_for_run(recipe):
        corpus.keep_training_rows(_training_rows_here(recipe, corpus, cache, rows=corpus.split.train))
    held_out = cache if given else held_out_of(cache)
    own_text = recipe.data.held_out is not None and recipe.data.held_out.sources is not None
    asked_once = own_text and recipe.training.evaluate_every is None  # at the end, and not for the loss
    for name, (store, rows) in corpus.measured_rows().items():
        if given and (name != HELD_OUT or asked_once):
            continue  # such a teacher is in no table; its numbers serve the loss on held-out rows alone
        here = held_out.has(store.keys[rows]) if held_out is not None else np.zeros(len(rows), dtype=np.bool_)
        if not here.all():
            what, where = name.replace("_", "-"), ": the student could not be measured on them against the teacher"
            _say_missing(cache, what, n_missing=int((~here).sum()), n_rows=len(here), where=where, drop=drop)
            corpus.keep_measured_rows(name, here)


def _say_missing(cache: TeacherCache, what: str, *, n_missing: int, n_rows: int, where: str, drop: bool) -> None:
    found = f"{n_missing} of {n_rows} {what} rows are not in {cache.folder}"
    if drop:
        console.warning("CACHE_MISS", f"{found}: left out")
        return
    extend = "extend it: tutelage label RECIPE"
    if is_given(cache.manifest):
        extend = "write it for this data section, nothing is asked again: tutelage generate RECIPE --no-ask"
    if cache.manifest.members:
        extend = "extend the caches that it was merged from (tutelage label) and merge them again"
    raise IntegrityError("CACHE_MISS", f"{found}{where}; {extend}, or set data.missing_soft=drop")
