"""The verb `doctor`: a model's folder, or everything that a recipe names, the teacher cache included.

Nothing of a model is imported.  Of a recipe in which nothing is wrong, and whose student has weights of its own, the
loss of teacher and student on a few rows is measured: their weights are loaded, and the data prepared as for training.
"""

from dataclasses import replace
from pathlib import Path

import torch

from tutelage import io
from tutelage.cache.reader import TeacherCache
from tutelage.errors import ConfigError, TutelageError
from tutelage.losses.stored import refuse_unservable
from tutelage.models import doctor as models
from tutelage.models import load, vocabulary
from tutelage.models.doctor import Report
from tutelage.models.safety import Finding
from tutelage.planning.of_recipe import student_sizes
from tutelage.recipe import Recipe, Student
from tutelage.roles import TEACHER
from tutelage.training import teachers
from tutelage.training.compiling import require_compiler
from tutelage.training.plan import terms_of
from tutelage.training.precision import ComputePath, choose_device
from tutelage.verbs.doctor_data import with_measured


def examine(target: "str | Path | Recipe", *, traffic: "str | Path | None" = None, measured: bool = True) -> Report:
    """The report about a model (hub id, folder, .gguf file, package) or about what a recipe names.

    `traffic` is a file of prompts, of which the report says how many the recipe's training data do not cover.  Without
    `measured` no weight is loaded.
    """
    report = models.examine(target)
    if not isinstance(target, Recipe):
        if traffic is not None:
            raise ConfigError("CONFIG", "traffic is compared with training data; give a recipe, not a model")
        return report
    if target.teacher is not None and target.teacher.cache is not None:
        findings, facts = _examine_cache(target, target.teacher.cache)
        report = replace(
            report,
            findings=(*report.findings, *findings),
            facts={**report.facts, f"teacher cache {target.teacher.cache}": facts},
        )
    report = _with_devices(_with_students(report, target), target)
    return with_measured(report, target, traffic=traffic, measured=measured)


def _with_students(report: Report, recipe: Recipe) -> Report:
    """How large those students will be that the recipe makes, or why one cannot be made or learn by its loss."""
    made = [n for n, one in recipe.learners.items() if _is_made(one.section)]
    compares_layers = any(term.features is not None for one in recipe.learners.values() for term in one.loss)
    if not (made or compares_layers) or not report.ok:
        return report
    try:
        sizes = student_sizes(recipe)
    except TutelageError as error:
        finding = Finding(level="error", code=error.code, message=error.message)
        return replace(report, findings=(*report.findings, finding))
    facts = dict(report.facts)
    for name in made:
        size = sizes[name]
        learned = {"of adapters, which alone learn": size.learned} if size.learned is not None else {}
        packed = {"bytes once packed": round(size.packed_bytes)} if size.packed_bytes is not None else {}
        facts[f"{name}, as it will be made"] = {"parameters": size.parameters, **learned, **packed}
    return replace(report, facts=facts)


def _with_devices(report: Report, recipe: Recipe) -> Report:
    """Whether this machine has the devices that the recipe names, and can compile for them."""
    try:
        device = choose_device(recipe.training.device)
        teachers.device_of(recipe, ComputePath(device=device, weight_dtype=torch.float32, threads=1))
        if recipe.training.compile:
            require_compiler(device)
    except TutelageError as error:
        finding = Finding(level="error", code=error.code, message=error.message)
        return replace(report, findings=(*report.findings, finding))
    return report


def _is_made(student: Student) -> bool:
    """Whether more becomes of it than the weights that it names."""
    return student.copies_teacher or student.lora is not None or student.quantize is not None


def _examine_cache(recipe: Recipe, folder: str) -> tuple[list[Finding], dict[str, io.Json]]:
    """Whether the cache is whole, serves the loss, and counts in the student's tokens."""
    try:
        cache = TeacherCache(folder)
    except TutelageError as error:
        can_be_written = error.code in ("CACHE_ABSENT", "CACHE_UNFINISHED") and _names_a_model(recipe)
        return [Finding(level="note" if can_be_written else "error", code=error.code, message=error.message)], {
            "folder": folder
        }
    findings = []
    asked, manifest = cache.manifest.asked, cache.manifest
    try:
        for learner in recipe.learners.values():
            terms = [term for term in terms_of(learner.loss) if term.source == TEACHER]
            refuse_unservable(terms, kind=cache.codec.KIND, temperature=asked.temperature)
    except TutelageError as error:
        findings.append(Finding(level="error", code=error.code, message=error.message))
    for name, learner in recipe.learners.items():
        if learner.section.model is None:
            continue
        own = vocabulary.tokenizer_fingerprint(load.load_tokenizer(learner.section.model))
        if own != asked.tokenizer:
            message = f"{folder} was made with tokenizer {asked.tokenizer[:8]}.., {name} has {own[:8]}.."
            findings.append(Finding(level="error", code="CACHE_MISMATCH", message=message))
    facts: dict[str, io.Json] = {
        "folder": folder,
        "codec": asked.codec,
        "temperature": asked.temperature,
        "rows": manifest.n_rows,
        "positions": manifest.n_positions,
        "bytes a token": round(manifest.bytes_per_token, 2),
        "made by": f"{asked.teacher.name} ({asked.teacher.saved_weights[:12]}..)",
    }
    return findings, facts


def _names_a_model(recipe: Recipe) -> bool:
    return recipe.teacher is not None and recipe.teacher.model is not None
