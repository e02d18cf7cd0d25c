"""A run measured: its models on held-out text, and what each of them says next.

`measure` is used at the end of training; the verb `evaluate` loads the models from the run's folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from torch import Tensor, nn

from tutelage import console, io, reading, roles
from tutelage.errors import ConfigError, IntegrityError
from tutelage.evaluation import explorer, facts, harness, missing, records, transfer
from tutelage.evaluation import tasks as task_results
from tutelage.evaluation.score import Scored
from tutelage.evaluation.show import SHOWN, Prompt, Shown, render, show_models
from tutelage.evaluation.speed import forward_rates
from tutelage.evaluation.tasks import TaskResult
from tutelage.evaluation.transfer import Transfer
from tutelage.models import load
from tutelage.models.cast import cast
from tutelage.recipe import load_recipe
from tutelage.reports import further as further_results
from tutelage.reports import pareto
from tutelage.reports.build import write_report
from tutelage.reports.report import report_of
from tutelage.reports.table import table_of, to_rich
from tutelage.reports.text import printed
from tutelage.rundir import RunDirectory, what_is_in
from tutelage.teachers.cached import CachedTeacher
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training.prepare import InMemory, Prepared, prepare
from tutelage.types import Batch
from tutelage.verbs import fork as forks
from tutelage.verbs import further
from tutelage.verbs.harness import ask
from tutelage.verbs.tasks import measure_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What `evaluate` gives back: the transfer, the next-token view, and where the numbers lie."""

    path: Path
    transfer: Transfer
    shown: Shown
    tasks: TaskResult | None = None
    further: further_results.Further = field(default_factory=further_results.Further)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        answered = {"tasks": self.tasks.json()} if self.tasks is not None else {}
        beside = self.further.json(self.transfer)
        return {"path": str(self.path), **self.transfer.json(), **answered, **beside, "next_tokens": self.shown.json()}

    def __str__(self) -> str:
        return printed(self._rendered)

    def _rendered(self, width: int) -> Group:
        sizes = pareto.to_rich(self.transfer)
        beside = further_results.tables(self.further, transfer=self.transfer, tasks=self.tasks)
        tables = [*([sizes] if sizes is not None else []), *(table.to_rich() for table in beside)]
        middle = [part for table in tables for part in ("", table)] + [""]
        return Group(to_rich(table_of(self.transfer), width=width), *middle, render(self.shown, width=width))


def measure(
    prepared: Prepared,
    models: dict[str, Scored],
    *,
    run: RunDirectory,
    training_s: dict[str, float],
    prompts: Sequence[Prompt] = (),
) -> Measured:
    """Score `models` (on the compute path, eval mode) on the run's evaluation sets, and write evaluation/."""
    teacher = roles.TEACHER if roles.TEACHER in models else None
    _require_rows(prepared)
    sets = {name: make() for name, make in prepared.evaluation_sets.items()}
    n_tokens = sum(item.batch.n_trained for items in sets.values() for item in items)
    tokens = facts.token_facts(
        prepared.tokenizer,
        prepared.loader.store,
        training_rows=prepared.loader.rows,
        n_vocabulary=prepared.n_vocabulary,
    )
    batches = {name: [(item.batch, item.row_N) for item in items] for name, items in sets.items()}
    with console.Progress("measuring on held-out text", total=n_tokens) as bar:
        scores = transfer.evaluate_models(
            models,
            batches,
            teacher=teacher,
            n_vocabulary=prepared.n_vocabulary,
            progress=bar.advance,
            tokens=tokens,
        )
    first = next(iter(sets.values()))[0].batch
    present = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    rates = forward_rates(present, first, n_vocabulary=prepared.n_vocabulary)
    costs = {
        name: transfer.cost_of(model, rate_tok_per_s=rates.get(name), training_s=training_s.get(name))
        for name, model in models.items()
    }
    of_rows = {name: facts.set_facts(*prepared.measured_rows[name]) for name in sets}
    result = transfer.transfer_of(scores, teacher, costs=costs, facts=of_rows)
    of_rows = _with_excerpts(of_rows, result, prepared)
    result = transfer.with_texts(result, of_rows)
    io.make_directory(run.evaluation)
    # First: an unscored sequence must not cost the others.
    records.write(run.evaluation, scores, transfer=result, facts=of_rows)
    transfer.check_unscored(result)
    _explore(prepared, models, batches, scores, folder=run.evaluation)
    answered = measure_tasks(prepared, models, folder=run.evaluation)
    beside = further.measure(prepared, models, folder=run.evaluation, transfer=result)
    shown = show_models(
        present,
        prepared.tokenizer,
        prompts=[*prompts, *(Prompt(text=text) for text in prepared.recipe.evaluation.prompts)],
        teacher=teacher if teacher in present else None,
        n_vocabulary=prepared.n_vocabulary,
    )
    io.write_json(run.evaluation / SHOWN, shown.json())
    return Measured(
        path=run.evaluation / records.TRANSFER, transfer=result, shown=shown, tasks=answered, further=beside
    )


def _require_rows(prepared: Prepared) -> None:
    if not prepared.evaluation_sets:
        raise IntegrityError("NO_SCORED_TOKENS", "no held-out rows to measure on; set data.held_out in the recipe")


def _with_excerpts(
    of_rows: Mapping[str, facts.SetFacts], result: Transfer, prepared: Prepared
) -> dict[str, facts.SetFacts]:
    """The texts of the examples that the result names, read from the store."""
    found = {}
    for name, known in of_rows.items():
        store, rows = prepared.measured_rows[name]
        places = result.sets[name].places()
        found[name] = facts.with_excerpts(known, places, store=store, rows=rows, tokenizer=prepared.tokenizer)
    return found


def _explore(
    prepared: Prepared,
    models: Mapping[str, Scored],
    batches: Mapping[str, list[tuple[Batch, Tensor]]],
    scores: transfer.Scores,
    *,
    folder: Path,
) -> None:
    """Keep what the models expected in a few held-out texts; nothing of an earlier measurement stays."""
    name = transfer.HELD_OUT if transfer.HELD_OUT in scores else next(iter(scores))
    found = explorer.explore(
        models,
        batches[name],
        scores[name],
        tokenizer=prepared.tokenizer,
        n_vocabulary=prepared.n_vocabulary,
        set_name=name,
    )
    if found is not None:
        explorer.write(folder, found)
    else:
        io.remove_file(folder / explorer.EXPLORER)


def on_path(model: nn.Module, prepared: Prepared) -> nn.Module:
    """The model on the run's compute path, frozen, in eval mode."""
    compute = prepared.compute
    placed: nn.Module = cast(model, compute.weight_dtype, device=compute.device)
    return placed.eval().requires_grad_(False)


def teacher_of(prepared: Prepared) -> dict[str, Scored]:
    """The teacher by its name in the table: the live model or models, or what its cache holds of the held-out rows."""
    teacher = prepared.teacher
    model: Scored | None = teacher.model if isinstance(teacher, LiveTeacher) else None
    if isinstance(teacher, EnsembleTeacher):
        model = teacher
    elif isinstance(teacher, CachedTeacher):
        model = teacher.stored
    return {} if model is None else {roles.TEACHER: model}


def saved_models(run: RunDirectory, prepared: Prepared) -> dict[str, Scored]:
    """Teacher, then each student: before, after, its control (as far as there are), in the table's order."""

    def saved(name: str) -> nn.Module | None:
        if not run.model(name).is_dir():
            return None
        return on_path(load.load_model(str(run.model(name)), dtype="auto", device="cpu"), prepared)

    names = [roles.TEACHER, *prepared.students, *map(roles.control, prepared.students)]
    return in_order(prepared, {name: model for name in names if (model := saved(name)) is not None})


def in_order(prepared: Prepared, trained: Mapping[str, nn.Module]) -> dict[str, Scored]:
    """The models of the table; `trained` came out of the run.  Of a family what they were before is not shown."""
    models = teacher_of(prepared)
    if roles.TEACHER in trained:
        models[roles.TEACHER] = trained[roles.TEACHER]
    for name in prepared.students:
        if len(prepared.students) == 1:
            models[roles.before(name)] = on_path(prepared.as_saved(prepared.start(name), name), prepared)
        models |= {each: trained[each] for each in (name, roles.control(name)) if each in trained}
    return models


def evaluate(
    run_dir: str | Path,
    *,
    force: bool = False,
    tasks: Sequence[str] = (),
    task_files: str | Path | None = None,
    task_limit: int | None = None,
) -> Measured:
    """Measure a finished run again, or give back what was measured; `force` measures again in any case.

    `tasks` of the lm-evaluation-harness are asked besides (needs tutelage[tasks]), those of `task_files` too; of each
    the first `task_limit` questions.  Raises ConfigError when there is no finished run, or when it was trained from
    objects in memory.
    """
    run = RunDirectory(run_dir)
    require_finished(run, "evaluate")
    stored = _stored(run)
    if stored is not None and not force and not tasks:
        return stored
    recipe = load_recipe(run.recipe_path)
    provenance = reading.read_json(run.provenance_path)
    prepared = prepare(recipe, memory=InMemory(), earlier=provenance)
    forks.start_from_kept(prepared, run)
    if stored is None or force:
        _require_rows(prepared)  # before hours of tasks
    if tasks:
        scored = saved_models(run, prepared)
        models = further.present(scored)
        place = Path(task_files) if task_files is not None else None
        answers = ask(models, prepared.tokenizer, tasks=tasks, task_files=place, limit=task_limit)
        with run.lock():
            io.make_directory(run.evaluation)
            harness.write(run.evaluation, answers)
            if stored is not None and not force:
                missing.write(run.evaluation, further.missing_of(prepared, scored, transfer=stored.transfer))
                stored = _stored(run)
            if stored is not None and not force:
                write_report(run.report_path, report_of(run))
                return stored
    summary = reading.read_json(run.finished_path)
    prompts = [Prompt(**view["prompt"]) for view in _shown_json(run).get("prompts", [])]
    extra = [prompt for prompt in prompts if prompt.text not in recipe.evaluation.prompts]
    with run.lock():
        measured = measure(
            prepared,
            saved_models(run, prepared),
            run=run,
            training_s=summary.get("training_s", {}),
            prompts=extra,
        )
        write_report(run.report_path, report_of(run))  # the page must not tell the numbers of before
    return measured


def require_finished(run: RunDirectory, verb: str) -> None:
    """ConfigError when the folder holds no finished run."""
    state = run.state()
    if state == "unfinished":
        raise ConfigError(
            "CONFIG", f"{run} holds an unfinished run; finish it first with the same `tutelage train` command"
        )
    if state == "absent" and (found := what_is_in(run.path)):
        raise ConfigError("CONFIG", f"{verb}: {run} {found}")
    if state == "absent" and run.path.is_file():
        raise ConfigError("CONFIG", f"{verb}: {run} is a file, expected the folder of a run")
    if state == "absent":
        raise ConfigError(
            "CONFIG", f"{verb}: {run} holds no run; make one first: tutelage train RECIPE --run-dir {run}"
        )


def _stored(run: RunDirectory) -> Measured | None:
    if not (run.evaluation / records.TRANSFER).exists() or not (run.evaluation / SHOWN).exists():
        return None
    return Measured(
        path=run.evaluation / records.TRANSFER,
        transfer=records.read(run.evaluation),
        shown=Shown.of_json(_shown_json(run)),
        tasks=task_results.read(run.evaluation),
        further=further_results.read(run.evaluation),
    )


def _shown_json(run: RunDirectory) -> dict[str, Any]:
    path = run.evaluation / SHOWN
    return dict(reading.read_json(path)) if path.exists() else {}
