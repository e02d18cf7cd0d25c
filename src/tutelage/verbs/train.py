"""The verb `train`: a recipe becomes a student, its control, their measurements and a report, in one run directory."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import console, io
from tutelage.evaluation.show import Prompt
from tutelage.models import load, save
from tutelage.recipe import Recipe
from tutelage.reports.build import Report, write_report
from tutelage.reports.table import table_of, to_html
from tutelage.rundir import RunDirectory, Started, opened
from tutelage.teachers.live import LiveTeacher
from tutelage.training.fit import Fitted, fit
from tutelage.training.plan import control_of, fit_plan, n_steps_of, optimizer_settings, terms_of
from tutelage.training.prepare import Prepared, prepare
from tutelage.training.trainer import one_model
from tutelage.verbs import fork as forks
from tutelage.verbs.evaluate import BEFORE, CONTROL, STUDENT, Measured, evaluate, measure, on_path, teacher_of
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
        return dict(io.read_json(self.directory.finished_path))

    def student(self) -> nn.Module:
        """The trained student, in the dtype it was saved in, eval mode."""
        return load.load_model(str(self.directory.model(STUDENT)), dtype="auto", device="cpu")

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
            f'next:    tutelage show {self.path} "any beginning of a text"',
        ]
        return "\n".join(lines)

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
) -> Run:
    """Train as a recipe says and measure the result; an unfinished run of the same recipe goes on by itself.

    `teacher`, `student`, `tokenizer` and `data` (strings, or mappings with the columns of a JSON line) are objects
    already in memory; the recipe, then a dict, leaves them out.  `run_dir` is by default runs/NAME of the recipe file.

    Raises ConfigError for a wrong recipe or a folder that holds something else, Stopped after a signal, and whatever
    `docs/errors.md` lists for files, memory and numbers; nothing that was finished is lost.
    """
    checked, memory = given_objects(recipe, overrides, teacher=teacher, student=student, tokenizer=tokenizer, data=data)
    folder = _folder(recipe, run_dir)
    earlier = _earlier(folder, checked, force=force, fork=fork, resume=resume)
    if earlier == "finished":
        return Run(folder)
    prepared = prepare(checked, memory=memory, earlier=earlier)
    resolved = checked.resolved()
    with opened(folder, resolved, prepared.provenance, force=force, fork=fork, resume=resume) as started:
        if started.kind != "nothing_to_do":
            _train_and_measure(prepared, started, prompts=prompts)
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
    if force or fork or run.state() == "absent":
        return None
    run.require_same_recipe(recipe.resolved(), resume=resume)
    if run.state() == "finished":
        console.note("NOTHING_TO_DO", f"{run}: the run is complete")
        return "finished"
    return io.read_json(run.provenance_path)


def _train_and_measure(prepared: Prepared, started: Started, *, prompts: Sequence[Prompt]) -> None:
    run = started.run
    forks.start_from_source(prepared, started, name=STUDENT)
    student = _train_one(prepared, started, name=STUDENT)
    fitted = {STUDENT: student}
    if prepared.recipe.control:
        fitted[CONTROL] = _train_one(prepared, started, name=CONTROL)
    if isinstance(prepared.teacher, LiveTeacher):
        prepared.teacher.stop_if_changed(step=student.step)
    run.choose_student(STUDENT)
    training_s = {name: outcome.progress.seconds for name, outcome in fitted.items()}
    measured = None
    if prepared.evaluation_sets:
        models = teacher_of(prepared)
        models[BEFORE] = on_path(prepared.start(), prepared)
        for name, outcome in fitted.items():
            weights = outcome.weights[name]
            wide = next(iter(weights.values())).dtype
            models[name] = on_path(save.with_weights(prepared.student, weights, dtype=wide), prepared)
        measured = measure(prepared, models, run=run, training_s=training_s, prompts=prompts)
    summary: dict[str, io.Json] = {
        "step": student.step,
        "tokens": student.progress.n_tokens,
        "training_s": dict(training_s),
        "stopped_early": student.progress.stopped_early,
        "best_step": student.progress.best_step,
        "save_dtype": _saved_smaller(prepared, student, run),
    }
    if measured is not None:
        write_report(run.report_path, _report(run, measured))
    run.finish(summary)


def _report(run: RunDirectory, measured: Measured) -> Report:
    return Report(
        run=str(run),
        transfer=measured.transfer,
        shown=measured.shown,
        metrics=run.metrics(),
        recipe=run.recipe_path.read_text(encoding="utf-8"),
        provenance=io.read_json(run.provenance_path),
    )


def _train_one(prepared: Prepared, started: Started, *, name: str) -> Fitted:
    """Train the student or the control from the same start to the end, and save it."""
    recipe, run = prepared.recipe, started.run
    training = recipe.training
    n_steps = n_steps_of(training, prepared.loader)
    trainer = one_model(
        prepared.start(),
        terms=control_of(recipe) if name == CONTROL else terms_of(recipe.loss),
        teacher=prepared.teacher,
        microbatches=prepared.loader.step,
        compute=prepared.compute,
        optimizer=optimizer_settings(training, n_steps=n_steps),
        n_vocabulary=prepared.n_vocabulary,
        seed=training.seed,
        name=name,
        chunk_positions=training.chunk,
        gradient_checkpointing=training.gradient_checkpointing,
    )
    fitted = fit(
        trainer,
        run=run,
        run_id=started.run_id,
        plan=fit_plan(training, n_steps=n_steps),
        held_out=prepared.held_out if "held_out" in prepared.evaluation_sets else None,
    )
    weights = fitted.weights[name]
    wide = next(iter(weights.values())).dtype
    model = save.with_weights(prepared.student, weights, dtype=wide)
    save.cut_padding(model, n_vocabulary=prepared.n_vocabulary)
    save.save_model(model, prepared.tokenizer, run.model(name))
    return fitted


def _saved_smaller(prepared: Prepared, fitted: Fitted, run: RunDirectory) -> io.Json:
    """`training.save_dtype`: a second file set, with its measured difference from the master weights."""
    wanted = prepared.recipe.training.save_dtype
    if wanted is None:
        return None
    weights = fitted.weights[STUDENT]
    wide = save.with_weights(prepared.student, weights, dtype=next(iter(weights.values())).dtype)
    small = save.with_weights(prepared.student, weights, dtype=getattr(torch, wanted))
    save.cut_padding(small, n_vocabulary=prepared.n_vocabulary)
    saved = save.save_model(small, prepared.tokenizer, run.model(f"{STUDENT}-{wanted}"))
    difference: io.Json = None
    if "held_out" in prepared.evaluation_sets:
        difference = save.difference(wide, small, prepared.held_out()[:4], n_vocabulary=prepared.n_vocabulary)
    return {"dtype": wanted, "bytes": saved.n_bytes, "path": str(saved.path), "difference": difference}
