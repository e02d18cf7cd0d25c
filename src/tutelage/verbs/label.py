"""The verb `label`: the teacher runs once over a recipe's data, and a cache holds what it said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import console, io
from tutelage.cache import manifest as manifests
from tutelage.cache.job import Job, windows_of_pass
from tutelage.cache.manifest import HELD_OUT, START, Asked, Manifest, TeacherRecord
from tutelage.cache.rows import RowSet
from tutelage.cache.writer import Written, write
from tutelage.errors import ConfigError
from tutelage.models import packing, quantized, vocabulary
from tutelage.models.save import save_start
from tutelage.recipe import Recipe
from tutelage.teachers.live import LiveTeacher
from tutelage.training import teachers
from tutelage.training.corpus import Corpus
from tutelage.training.plan import rows_of_run
from tutelage.training.precision import ComputePath, choose_compute_path, choose_device
from tutelage.verbs.given import given_objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """What `label` gives back: the cache, and what this call added to it."""

    path: Path
    manifest: Manifest
    held_out: Manifest | None
    written: Written

    @property
    def rate_tok_per_s(self) -> float:
        """Positions that this process labelled a second, everything included."""
        return self.written.n_positions / self.written.seconds if self.written.n_positions else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "cache": str(self.path),
            "codec": self.manifest.asked.codec,
            "settings": self.manifest.settings,
            "rows": self.manifest.n_rows,
            "positions": self.manifest.n_positions,
            "bytes_per_token": self.manifest.bytes_per_token,
            "held_out_rows": self.held_out.n_rows if self.held_out else 0,
            "labelled_now": self.written.n_positions,
            "rate_tok_per_s": self.rate_tok_per_s,
        }

    def __str__(self) -> str:
        manifest = self.manifest
        lines = [
            f"cache:   {self.path}  ({manifest.n_rows:,} rows, {manifest.n_positions:,} positions, "
            f"{self.manifest.bytes_per_token:.2f} bytes a token)",
            f"codec:   {manifest.asked.codec}; {manifest.why}",
        ]
        if self.held_out is not None:
            lines.append(f"held out: {self.held_out.n_rows:,} rows, {self.held_out.n_positions:,} positions, whole")
        if self.written.n_positions:
            lines.append(f"now:     {self.written.n_positions:,} positions at {self.rate_tok_per_s:,.0f} tokens/s")
        return "\n".join([*lines, f"next:    tutelage cache inspect {self.path}, then tutelage train RECIPE"])


def label(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    force: bool = False,
    teacher: nn.Module | None = None,
    tokenizer: Any = None,
    data: Sequence[object] | None = None,
) -> Labelled:
    """Run the teacher over the recipe's data and write the cache `teacher.cache`; held-out rows are stored whole.

    Only rows that the cache lacks are labelled: a stopped call goes on, grown data add to it, several processes share
    the work.  `teacher`, `tokenizer` and `data` are objects already in memory, as for `train`.

    Raises ConfigError[CACHE_MISMATCH] when the folder holds a cache that was made otherwise.
    """
    checked, memory = given_objects(recipe, overrides, teacher=teacher, tokenizer=tokenizer, data=data)
    folder = _folder(checked)
    manifests.require_ours(folder)
    compute = choose_compute_path(
        _precision(checked, earlier=_recorded(folder) if not force else None),
        device=_device(checked),
        threads=checked.training.threads,
    )
    teachers.device_of(checked, compute)  # refuses one that is not there, before anything is read
    tokenizer = memory.tokenizer if memory.tokenizer is not None else teachers.tokenizer_of(checked)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    corpus = Corpus(checked, tokenizer, examples=memory.examples)
    model = teachers.weights_of(checked, memory.teacher, compute=compute)
    assert model is not None, "_folder has asked for it"
    saved_weights = teachers.saved_fingerprint(checked, model)
    live = teachers.live(checked, model, compute=compute, n_vocabulary=n_vocabulary, lent=memory.teacher is not None)
    assert live is not None
    teachers.verify_teacher(live.model, n_vocabulary=n_vocabulary, max_length=checked.data.max_length)
    corpus.packed = packing.all_pack([live.model], n_vocabulary=n_vocabulary)
    record = _record(checked, live, saved_weights=saved_weights)
    if force:
        manifests.remove_cache(folder)
    io.make_directory(folder)
    save_start(live.model, tokenizer, folder / START, replace=_recorded(folder) is None)
    held_out, written = _write_both(folder, checked, corpus, live=live, record=record, compute=compute)
    return Labelled(path=folder, manifest=written.manifest, held_out=held_out, written=written)


def _folder(recipe: Recipe) -> Path:
    """Where the cache is written; ConfigError unless the recipe names it and a teacher to ask."""
    teacher = recipe.teacher
    if teacher is not None and (teacher.ensemble is not None or teacher.train is not None):
        why = (
            "label each member and merge the caches"
            if teacher.ensemble is not None
            else "a teacher that learns has none"
        )
        raise ConfigError(
            "CONFIG", f"label asks one teacher that stays as it is: {why}; name it alone in teacher.model"
        )
    if teacher is None or teacher.cache is None:
        raise ConfigError(
            "CONFIG", "label writes to teacher.cache, and the recipe names none; add teacher.cache=FOLDER"
        )
    if teacher.model is None and teacher.memory is None:
        raise ConfigError(
            "CONFIG",
            f"label runs the teacher, and the recipe names only its cache {teacher.cache}; add teacher.model=…",
        )
    return Path(teacher.cache)


def _device(recipe: Recipe) -> str:
    """Where the teacher runs: only it does."""
    assert recipe.teacher is not None, "_folder has asked for it"
    named = recipe.teacher.device
    return choose_device(named, field="teacher.device") if named != "auto" else recipe.training.device


def _precision(recipe: Recipe, *, earlier: TeacherRecord | None) -> str:
    """What the shards that are there ran in, where that is a compute path; `teacher.dtype` has its way in any case."""
    paths = ("float32", "bfloat16", "float64")
    return earlier.dtype if earlier is not None and earlier.dtype in paths else str(recipe.training.precision)


def _recorded(folder: Path) -> TeacherRecord | None:
    """How the teacher ran for the shards that are there: what goes on must run alike."""
    plan = manifests.read_plan(folder / HELD_OUT) or manifests.read_plan(folder)
    for place in (folder, folder / HELD_OUT):
        if (place / manifests.MANIFEST).is_file():
            return manifests.read_manifest(place).asked.teacher
    return plan.manifest.asked.teacher if plan is not None else None


def _record(recipe: Recipe, live: LiveTeacher, *, saved_weights: str) -> TeacherRecord:
    assert recipe.teacher is not None
    parameters = list(live.model.parameters())
    return TeacherRecord(
        name=recipe.teacher.model or "a model in memory",
        saved_weights=saved_weights,
        weights=live.fingerprint,
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        attention=str(getattr(live.model.config, "_attn_implementation", "unknown")),
        parameters=quantized.n_parameters(live.model),
        parameter_bytes=quantized.n_bytes(live.model),
        quantize=recipe.teacher.quantize,
    )


def _write_both(
    folder: Path,
    recipe: Recipe,
    corpus: Corpus,
    *,
    live: LiveTeacher,
    record: TeacherRecord,
    compute: ComputePath,
) -> tuple[Manifest | None, Written]:
    """The held-out rows first: their cache holds the head, which the probe of the training rows needs as well."""
    measured = list(corpus.measured_rows().values())

    def job(parts: Sequence[Any], *, held_out: bool) -> Job:
        asked = _asked(recipe, corpus, record=record, held_out=held_out)
        return Job(
            rows=RowSet.of(parts),
            asked=asked,
            teacher=live,
            windows=windows_of_pass(recipe.data.max_length, device=compute.device),
            fingerprint=corpus.fingerprint,
            pad_id=corpus.pad_id,
            packed=corpus.packed,
            probe=not held_out,
            head=not measured,
        )

    held_out = None
    if measured:
        console.tell("labelling the held-out rows, whole")
        held_out = write(folder / HELD_OUT, job(measured, held_out=True)).manifest
    rows = corpus.split.train
    if recipe.cache is not None and recipe.cache.rows == "run":
        rows = rows_of_run(recipe.training, corpus.loader())
        console.tell(f"this recipe's run reads {len(rows):,} of {len(corpus.split.train):,} training rows")
    return held_out, write(folder, job([(corpus.store, rows)], held_out=False))


def _asked(recipe: Recipe, corpus: Corpus, *, record: TeacherRecord, held_out: bool) -> Asked:
    cache = recipe.cache
    assert cache is not None, "short forms: a recipe with teacher.cache has a cache section"
    common: dict[str, Any] = {
        "max_length": recipe.data.max_length,
        "n_vocabulary": vocabulary.real_vocabulary(corpus.tokenizer),
        "tokenizer": corpus.fingerprint,
        "template": corpus.template,
        "teacher": record,
    }
    if held_out:
        return Asked(codec="hidden", temperature=1.0, draws=1, **common)
    fixed = {name: getattr(cache, name) for name in ("threshold", "k", "tail", "dtype")}
    return Asked(
        codec=cache.codec,
        temperature=cache.temperature,
        draws=cache.draws or 1,
        bytes_per_token=cache.bytes_per_token,
        error=cache.error,
        fixed={name: value for name, value in fixed.items() if value is not None},
        **common,
    )
