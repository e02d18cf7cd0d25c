"""The runs of a comparison: where they lie, which ones there are, how each is made, and what came out together."""

import math
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tutelage import console, io, reading, roles
from tutelage.errors import ConfigError, Stopped, TutelageError
from tutelage.models import save
from tutelage.models.origin import write_origin
from tutelage.planning import contest as contests
from tutelage.planning import kept
from tutelage.planning import show as words
from tutelage.planning.budget import Budget
from tutelage.planning.contest import Arm, Contest
from tutelage.planning.facts import Facts
from tutelage.planning.of_recipe import facts_of
from tutelage.planning.pace import Pace, here, products_here
from tutelage.planning.sweep import ALONE, Setting
from tutelage.planning.work import Beginnings, Place, techniques
from tutelage.recipe import Recipe, load_recipe
from tutelage.reports.sweep import Measured
from tutelage.rundir import RunDirectory
from tutelage.training import checkpoint
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.beginnings import write_beginnings
from tutelage.verbs.contest_scores import SPENT, Measuring, entry, quiet, spent_in
from tutelage.verbs.generate import generate
from tutelage.verbs.label import label
from tutelage.verbs.train import train

_TELLING_S = 60.0  # below, loading and measuring take longer, and they are not counted
_TELLING_BYTES = 1e9
_LAYERS, _START = "layers.json", "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One setting's recipe and where its runs go; teacher cache, answers and texts lie in `shared`, for all of them."""

    recipe: Recipe
    facts: Facts
    pace: Pace
    shared: Path
    beginnings: tuple[Beginnings, ...]
    setting: Setting = ALONE

    @property
    def folder(self) -> Path:
        """Of the setting's runs."""
        return self.shared / self.setting.folder

    def run(self, arm: Arm) -> RunDirectory:
        """Where an arm is trained."""
        return RunDirectory(self.folder / arm.name)

    def name_of(self, arm: str) -> str:
        """What messages call an arm."""
        return f"{self.setting.label} {arm}".lstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A setting's contest on its ground; `failed` are the arms that did not end, each with its reason."""

    ground: Ground
    contest: Contest
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is compared, and for how long: `tokens` a run (None: as the recipe says), or what the budget allows."""

    names: Sequence[str]
    seeds: int
    equal_compute: bool
    tokens: int | None = None
    budget: Budget | None = None


# --- what is run ---
def grounds_of(recipes: Sequence[tuple[Setting, Recipe]], shared: Path) -> list[Ground]:
    """Where each setting is run; they share the text that a teacher goes on from."""
    first = recipes[0][1]
    beginnings = write_beginnings(first, shared / "texts")
    training = first.training
    products = products_here(precision=training.precision, device=training.device, threads=training.threads)
    found = []
    for setting, recipe in recipes:
        facts = facts_of(recipe)
        found.append(
            Ground(recipe=recipe, facts=facts, pace=here(facts, products), shared=shared, beginnings=beginnings,
                   setting=setting)
        )  # fmt: skip
    return found


def plans_of(grounds: Sequence[Ground], asked: Asked) -> list[Plan]:
    """Every setting's contest, all of them of one length in tokens."""
    trees = [_base_tree(ground) for ground in grounds]

    def of(tokens: int | None) -> list[Contest]:
        return [_contest(g, asked, tree=tree, tokens=tokens) for g, tree in zip(grounds, trees, strict=True)]

    if asked.budget is None:
        made: Sequence[Contest] = of(asked.tokens)
    else:
        step = grounds[0].recipe.training.batch_tokens
        made = contests.within(asked.budget, of, paces=[ground.pace for ground in grounds], step=step)
    return [Plan(ground=ground, contest=contest) for ground, contest in zip(grounds, made, strict=True)]


def _contest(ground: Ground, asked: Asked, *, tree: dict[str, Any], tokens: int | None) -> Contest:
    """The arms of one setting; `tree` is what they have in common, `tokens` None the recipe's own length."""
    place = Place(
        cache=str((ground.shared / "teacher-cache").absolute()),
        answers=str((ground.shared / "answers").absolute()),
        beginnings=ground.beginnings,
    )
    chosen = asked.names or sorted(techniques(), key=lambda name: (name != "control", name))
    return contests.contest_of(
        tree, ground.facts, names=chosen, seeds=asked.seeds, place=place, equal_compute=asked.equal_compute,
        budget_tokens=tokens,
    )  # fmt: skip


def _base_tree(ground: Ground) -> dict[str, Any]:
    """What all arms of a ground have in common; what is measured on the training data is measured once, for all."""
    return contests.base_of(ground.recipe, start=_start(ground.recipe, ground.folder))


def _start(base: Recipe, folder: Path) -> dict[str, Any] | None:
    """What every run's student is made of, where the recipe measures it on the training data."""
    section = base.student
    if section is None:
        return None
    if section.width is not None:
        return {"model": str(_narrow_model(base, folder))}
    if section.layers is None or section.layers.important is None:
        return None
    return {"layers": {"listed": _layers(base, folder)}}


def _narrow_model(base: Recipe, folder: Path) -> Path:
    """The start of a student that is narrower than its teacher, as a model folder.

    Random weights and adapters are each run's own: they come on top of it, by its seed.  What of the teacher it has is
    said beside it, so that its layers are compared with those which they came from.
    """
    path = folder / _START
    if not path.is_dir():
        assert base.student is not None
        bare = base.student.model_copy(update={"init": None, "lora": None})
        prepared = prepare(base.model_copy(update={"student": bare}), memory=InMemory())
        io.make_directory(folder)
        origin = partial(write_origin, prepared.origins[roles.STUDENT])
        save.save_model(prepared.students[roles.STUDENT], prepared.tokenizer, path, beside=origin)
    return path.absolute()


def _layers(base: Recipe, folder: Path) -> list[int]:
    """The layers that every run's student keeps, chosen by importance."""
    path = folder / _LAYERS
    if not path.is_file():
        chosen = prepare(base, memory=InMemory()).layers[roles.STUDENT]
        assert chosen is not None, "the recipe asks for it"
        io.make_directory(folder)
        io.write_json(path, {"kept": list(chosen.kept)})
    return [int(layer) for layer in reading.read_json(path)["kept"]]


def announce(plans: Sequence[Plan]) -> None:
    """What will be run and how long it may take, before anything is."""
    expected = contests.seconds_of_all([(plan.contest, plan.ground.pace) for plan in plans])
    n_runs = sum(len(plan.contest.arms) for plan in plans)
    done = {
        (i, arm.name)
        for i, plan in enumerate(plans)
        for arm in plan.contest.arms
        if plan.ground.run(arm).state() == "finished"
    }
    left = sum(s for i, seconds in enumerate(expected) for name, s in seconds.items() if (i, name) not in done)
    there = f", {len(done)} of them finished" if done else ""
    time_left = f"roughly {words.duration(left)}" if left >= _TELLING_S else "under a minute of computing"
    console.say(f"{n_runs} runs{there}; {time_left} to go ({plans[0].ground.pace.where})")
    if (n_bytes := _bytes_to_come(plans)) >= _TELLING_BYTES:
        console.say(f"they need {words.amount(n_bytes, 'B')} of free disk, for models and checkpoints")
    for plan, seconds in zip(plans, expected, strict=True):
        _announce_one(plan, seconds)


def _announce_one(plan: Plan, expected: dict[str, float]) -> None:
    if plan.ground.setting.label:
        console.say(f"  with {plan.ground.setting.label}:")
    for arm in plan.contest.arms:
        if arm.seed == 0:
            views = " and ".join(f"equal {view}" for view in arm.views)
            operations, time_s = words.amount(arm.flops.total), words.duration(expected[arm.name])
            console.say(
                f"  {arm.technique:<10}{arm.tokens:>12,} tokens  {operations:>8} operations  about {time_s}  ({views})"
            )
    for (name, view), reason in plan.contest.refused.items():
        console.say(f"  {name:<10}not {f'at equal {view}' if view else 'possible'}: {reason}")


def _bytes_to_come(plans: Sequence[Plan]) -> float:
    """What must be free for the runs that are not finished, teacher cache and answers aside."""
    sizes = []
    for plan, arm in _in_order(plans):
        run, facts, training = plan.ground.run(arm), plan.ground.facts, plan.ground.recipe.training
        if run.state() != "finished":
            there = reading.size_of_folder(run.checkpoints) + reading.size_of_folder(run.models)
            older = kept.older_bytes(facts, arm.work, training)
            sizes.append((kept.kept_bytes(facts, arm.work, training), older, float(there)))
    return kept.room(sizes)


# --- running ---
def run_all(plans: Sequence[Plan], *, allow_private_host: bool) -> None:
    """Every arm, first all of one seed; one that fails leaves the others and is put into its plan's `failed`.

    ResourceError[DISK_FULL], before anything is run, where the disk has no room for what the runs will leave.
    """
    io.require_free_space(plans[0].ground.shared, math.ceil(_bytes_to_come(plans)))
    for plan, arm in _in_order(plans):
        try:
            _run(arm, plan.ground, allow_private_host=allow_private_host)
        except Stopped:
            raise
        except TutelageError as error:
            plan.failed[arm.name] = str(error)
            console.warning("ARM_FAILED", f"{plan.ground.name_of(arm.name)}: {error}; the others go on")


def _in_order(plans: Sequence[Plan]) -> Iterable[tuple[Plan, Arm]]:
    return sorted(((plan, arm) for plan in plans for arm in plan.contest.arms), key=lambda pair: pair[1].seed)


def _run(arm: Arm, ground: Ground, *, allow_private_host: bool) -> None:
    """Everything of one arm; what is there already is used."""
    run = ground.run(arm)
    recipe = load_recipe(quiet(arm.recipe))
    if run.state() == "finished":
        run.require_same_recipe(recipe.resolved(), resume=True)
        _thin(run)  # a call that was killed may not have come to it
        return
    teacher = recipe.teacher
    if teacher is not None and teacher.cache is not None and teacher.model is not None:
        _timed("label", ground.shared, lambda: label(recipe).written.n_positions)
    if teacher is not None and teacher.answers is not None:
        _timed("generate", ground.shared, lambda: generate(recipe, allow_private_host=allow_private_host))
    train(recipe, run_dir=run.path, ask=False, allow_private_host=allow_private_host)
    _thin(run)


def _thin(run: RunDirectory) -> None:
    """Leaves the newest checkpoint of a finished run: older ones served its training, and many runs fill disks."""
    for folder in sorted(path for path in run.checkpoints.glob("*") if path.is_dir()):
        checkpoint.rotate(folder, run_id=run.run_id, keep=1)


def _timed(name: str, folder: Path, action: Callable[[], object]) -> None:
    """Adds the seconds of work that several runs share to those of earlier calls, however it ends.

    Where `action` gives a number, that of what it did, it is added up too.
    """
    started, done = time.perf_counter(), None
    try:
        done = action()
    finally:
        spent = spent_in(folder)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started
        if isinstance(done, int):
            spent[f"{name} n"] = spent.get(f"{name} n", 0.0) + done
        io.write_json(folder / SPENT, spent)


# --- what came out ---
def command(folder: Path, plans: Sequence[Plan], *, base: str, sets: Sequence[str] = ()) -> str:
    """What makes the same comparison again."""
    arms = [arm for plan in plans for arm in plan.contest.arms]
    names = list(dict.fromkeys(arm.technique for arm in arms))
    seeds = 1 + max(arm.seed for arm in arms)
    tokens = next(arm.tokens for arm in arms if contests.TOKENS in arm.views)
    alone = "" if plans[0].contest.budget_flops is not None else " --no-equal-compute"
    swept = "".join(f" --set {shlex.quote(one)}" for one in sets)
    return (
        f"tutelage compare {shlex.quote(str(folder / base))} --run-dir {shlex.quote(str(folder))}{swept} "
        f"--techniques {','.join(names)} --seeds {seeds} --tokens {tokens}{alone}"
    )


def measured(plan: Plan) -> Measured:
    """What one setting's finished runs scored; ConfigError where no run of it ended."""
    contest, ground, failed = plan.contest, plan.ground, plan.failed
    done = [arm for arm in contest.arms if arm.name not in failed]
    if not done:
        raise ConfigError("CONFIG", f"no run ended: {'; '.join(f'{n}: {why}' for n, why in failed.items())}")
    measuring = Measuring(contest, ground.folder)
    entries = [entry(arm, ground.folder, measuring, shared=ground.shared) for arm in done]
    teacher, cost, facts = measuring.teacher(done)
    refused = {**contest.refused, **{(name, ""): reason for name, reason in failed.items()}}
    return Measured(entries=entries, teacher=teacher, teacher_cost=cost, facts=facts, refused=refused)
