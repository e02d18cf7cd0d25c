"""The verb `train`: a recipe becomes a student, its control, their measurements and a report, in one run directory."""

import copy
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import console, io, reading, roles
from tutelage.evaluation.show import Prompt
from tutelage.evaluation.transfer import HELD_OUT
from tutelage.models import adapters, grid, load, save
from tutelage.models.cast import cast
from tutelage.recipe import Recipe
from tutelage.reports.build import write_report
from tutelage.reports.report import report_of
from tutelage.reports.table import table_of, to_html
from tutelage.rundir import RunDirectory, Started, opened
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training import tracking
from tutelage.training.callbacks import Callback, loaded
from tutelage.training.compiling import compiled
from tutelage.training.fit import Fitted, fit
from tutelage.training.member import Member
from tutelage.training.plan import GROUND_TRUTH, fit_plan, n_steps_of, student_member, teacher_member
from tutelage.training.prepare import Prepared, prepare, running
from tutelage.training.teachers import tokenizer_of
from tutelage.training.trainer import Trainer
from tutelage.types import CausalLM
from tutelage.verbs import fork as forks
from tutelage.verbs.bring import bring_answers
from tutelage.verbs.evaluate import Measured, evaluate, in_order, measure, on_path
from tutelage.verbs.given import given_objects


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run; everything is read from its folder when asked."""

    path: Path

    @property
    def directory(self) -> RunDirectory:
        """Which file lies where."""
        return RunDirectory(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: a mapping of `model/term` to nats for each step."""
        return self.directory.metrics()

    @property
    def summary(self) -> dict[str, Any]:
        """finished.json: steps, tokens, seconds, what was saved."""
        return dict(reading.read_json(self.directory.finished_path))

    def student(self) -> nn.Module:
        """The trained student (of several the best), in the dtype it was saved in, eval mode."""
        return load.load_model(str(self.directory.student), dtype="auto", device="cpu")

    def evaluation(self) -> Measured | None:
        """The measurements, recomputed from their records; None when the recipe keeps nothing to measure on."""
        return evaluate(self.path) if self.directory.evaluation.is_dir() else None

    def report(self) -> Path:
        """The HTML page."""
        return self.directory.report_path

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, for programs."""
        measured = self.evaluation()
        return {"run": str(self.path), **self.summary, "evaluation": measured.as_json() if measured else None}

    def __str__(self) -> str:
        summary = self.summary
        trained = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary["training_s"].items())
        lines = [f"trained: {summary['step']} steps, {summary['tokens']:,} tokens ({trained})"]
        if measured := self.evaluation():
            lines = [str(measured), *lines, f"report:  {self.report()}  (opens offline)"]
        student = self.directory.student
        lines += [
            f"student: {student}  (transformers: AutoModelForCausalLM.from_pretrained)",
            *self._beside(),
            f'next:    tutelage show {self.path} "any beginning of a text"',
        ]
        return "\n".join(lines)

    def _beside(self) -> list[str]:
        """Where a student's adapters lie alone, or the integers that it was rounded to."""
        said = {"adapter": "(peft: PeftModel.from_pretrained)", "codes": "(integers and scales of its linear weights)"}
        folders = {kind: self.directory.model(f"{self.summary['student']}-{kind}") for kind in said}
        return [f"{f'{kind}:':<9}{folder}  {said[kind]}" for kind, folder in folders.items() if folder.is_dir()]

    def _repr_html_(self) -> str:
        measured = self.evaluation()
        return to_html(table_of(measured.transfer)) if measured else f"<pre>{html.escape(str(self))}</pre>"


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    fork: bool = False,
    resume: bool = False,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    tokenizer: Any = None,
    data: Sequence[object] | None = None,
    prompts: Sequence[Prompt] = (),
    ask: bool = True,
    allow_private_host: bool = False,
) -> Run:
    """Train as a recipe says and measure the result; an unfinished run of the same recipe goes on by itself.

    `teacher`, `student`, `tokenizer` and `data` (strings, or mappings with the columns of a JSON line) are objects
    already in memory; the recipe, then a dict, leaves them out.  `run_dir` is by default runs/NAME of the recipe file.

    Answers that teacher.answers lacks are asked first, where the recipe holds a cap (generate.budget_usd or
    generate.max_requests); with `ask=False` it learns from those that are there.

    Raises ConfigError for a wrong recipe or a folder that holds something else, Stopped after a signal, and whatever
    `docs/errors.md` lists for files, memory and numbers; nothing that was finished is lost.
    """
    checked, memory = given_objects(recipe, overrides, teacher=teacher, student=student, tokenizer=tokenizer, data=data)
    folder = _folder(recipe, run_dir)
    earlier = _earlier(folder, checked, force=force, fork=fork, resume=resume)
    if earlier == "finished":
        return Run(folder)
    if earlier is None:  # a run that goes on has its answers
        RunDirectory(folder).refuse_strangers()
        lacking = memory.tokenizer is None
        before = (lambda: tokenizer_of(checked)) if lacking else (lambda: None)
        bring_answers(checked, ask=ask, allow_private_host=allow_private_host, before=before)
    tracking.require(checked.training.track or ())
    callbacks = loaded(checked.training.callbacks or ())  # what cannot be imported is said before anything is loaded
    prepared = prepare(checked, memory=memory, earlier=earlier)
    resolved = checked.resolved()
    with opened(
        folder, resolved, prepared.provenance, force=force, fork=fork, resume=resume, can_fork=forks.can_fork(checked)
    ) as started:
        if started.kind != "nothing_to_do":
            _train_and_measure(prepared, started, prompts=prompts, callbacks=callbacks)
        return Run(started.run.path)


def _folder(recipe: object, run_dir: str | Path | None) -> Path:
    if run_dir is not None:
        return Path(run_dir)
    return Path("runs") / (Path(recipe).stem if isinstance(recipe, str | Path) else "run")


def _earlier(folder: Path, recipe: Recipe, *, force: bool, fork: bool, resume: bool) -> Any:
    """What is in the folder, before anything is loaded: "finished", the provenance of what goes on, or None.

    Raises ConfigError[EXISTS] at once for a finished run or another recipe.
    """
    run = RunDirectory(folder)
    if resume:
        run.require_run("--resume")
    if fork:
        run.require_run("--fork")
        forks.require_same_models(run, recipe)
    if force or fork or run.state() == "absent":
        return None
    run.require_same_recipe(recipe.resolved(), resume=resume, can_fork=forks.can_fork(recipe))
    if run.state() == "finished":
        console.note("NOTHING_TO_DO", f"{run}: the run is complete")
        return "finished"
    return reading.read_json(run.provenance_path)


def _train_and_measure(
    prepared: Prepared, started: Started, *, prompts: Sequence[Prompt], callbacks: Sequence[Callback]
) -> None:
    run = started.run
    forks.start_from_source(prepared, started)
    fitted = _train(prepared, started, _members(prepared), name=roles.FAMILY, callbacks=callbacks)
    outcomes = [fitted]
    if prepared.recipe.control:
        outcomes.append(_train(prepared, started, _controls(prepared), name="controls", callbacks=callbacks))
    if isinstance(prepared.teacher, LiveTeacher | EnsembleTeacher):
        prepared.teacher.stop_if_changed(step=fitted.step)
    training_s = {name: outcome.progress.seconds for outcome in outcomes for name in outcome.weights}
    measured = None
    if prepared.evaluation_sets:
        models = {
            name: on_path(_wide(prepared, name, weights), prepared)
            for outcome in outcomes
            for name, weights in outcome.weights.items()
        }
        measured = measure(prepared, in_order(prepared, models), run=run, training_s=training_s, prompts=prompts)
    chosen = _chosen(measured, list(prepared.students))
    run.choose_student(chosen)
    summary: dict[str, io.Json] = {
        "step": fitted.step,
        "tokens": fitted.progress.n_tokens,
        "training_s": dict(training_s),
        "stopped_early": fitted.progress.stopped_early,
        "best_step": fitted.progress.best_step,
        "student": chosen,
        "save_dtype": _saved_smaller(prepared, fitted, run),
    }
    if measured is not None:
        write_report(run.report_path, report_of(run))
    run.finish(summary)


def _members(prepared: Prepared) -> list[Member]:
    """The models that train: the teacher if it does, and every student."""
    recipe = prepared.recipe
    n_steps = n_steps_of(recipe.training, prepared.loader)
    teacher = prepared.teacher_start
    members = [teacher_member(recipe, copy.deepcopy(teacher), n_steps=n_steps)] if teacher is not None else []
    students = [
        student_member(recipe, name, prepared.start(name), n_steps=n_steps, terms=prepared.terms[name])
        for name in prepared.students
    ]
    return members + students


def _controls(prepared: Prepared) -> list[Member]:
    """The same students, from the same starts on the same tokens, with plain cross-entropy."""
    students = [member for member in _members(prepared) if member.name != roles.TEACHER]
    return [replace(member, name=roles.control(member.name), terms=GROUND_TRUTH) for member in students]


def _chosen(measured: Measured | None, students: Sequence[str]) -> str:
    """The student that `RUN/student` points to: of several the one with the lowest held-out loss."""
    result = measured.transfer.sets.get(HELD_OUT) if measured is not None else None
    if result is None or len(students) == 1:
        return students[0]
    return min(students, key=lambda name: result.estimates[name]["held_out_loss"].value)


def _wide(prepared: Prepared, name: str, weights: Mapping[str, Tensor]) -> CausalLM:
    """A plain model with trained weights, in the precision of its masters."""
    return prepared.as_saved(_trained(prepared, name, weights), name)


def _trained(prepared: Prepared, name: str, weights: Mapping[str, Tensor]) -> CausalLM:
    """The same with its adapters, where it has some."""
    return save.with_weights(_template(prepared, name), weights, dtype=next(iter(weights.values())).dtype)


def _template(prepared: Prepared, name: str) -> CausalLM:
    if name == roles.TEACHER:
        return prepared.teacher_start
    return next(model for student, model in prepared.students.items() if name in (student, roles.control(student)))


def _train(
    prepared: Prepared, started: Started, members: Sequence[Member], *, name: str, callbacks: Sequence[Callback]
) -> Fitted:
    """Train models to the end in one pass over the data, and save each."""
    recipe, run = prepared.recipe, started.run
    training = recipe.training
    trainer = Trainer(
        members,
        teacher=prepared.teacher,
        microbatches=prepared.loader.step,
        compute=prepared.compute,
        n_vocabulary=prepared.n_vocabulary,
        seed=training.seed,
        name=name,
        chunk_positions=training.chunk,
        gradient_checkpointing=training.gradient_checkpointing,
    )
    models = [*(member.model for member in members), *running(prepared.teacher)] if training.compile else []
    with compiled(models):
        fitted = fit(
            trainer,
            run=run,
            run_id=started.run_id,
            plan=fit_plan(training, n_steps=trainer.n_steps),
            held_out=prepared.held_out if HELD_OUT in prepared.evaluation_sets else None,
            callbacks=callbacks,
        )
    for model_name, weights in fitted.weights.items():
        model = _wide(prepared, model_name, weights)
        save.cut_padding(model, n_vocabulary=prepared.n_vocabulary)
        save.save_model(model, prepared.tokenizer, run.model(model_name))
        if (kind := prepared.quantize_of(model_name)) is not None:
            grid.save_codes(model, run.model(f"{model_name}-codes"), kind=kind)
        _save_adapter(prepared, model_name, weights, run=run)
    return fitted


def _save_adapter(prepared: Prepared, name: str, weights: Mapping[str, Tensor], *, run: RunDirectory) -> None:
    """The adapters alone, beside the merged model, where what they belong to is a model that has a name."""
    learner = prepared.recipe.learners.get(name)
    if learner is None or learner.section.lora is None or learner.section.model is None:
        return
    if learner.section.init is not None:  # they belong to weights that nobody else has
        return
    base, revision = learner.section.model, learner.section.revision
    adapters.save_adapter(_trained(prepared, name, weights), run.model(f"{name}-adapter"), base=base, revision=revision)


def _saved_smaller(prepared: Prepared, fitted: Fitted, run: RunDirectory) -> io.Json:
    """`training.save_dtype`: a second file set of each student, with its measured difference from the masters."""
    wanted = prepared.recipe.training.save_dtype
    if wanted is None:
        return None
    saved: dict[str, io.Json] = {}
    for name in prepared.students:
        small = cast(_wide(prepared, name, fitted.weights[name]), getattr(torch, wanted))
        save.cut_padding(small, n_vocabulary=prepared.n_vocabulary)
        files = save.save_model(small, prepared.tokenizer, run.model(f"{name}-{wanted}"))
        difference: io.Json = None
        if HELD_OUT in prepared.evaluation_sets:
            wide = _wide(prepared, name, fitted.weights[name])
            difference = save.difference(wide, small, prepared.held_out()[:4], n_vocabulary=prepared.n_vocabulary)
        saved[name] = {"dtype": wanted, "bytes": files.n_bytes, "path": str(files.path), "difference": difference}
    return saved
