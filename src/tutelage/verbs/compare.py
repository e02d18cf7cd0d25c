"""The verb `compare`: techniques under equal budgets, on the same text from the same start, and who won by how much."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group

from tutelage import console, io
from tutelage.errors import ConfigError
from tutelage.planning import contest as contests
from tutelage.planning.budget import budget_of
from tutelage.planning.sweep import ALONE
from tutelage.recipe import Recipe, load_recipe
from tutelage.reports.build import build_report
from tutelage.reports.contest import Contested, contested
from tutelage.reports.plain import build_markdown, to_json
from tutelage.reports.text import printed
from tutelage.rundir import RunDirectory
from tutelage.verbs.contest_runs import Asked, Plan, announce, command, grounds_of, measured, plans_of, run_all

BASE, RESULT = "recipe.yaml", "comparison"
_LEFT_BY_US = (".lock", ".owner.json")  # of a call that was killed before it kept the recipe
_BEFORE_RUNS = ("layers.json", "start", "texts")  # what follows from the recipe, before anything is trained


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
    usd: float | None = None,
    usd_per_hour: float | None = None,
    equal_compute: bool = True,
    allow_private_host: bool = False,
) -> Comparison:
    """Train the recipe's student by several techniques, `seeds` times each, and say which one won.

    Every run has the same text, start weights and held-out rows; what differs is what the technique changes.  By
    default all techniques that can be done.  The budget is the recipe's length, `tokens`, or as many as take `hours`
    in all, or `usd` where an hour of the machine costs `usd_per_hour`, with what an endpoint may spend.  With
    `equal_compute` also runs of such a length that every technique computes as much as soft labels do, the teacher's
    part included.  Finished runs are used again, an unfinished one goes on; a technique that fails leaves the others'
    results.  `run_dir` is by default runs/NAME-comparison.

    Raises ConfigError for a recipe that cannot be compared, LimitError[BUDGET] when the budget allows no step, Stopped
    after a signal.
    """
    base = load_recipe(recipe, overrides)
    contests.require_comparable(base, names=techniques, seeds=seeds)
    budget = budget_of(tokens=tokens, hours=hours, usd=usd, usd_per_hour=usd_per_hour)
    asked = Asked(names=techniques, seeds=seeds, equal_compute=equal_compute, tokens=tokens, budget=budget)
    folder = folder_of(recipe, run_dir)
    require_same(folder, base)
    with RunDirectory(folder).lock(), console.each_once():
        keep(folder, base)
        plans = plans_of(grounds_of([(ALONE, base)], folder), asked)
        announce(plans)
        run_all(plans, allow_private_host=allow_private_host)
        return _finish(plans[0], folder)


def folder_of(recipe: object, run_dir: str | Path | None) -> Path:
    """Where a comparison goes: the folder that is named, or runs/NAME-comparison."""
    if run_dir is not None:
        return Path(run_dir)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    return Path("runs") / f"{name}-comparison"


def require_same(folder: Path, base: Recipe) -> None:
    """ConfigError[EXISTS] for a folder that holds the comparison of another recipe, or something else."""
    path = folder / BASE
    if not path.is_file():
        if folder.is_dir() and any(item.name not in _LEFT_BY_US for item in folder.iterdir()):
            raise ConfigError("EXISTS", f"{folder} holds no comparison; choose another --run-dir")
    elif not _is_of(folder, base) and not _has_no_runs(folder):
        raise ConfigError("EXISTS", f"{folder} holds the comparison of another recipe; choose another --run-dir")


def keep(folder: Path, base: Recipe) -> None:
    """The recipe of all runs, in the folder; what was made for another one, which has not run, goes."""
    if (folder / BASE).is_file() and not _is_of(folder, base):
        for name in _BEFORE_RUNS:
            io.remove_tree(folder / name)
        io.remove_file(folder / BASE)
    if not (folder / BASE).is_file():
        io.write_text(folder / BASE, yaml.safe_dump(base.resolved(), sort_keys=False, allow_unicode=True))


def _is_of(folder: Path, base: Recipe) -> bool:
    stored = yaml.safe_load((folder / BASE).read_text(encoding="utf-8"))
    return bool(stored == json.loads(json.dumps(base.resolved())))


def _has_no_runs(folder: Path) -> bool:
    return all(item.name in (*_LEFT_BY_US, *_BEFORE_RUNS, BASE) for item in folder.iterdir())


def _finish(plan: Plan, folder: Path) -> Comparison:
    one = measured(plan)
    found = contested(
        one.entries, teacher=one.teacher, teacher_cost=one.teacher_cost, facts=one.facts, refused=one.refused,
        made_by=command(folder, [plan], base=BASE),
    )  # fmt: skip
    path = folder / f"{RESULT}.html"
    io.write_text(path, build_report(found.report))
    io.write_text(path.with_suffix(".md"), build_markdown(found.report))
    made = Comparison(path=path, found=found, failed=plan.failed)
    io.write_json(path.with_suffix(".json"), made.as_json())
    return made
