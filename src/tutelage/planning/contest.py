"""A contest of techniques: which recipes are trained, on how many tokens, so that the budgets are equal.

Two views: every technique trains its student on the same number of tokens; or all techniques compute the same number of
operations, the teacher's forward passes, its writing and its labelling included, so that a cheaper one trains longer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import ConfigError, LimitError
from tutelage.planning.budget import Budget
from tutelage.planning.facts import Facts
from tutelage.planning.pace import Pace
from tutelage.planning.work import Flops, Place, Technique, Work, flops_of, techniques
from tutelage.recipe import Recipe, load_recipe
from tutelage.recipe.tree import COPIES

Tree = dict[str, Any]
TOKENS, COMPUTE = "tokens", "compute"
_MOST_STEPS = 1 << 40
_REFERENCE = "soft"  # whose operations are the budget of equal compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run of a contest."""

    technique: str
    seed: int
    tokens: int
    views: tuple[str, ...]  # the views that it stands in: where both ask for the same run, it is one
    recipe: Tree
    work: Work
    flops: Flops

    @property
    def name(self) -> str:
        """Of its folder: the technique, how many tokens it learns, and its seed."""
        return f"{self.technique}-{self.tokens}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What is run, in the order it is run in, and why a technique takes no part: in a view, or (view "") at all."""

    arms: tuple[Arm, ...]
    refused: Mapping[tuple[str, str], str]  # (technique, view) -> reason
    budget_flops: float | None  # of equal compute


def base_of(recipe: Recipe, *, start: Tree | None) -> Tree:
    """What all arms have in common, in the recipe's long form: one student, no control beside it.

    `start` are fields of the student that take the place of what would be measured anew for each run: one for all.
    Raises ConfigError for a family, for text that a teacher wrote, and where nothing is held out.
    """
    if recipe.students is not None or recipe.student is None:
        raise ConfigError("CONFIG", "compare takes one student, and students has several; compare each by itself")
    if any(source.answers is not None for source in recipe.data.sources):
        raise ConfigError("CONFIG", "compare needs text of your own in data.sources, found answers; hard labels are "
                          "made from it: leave teacher.answers out")  # fmt: skip
    if recipe.data.curriculum is not None:
        raise ConfigError("CONFIG", "compare shows all techniques the same rows in one order, and not all have the "
                          "teacher's loss; leave data.curriculum out")  # fmt: skip
    if recipe.data.held_out is None:
        raise ConfigError("CONFIG", "data.held_out is null: compare has nothing to measure on; give a share")
    tree: Tree = {**recipe.resolved(), "control": False}
    if recipe.generate is not None and not recipe.generate.prompts:  # what it leaves open follows from the text
        tree["generate"] = recipe.generate.model_dump(mode="json", exclude_defaults=True)
    if start is not None:
        tree["student"] = {**{k: v for k, v in tree["student"].items() if k not in COPIES}, **start}
    return tree


def require_comparable(recipe: Recipe, *, names: Sequence[str], seeds: int) -> None:
    """Before anything is read or written: ConfigError for a recipe, techniques or seeds that give no comparison."""
    base_of(recipe, start=None)
    if names:
        _chosen(names)
    if seeds < 1:
        raise ConfigError("CONFIG", f"--seeds {seeds}, expected 1 or more")


def contest_of(
    base: Tree,
    facts: Facts,
    *,
    names: Sequence[str],
    seeds: int,
    place: Place,
    equal_compute: bool,
    budget_tokens: int | None = None,
) -> Contest:
    """The arms of every technique and seed: first all of one seed, so that a stopped contest holds whole comparisons.

    Raises ConfigError for an unknown technique, and when none can be done.
    """
    known, refused = _chosen(names), dict[tuple[str, str], str]()
    step = int(base["training"]["batch_tokens"])
    tokens = _whole_steps(budget_tokens or facts.text.trained, step)
    lengths: dict[str, dict[str, int]] = {}
    for name, technique in known.items():
        if reason := technique.impossible(facts) or _refusal(technique, base, place):
            refused[name, ""] = reason
        else:
            lengths[name] = {TOKENS: tokens}
    if not lengths:
        raise ConfigError(
            "CONFIG", f"no technique can be done: {'; '.join(f'{n} {r}' for (n, _), r in refused.items())}"
        )
    budget = None
    if equal_compute:
        costs = {name: _flops(known[name], facts, tokens, texts=tokens) for name in lengths}
        budget = costs[_REFERENCE].total if _REFERENCE in costs else max(cost.total for cost in costs.values())
        for name, found in lengths.items():
            n = _longest(known[name], facts, budget=budget, step=step, texts=tokens)
            if n < step:
                least = _flops(known[name], facts, step, texts=tokens).total
                refused[name, COMPUTE] = (
                    f"one step of it takes {least:.2e} operations with what the teacher does first, the budget has "
                    f"{budget:.2e}"
                )
            else:
                found[COMPUTE] = n
    place = replace(place, texts=math.ceil(min(tokens, facts.text.unique) / max(1.0, facts.text.window)))
    arms = [
        _arm(name, known[name], base, facts, tokens=length, texts=tokens, seed=seed, views=views, place=place)
        for seed in range(seeds)
        for name, found in lengths.items()
        for length, views in _merged(found)
    ]
    return Contest(arms=tuple(arms), refused=refused, budget_flops=budget)


def work_at(technique: Technique, facts: Facts, tokens: float, *, texts: float) -> Work:
    """What a technique does when its student trains on so many tokens; a teacher that writes gives `texts` tokens."""
    text = replace(facts.text, trained=tokens)
    if technique.work(facts).answer:
        text = replace(text, unique=min(text.unique, texts))
    return technique.work(replace(facts, text=text, caches_run=True))


def within(
    budget: Budget, of: Callable[[int | None], Sequence[Contest]], *, paces: Sequence[Pace], step: int
) -> Sequence[Contest]:
    """The longest contests that the budget holds together; `of` gives those of a length in tokens, one a pace.

    Raises LimitError[BUDGET] when a single step of every run is over it, ConfigError where a price is not known.
    """

    def fitting(n_steps: int) -> Sequence[Contest] | None:
        made = of(n_steps * step)
        taken = seconds_of_all(list(zip(made, paces, strict=True)))
        return made if budget.holds(sum(sum(one.values()) for one in taken), endpoint_usd=_endpoint_usd(made)) else None

    found = fitting(1)
    if found is None:
        raise LimitError("BUDGET", budget.refusal())
    low, high = 1, 2
    while (longer := fitting(high)) is not None and high < _MOST_STEPS:
        found, low, high = longer, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        longer = fitting(middle)
        found, low, high = (longer, middle, high) if longer is not None else (found, low, middle)
    return found


def seconds_of(contest: Contest, pace: Pace) -> dict[str, float]:
    """What each run is expected to take: answers are made once, in the first run that needs them; a cache, by seed."""
    (expected,) = seconds_of_all([(contest, pace)])
    return expected


def seconds_of_all(contests: Sequence[tuple[Contest, Pace]]) -> list[dict[str, float]]:
    """`seconds_of` several contests that share one cache and one set of answers."""
    known, found = set[tuple[str, int, int]](), []
    for contest, pace in contests:
        expected = {}
        for arm in contest.arms:
            # A cache holds the rows that each run reads, and seeds and lengths read others; answers serve all runs.
            first = (arm.technique, arm.seed, arm.tokens) if arm.work.stored else (arm.technique, 0, 0)
            alone = without_teacher_first(arm.work)
            expected[arm.name] = pace.seconds(arm.work if first not in known else alone)
            known.add(first)
        found.append(expected)
    return found


def _endpoint_usd(contests: Sequence[Contest]) -> float:
    """What endpoints may take at most: answers are bought once, under the recipe's own cap."""
    asked = {arm.recipe["teacher"]["answers"]: arm for one in contests for arm in one.arms if _asks_endpoint(arm)}
    return sum(_may_spend(arm) for arm in asked.values())


def _asks_endpoint(arm: Arm) -> bool:
    return arm.work.answer > 0 and (arm.recipe.get("teacher") or {}).get("api") is not None


def _may_spend(arm: Arm) -> float:
    cap = (arm.recipe.get("generate") or {}).get("budget_usd")
    if cap is None:
        raise ConfigError(
            "CONFIG",
            f"--usd: {arm.technique} asks an endpoint, and nothing says how many dollars that may take; set "
            "generate.budget_usd and generate.price",
        )
    return float(cap)


def without_teacher_first(work: Work) -> Work:
    """What is left of a technique's work for a second run: labelling and writing are done once."""
    if work.stored or work.answer:
        return replace(work, teacher_forward=0.0, prompt=0.0, answer=0.0, stored=0.0, sampled=0.0)
    return work


def _chosen(names: Sequence[str]) -> dict[str, Technique]:
    known = techniques()
    for name in names:
        if name not in known:
            raise ConfigError("CONFIG", f"--techniques: '{name}' unknown; known: {', '.join(known)}")
    if len(set(names)) < max(2, len(names)):
        raise ConfigError("CONFIG", f"--techniques: expected two or more, each once, got {','.join(names) or 'none'}")
    return {name: known[name] for name in names}


def _refusal(technique: Technique, base: Tree, place: Place) -> str:
    """Why the recipe cannot be changed for the technique, or is none afterwards."""
    try:
        load_recipe(technique.recipe(base, place))
    except ConfigError as error:
        return error.message
    return ""


def _flops(technique: Technique, facts: Facts, tokens: float, *, texts: float) -> Flops:
    """Held-out rows are left out: asking about them is evaluation, which is not counted for the others either."""
    text = replace(facts.text, held_out=0.0)
    return flops_of(work_at(technique, replace(facts, text=text), tokens, texts=texts), facts)


def _whole_steps(tokens: float, step: int) -> int:
    return max(1, math.ceil(tokens / step)) * step


def _longest(technique: Technique, facts: Facts, *, budget: float, step: int, texts: float) -> int:
    """The most tokens, in whole steps, that the budget allows; 0 where it allows no step."""
    low, high = 0, 1
    while _flops(technique, facts, high * step, texts=texts).total <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _flops(technique, facts, middle * step, texts=texts).total <= budget:
            low = middle
        else:
            high = middle
    return low * step


def _merged(lengths: Mapping[str, int]) -> list[tuple[int, tuple[str, ...]]]:
    """Each length once, with the views that ask for it."""
    found: dict[int, tuple[str, ...]] = {}
    for view, length in lengths.items():
        found[length] = (*found.get(length, ()), view)
    return list(found.items())


def _arm(
    name: str, technique: Technique, base: Tree, facts: Facts, *, tokens: int, texts: int, seed: int,
    views: tuple[str, ...], place: Place,
) -> Arm:  # fmt: skip
    tree = technique.recipe(base, place)
    training = {**tree["training"], "tokens": tokens, "steps": None, "epochs": None, "seed": seed}
    return Arm(
        technique=name,
        seed=seed,
        tokens=tokens,
        views=views,
        recipe={**tree, "training": training},
        work=work_at(technique, facts, tokens, texts=texts),
        flops=_flops(technique, facts, tokens, texts=texts),
    )
