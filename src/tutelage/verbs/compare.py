"""The verb `compare`: techniques under equal budgets, on the same text from the same start, and who won by how much."""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group

from tutelage import console, io, roles
from tutelage.errors import ConfigError, Stopped, TutelageError
from tutelage.models import save
from tutelage.planning import contest as contests
from tutelage.planning import show as words
from tutelage.planning.contest import Arm, Contest
from tutelage.planning.facts import Facts
from tutelage.planning.of_recipe import facts_of
from tutelage.planning.pace import Pace, here, product_rate
from tutelage.planning.work import Place, techniques
from tutelage.recipe import Recipe, load_recipe
from tutelage.reports.build import build_report
from tutelage.reports.contest import Contested, contested
from tutelage.reports.plain import build_markdown, to_json
from tutelage.reports.text import printed
from tutelage.rundir import RunDirectory
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.beginnings import write_beginnings
from tutelage.verbs.contest_scores import SPENT, Measuring, entry, quiet, spent_in
from tutelage.verbs.generate import generate
from tutelage.verbs.label import label
from tutelage.verbs.train import train

_BASE, _LAYERS, _START, _RESULT = "recipe.yaml", "layers.json", "start", "comparison"
_LEFT_BY_US = (".lock", ".owner.json")  # of a call that was killed before it kept the recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` gives back; `failed` are runs that did not end, each with its reason."""

    path: Path
    found: Contested
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "path": str(self.path),
            "verdicts": self.found.json(),
            "failed": self.failed,
            **to_json(self.found.report),
        }

    def __str__(self) -> str:
        report = self.found.report
        tables = [part for table in report.tables for part in (table.to_rich(), "")]
        lines = [*(f"• {finding}" for finding in report.findings), f"report:  {self.path}  (opens offline)"]
        return "\n".join([printed(lambda width: Group(*tables)), *lines])


def compare(
    recipe: str | Path | Recipe | dict[str, Any],
    *,
    techniques: Sequence[str] = (),
    seeds: int = 3,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    tokens: int | None = None,
    hours: float | None = None,
    equal_compute: bool = True,
    allow_private_host: bool = False,
) -> Comparison:
    """Train the recipe's student by several techniques, `seeds` times each, and say which one won.

    Every run has the same text, start weights and held-out rows; what differs is what the technique changes.  By
    default all techniques that can be done.  The budget is the recipe's length, `tokens`, or as many as take `hours`
    in all.  With `equal_compute` also runs of such a length that every technique computes as much as soft labels do,
    the teacher's part included.  Finished runs are used again, an unfinished one goes on; a technique that fails
    leaves the others' results.  `run_dir` is by default runs/NAME-comparison.

    Raises ConfigError for a recipe that cannot be compared, LimitError[BUDGET] when the hours allow no step, Stopped
    after a signal.
    """
    base = load_recipe(recipe, overrides)
    contests.require_comparable(base, names=techniques, seeds=seeds)
    folder = _folder(recipe, run_dir)
    _require_same(folder, base)
    with RunDirectory(folder).lock():
        _keep(folder, base)
        return _compare(
            base, folder, names=techniques, seeds=seeds, tokens=tokens, hours=hours, equal_compute=equal_compute,
            allow_private_host=allow_private_host,
        )  # fmt: skip


def _compare(
    base: Recipe, folder: Path, *, names: Sequence[str], seeds: int, tokens: int | None, hours: float | None,
    equal_compute: bool, allow_private_host: bool,
) -> Comparison:  # fmt: skip
    facts = facts_of(base)
    pace = here(facts, rate=product_rate(device=base.training.device, threads=base.training.threads))
    contest = _contest(
        base, facts, pace=pace, folder=folder, names=names, seeds=seeds, tokens=tokens, hours=hours,
        equal_compute=equal_compute,
    )  # fmt: skip
    _announce(contest, pace, folder)
    failed: dict[str, str] = {}
    for arm in contest.arms:
        try:
            _run(arm, folder, allow_private_host=allow_private_host)
        except Stopped:
            raise
        except TutelageError as error:
            failed[arm.name] = str(error)
            console.warning("ARM_FAILED", f"{arm.name}: {error}; the others go on")
    return _finish(contest, folder, failed=failed)


def _folder(recipe: object, run_dir: str | Path | None) -> Path:
    if run_dir is not None:
        return Path(run_dir)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    return Path("runs") / f"{name}-comparison"


def _require_same(folder: Path, base: Recipe) -> None:
    """ConfigError[EXISTS] for a folder that holds the comparison of another recipe, or something else."""
    path = folder / _BASE
    if not path.is_file():
        if folder.is_dir() and any(item.name not in _LEFT_BY_US for item in folder.iterdir()):
            raise ConfigError("EXISTS", f"{folder} holds no comparison; choose another --run-dir")
    elif yaml.safe_load(path.read_text(encoding="utf-8")) != json.loads(json.dumps(base.resolved())):
        raise ConfigError("EXISTS", f"{folder} holds the comparison of another recipe; choose another --run-dir")


def _keep(folder: Path, base: Recipe) -> None:
    if not (folder / _BASE).is_file():
        io.write_text(folder / _BASE, yaml.safe_dump(base.resolved(), sort_keys=False, allow_unicode=True))


# --- what is run ---
def _contest(
    base: Recipe, facts: Facts, *, pace: Pace, folder: Path, names: Sequence[str], seeds: int, tokens: int | None,
    hours: float | None, equal_compute: bool,
) -> Contest:  # fmt: skip
    tree = contests.base_of(base, start=_start(base, folder))
    place = Place(
        cache=str((folder / "teacher-cache").absolute()),
        answers=str((folder / "answers").absolute()),
        beginnings=write_beginnings(base, folder / "texts"),
    )

    def of(n: int | None) -> Contest:
        chosen = names or sorted(techniques(), key=lambda name: (name != "control", name))
        return contests.contest_of(
            tree, facts, names=chosen, seeds=seeds, place=place, equal_compute=equal_compute, budget_tokens=n
        )

    return of(tokens) if hours is None else contests.within(hours, of, pace=pace, step=base.training.batch_tokens)


def _start(base: Recipe, folder: Path) -> dict[str, Any] | None:
    """What every run's student is made of, where the recipe measures it on the training data: measured once."""
    section = base.student
    if section is None:
        return None
    if section.width is not None:
        return {"model": str(_narrow_model(base, folder))}
    if section.layers is None or section.layers.important is None:
        return None
    return {"layers": {"listed": _layers(base, folder)}}


def _narrow_model(base: Recipe, folder: Path) -> Path:
    """The start of a student that is narrower than its teacher, as a model folder."""
    path = folder / _START
    if not path.is_dir():
        prepared = prepare(base, memory=InMemory())
        save.save_model(prepared.students[roles.STUDENT], prepared.tokenizer, path)
    return path.absolute()


def _layers(base: Recipe, folder: Path) -> list[int]:
    """The layers that every run's student keeps, chosen by importance once."""
    path = folder / _LAYERS
    if not path.is_file():
        chosen = prepare(base, memory=InMemory()).layers[roles.STUDENT]
        assert chosen is not None, "the recipe asks for it"
        io.write_json(path, {"kept": list(chosen.kept)})
    return [int(layer) for layer in io.read_json(path)["kept"]]


def _announce(contest: Contest, pace: Pace, folder: Path) -> None:
    """What will be run and how long it may take, before anything is."""
    expected = contests.seconds_of(contest, pace)
    done = [arm for arm in contest.arms if RunDirectory(folder / arm.name).state() == "finished"]
    left = sum(expected[arm.name] for arm in contest.arms if arm not in done)
    there = f", {len(done)} of them finished" if done else ""
    console.say(f"{len(contest.arms)} runs{there}; roughly {words.duration(left)} to go ({pace.where})")
    for arm in contest.arms:
        if arm.seed == 0:
            views = " and ".join(f"equal {view}" for view in arm.views)
            operations, time_s = words.amount(arm.flops.total), words.duration(expected[arm.name])
            console.say(
                f"  {arm.technique:<10}{arm.tokens:>12,} tokens  {operations:>8} operations  about {time_s}  ({views})"
            )
    for (name, view), reason in contest.refused.items():
        console.say(f"  {name:<10}not {f'at equal {view}' if view else 'possible'}: {reason}")


# --- running ---
def _run(arm: Arm, folder: Path, *, allow_private_host: bool) -> None:
    """Everything of one arm; what is there already is used."""
    run = RunDirectory(folder / arm.name)
    recipe = load_recipe(quiet(arm.recipe))
    if run.state() == "finished":
        run.require_same_recipe(recipe.resolved(), resume=True)
        return
    teacher = recipe.teacher
    if teacher is not None and teacher.cache is not None and teacher.model is not None:
        _timed("label", folder, lambda: label(recipe))
    if teacher is not None and teacher.answers is not None:
        _timed("generate", folder, lambda: generate(recipe, allow_private_host=allow_private_host))
    train(recipe, run_dir=run.path, ask=False, allow_private_host=allow_private_host)


def _timed(name: str, folder: Path, action: Callable[[], object]) -> None:
    """Adds the seconds of work that several runs share to those of earlier calls, however it ends."""
    started = time.perf_counter()
    try:
        action()
    finally:
        spent = spent_in(folder)
        io.write_json(folder / SPENT, {**spent, name: spent.get(name, 0.0) + time.perf_counter() - started})


# --- what came out ---
def _finish(contest: Contest, folder: Path, *, failed: dict[str, str]) -> Comparison:
    done = [arm for arm in contest.arms if arm.name not in failed]
    if not done:
        raise ConfigError("CONFIG", f"no run ended: {'; '.join(f'{n}: {why}' for n, why in failed.items())}")
    measuring = Measuring(contest, folder)
    entries = [entry(arm, folder, measuring) for arm in done]
    teacher, cost, facts = measuring.teacher(done)
    refused = {**contest.refused, **{(name, ""): reason for name, reason in failed.items()}}
    found = contested(
        entries,
        teacher=teacher,
        teacher_cost=cost,
        facts=facts,
        refused=refused,
        made_by=_command(contest, folder),
    )
    path = folder / f"{_RESULT}.html"
    io.write_text(path, build_report(found.report))
    io.write_text(path.with_suffix(".md"), build_markdown(found.report))
    made = Comparison(path=path, found=found, failed=failed)
    io.write_json(path.with_suffix(".json"), made.as_json())
    return made


def _command(contest: Contest, folder: Path) -> str:
    """What makes the same comparison again."""
    names = list(dict.fromkeys(arm.technique for arm in contest.arms))
    seeds = 1 + max(arm.seed for arm in contest.arms)
    tokens = next(arm.tokens for arm in contest.arms if contests.TOKENS in arm.views)
    alone = "" if contest.budget_flops is not None else " --no-equal-compute"
    return (
        f"tutelage compare {shlex.quote(str(folder / _BASE))} --run-dir {shlex.quote(str(folder))} "
        f"--techniques {','.join(names)} --seeds {seeds} --tokens {tokens}{alone}"
    )
