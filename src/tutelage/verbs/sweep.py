"""`compare` over several settings of a recipe: the same techniques under the same rules, and one front of all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group

from tutelage import console, io
from tutelage.errors import ConfigError
from tutelage.planning import contest as contests
from tutelage.planning import sweep as sweeps
from tutelage.planning.budget import budget_of
from tutelage.planning.sweep import Setting
from tutelage.recipe import Recipe, load_recipe
from tutelage.reports.build import build_report
from tutelage.reports.plain import build_markdown, to_json
from tutelage.reports.sweep import Family, family
from tutelage.reports.text import printed
from tutelage.rundir import RunDirectory
from tutelage.verbs.compare import BASE, folder_of, keep, require_same
from tutelage.verbs.contest_runs import Asked, Plan, announce, command, grounds_of, measured, plans_of, run_all

_RESULT = "sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What `sweep` gives back; `failed` are runs that did not end, by setting and run, each with its reason."""

    path: Path
    family: Family
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "path": str(self.path),
            "rows": [row.json() for row in self.family.rows],
            "verdicts": {setting: found.json() for setting, found in self.family.settings.items()},
            "failed": self.failed,
            **to_json(self.family.report),
        }

    def __str__(self) -> str:
        report = self.family.report
        tables = [part for table in report.tables for part in (table.to_rich(), "")]
        lines = [*(f"• {finding}" for finding in report.findings), f"report:  {self.path}  (opens offline)"]
        return "\n".join([printed(lambda width: Group(*tables)), *lines])


def sweep(
    recipe: str | Path | Recipe | dict[str, Any],
    *,
    sets: Sequence[str],
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
) -> Swept:
    """`compare` at every combination of `sets` (`FIELD=VALUE,VALUE,…`), and which student is worth its size.

    Every setting has a control of its own, all of them the same number of tokens, text, held-out rows, teacher cache
    and answers.  Finished runs are used again, an unfinished one goes on; a value more adds to what is there.

    Raises ConfigError for a field that cannot be swept and for values that make no recipe, and what `compare` raises.
    """
    base = load_recipe(recipe, overrides)
    recipes = _recipes(recipe, overrides, sets=sets)
    for _, one in recipes:
        contests.require_comparable(one, names=techniques, seeds=seeds)
    budget = budget_of(tokens=tokens, hours=hours, usd=usd, usd_per_hour=usd_per_hour)
    asked = Asked(names=techniques, seeds=seeds, equal_compute=equal_compute, tokens=tokens, budget=budget)
    folder = folder_of(recipe, run_dir)
    require_same(folder, base)
    with RunDirectory(folder).lock(), console.each_once():
        keep(folder, base)
        plans = plans_of(grounds_of(recipes, folder), asked)
        announce(plans)
        run_all(plans, allow_private_host=allow_private_host)
        return _finish(plans, folder, sets=sets)


def _recipes(
    recipe: str | Path | Recipe | dict[str, Any], overrides: Sequence[str], *, sets: Sequence[str]
) -> list[tuple[Setting, Recipe]]:
    """Each setting's recipe; ConfigError with the setting's name for one that is none, or the same as another."""
    found: list[tuple[Setting, Recipe]] = []
    for setting in sweeps.settings_of(sets, overrides=overrides):
        try:
            made = load_recipe(recipe, [*overrides, *setting.overrides])
        except ConfigError as error:
            raise ConfigError(error.code, f"--set {' '.join(setting.overrides)}: {error.message}") from error
        for other, its_recipe in found:
            if made.resolved() == its_recipe.resolved():
                raise ConfigError(
                    "CONFIG", f"--set: {other.label} and {setting.label} are one recipe; give one of them"
                )
        found.append((setting, made))
    return found


def _finish(plans: Sequence[Plan], folder: Path, *, sets: Sequence[str]) -> Swept:
    """A setting of which no run ended is left out; ConfigError where none is left."""
    failed = {plan.ground.name_of(name): reason for plan in plans for name, reason in plan.failed.items()}
    ended = [plan for plan in plans if len(plan.failed) < len(plan.contest.arms)]
    if not ended:
        raise ConfigError("CONFIG", f"no run ended: {'; '.join(f'{n}: {why}' for n, why in failed.items())}")
    found = family(
        {plan.ground.setting.label: measured(plan) for plan in ended},
        made_by=command(folder, plans, base=BASE, sets=sets),
        missing=[f"No run ended: {plan.ground.setting.label}." for plan in plans if plan not in ended],
    )
    path = folder / f"{_RESULT}.html"
    io.write_text(path, build_report(found.report))
    io.write_text(path.with_suffix(".md"), build_markdown(found.report))
    made = Swept(path=path, family=found, failed=failed)
    io.write_json(path.with_suffix(".json"), made.as_json())
    return made
