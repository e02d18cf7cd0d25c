"""The arms of a contest: recipes that differ in the technique alone, and lengths that make budgets equal."""

from dataclasses import replace

import pytest

from tests.planning.test_plan import FACTS
from tutelage.errors import ConfigError, LimitError
from tutelage.planning.budget import Budget, budget_of
from tutelage.planning.contest import (
    COMPUTE,
    TOKENS,
    base_of,
    contest_of,
    seconds_of,
    seconds_of_all,
    within,
    without_teacher_first,
)
from tutelage.planning.pace import Pace
from tutelage.planning.work import Beginnings, Place, techniques
from tutelage.recipe import load_recipe

ALL = ("control", "soft", "cached", "argmax", "hard", "co")
PLACE = Place(
    cache="/c",
    answers="/a",
    beginnings=(Beginnings(source={"jsonl": ["/t.jsonl"], "columns": {"text": "text"}}, documents=400),),
)
RECIPE = {
    "teacher": "/teacher",
    "student": {"layers": [0, 2]},
    "data": {"sources": [{"text": "/corpus.txt"}], "held_out": 0.1, "max_length": 256},
    "loss": [{"forward_kl": 0.9}, {"ground_truth": 0.1}],
    "training": {"epochs": 1, "batch_tokens": 1024},
}
PACE = Pace(where="here", student_training={"student": 1e-3}, teacher_forward=1e-3, teacher_training=3e-3, answer=1e-2)


def made(names=ALL, *, equal_compute=True, recipe=RECIPE, **more):
    base = base_of(load_recipe(recipe), start=None)
    return contest_of(base, FACTS, names=names, seeds=2, place=PLACE, equal_compute=equal_compute, **more)


def test_every_arm_is_a_recipe_and_differs_only_in_what_its_technique_changes():
    base = load_recipe(RECIPE).resolved()
    for arm in made(equal_compute=False).arms:
        whole = load_recipe(arm.recipe).resolved()
        changed = {name for name in whole if whole[name] != base.get(name)} - {"training", "control"}
        allowed = {"loss", "teacher", "cache", "generate", "data"} if arm.technique == "hard" else (
            {"loss", "teacher", "cache"})  # fmt: skip
        assert changed <= allowed, arm.technique
        training = {**whole["training"], "tokens": None, "epochs": 1.0, "seed": 0}
        assert {k: v for k, v in training.items() if v is not None} == base["training"]
        assert (whole["training"]["tokens"], whole["training"]["seed"]) == (arm.tokens, arm.seed)


def test_a_teacher_that_learns_computes_as_its_students_and_lies_on_one_device():
    """What the recipe tells a frozen teacher does not stop the comparison, or it says so before anything runs."""
    narrow = {**RECIPE, "teacher": {"model": "/teacher", "dtype": "bfloat16"}}
    found = {arm.technique: arm.recipe["teacher"] for arm in made(("soft", "co"), recipe=narrow).arms}
    assert found["soft"]["dtype"] == "bfloat16" and "dtype" not in found["co"]
    spread = {**RECIPE, "teacher": {"model": "/teacher", "device_map": {"": "disk"}}, "student": "/student"}
    contest = made(("control", "soft", "co"), recipe=spread)
    assert {arm.technique for arm in contest.arms} == {"control", "soft"}
    assert "a teacher that learns is whole on one device" in contest.refused["co", ""]


def test_first_choices_leave_the_terms_that_follow_layers_as_they_are():
    followed = {**RECIPE, "loss": [{"forward_kl": 0.9}, {"hidden_states": 0.1}]}
    facts = replace(FACTS, compares_layers=True)
    base = base_of(load_recipe(followed), start=None)
    made_of = contest_of(base, facts, names=("soft", "argmax"), seeds=1, place=PLACE, equal_compute=False)
    (loss,) = [load_recipe(arm.recipe).loss for arm in made_of.arms if arm.technique == "argmax"]
    assert [(term.name, term.weight.start) for term in loss] == [("teacher_argmax", 0.9), ("hidden_states", 0.1)]


def test_what_each_technique_learns():
    loss = {}
    for arm in made(equal_compute=False).arms:
        loss[arm.technique] = [
            (term.name, term.weight.start) for term in load_recipe(arm.recipe).learners["student"].loss
        ]
    both = [("forward_kl", 0.9), ("ground_truth", 0.1)]
    assert loss["soft"] == loss["cached"] == loss["co"] == both
    assert loss["control"] == loss["hard"] == [("ground_truth", 1.0)]
    assert loss["argmax"] == [("teacher_argmax", 0.9), ("ground_truth", 0.1)]


def test_hard_labels_are_measured_on_the_rows_that_the_recipe_holds_out():
    (arm, _) = (arm for arm in made(equal_compute=False).arms if arm.technique == "hard")
    data = load_recipe(arm.recipe).data
    assert data.held_out.share == 0.1 and data.held_out.sources == load_recipe(RECIPE).data.sources
    (prompts,) = load_recipe(arm.recipe).generate.prompts
    assert (
        prompts.limit == 400 and load_recipe(arm.recipe).generate.samples == 5
    )  # 1e6 tokens, all there are, in rows of 500


def test_lengths_of_equal_compute_are_the_longest_that_the_budget_allows():
    contest = made()
    assert {arm.tokens for arm in contest.arms if TOKENS in arm.views} == {3_000_320}  # whole steps
    for arm in contest.arms:
        if COMPUTE in arm.views:
            a_step = arm.flops.total / arm.tokens * 1024
            assert contest.budget_flops - 1.2 * a_step < arm.flops.total <= contest.budget_flops, arm.technique
    assert {arm.technique for arm in contest.arms if COMPUTE in arm.views} == set(ALL)
    soft = [arm for arm in contest.arms if arm.technique == "soft"]
    assert len(soft) == 2 and all(arm.views == (TOKENS, COMPUTE) for arm in soft)  # one run a seed serves both


def test_a_seed_is_whole_before_the_next_begins():
    assert [arm.seed for arm in made().arms] == sorted(arm.seed for arm in made().arms)
    assert len({arm.name for arm in made().arms}) == len(made().arms)


def test_hours_give_the_longest_contest_that_fits_and_the_teachers_first_work_counts_once():
    def of(n):
        return [made(("control", "hard"), equal_compute=False, budget_tokens=n)]

    (found,) = within(Budget(hours=10.0), of, paces=[PACE], step=1024)
    n = found.arms[0].tokens
    assert sum(seconds_of(found, PACE).values()) <= 36_000 < sum(seconds_of(of(n + 1024)[0], PACE).values())
    first, second = (seconds_of(found, PACE)[f"hard-{n}-seed{seed}"] for seed in (0, 1))
    assert first - second == pytest.approx(0.875 * min(n, FACTS.text.unique) * PACE.answer)
    with pytest.raises(LimitError, match="one step of every run takes more than 1e-05 h"):
        within(Budget(hours=1e-5), of, paces=[PACE], step=1024)


def test_the_settings_of_a_sweep_share_the_hours_and_what_the_teacher_does_first():
    def of(n):
        return [made(("control", "hard"), equal_compute=False, budget_tokens=n)] * 2

    both = within(Budget(hours=10.0), of, paces=[PACE, PACE], step=1024)
    seconds = [sum(one.values()) for one in seconds_of_all([(contest, PACE) for contest in both])]
    n = both[0].arms[0].tokens
    assert sum(seconds) <= 36_000 and seconds[0] - seconds[1] == pytest.approx(0.875 * 1e6 * PACE.answer)
    assert n < within(Budget(hours=10.0), lambda n: of(n)[:1], paces=[PACE], step=1024)[0].arms[0].tokens


def test_a_cache_takes_the_time_of_its_sample_once_more_and_no_operations():
    work = techniques()["cached"].work(FACTS)
    assert work.sampled == 32_768 + 8_192  # 5 % of a million is more than the most, of ten thousand less than the least
    assert PACE.seconds(work) - PACE.seconds(replace(work, sampled=0.0)) == pytest.approx(40_960 * PACE.teacher_forward)
    assert without_teacher_first(work) == replace(work, teacher_forward=0.0, stored=0.0, sampled=0.0)


def test_a_short_run_caches_the_rows_that_it_reads_at_the_price_of_asking_live():
    found = made(("control", "soft", "cached"), budget_tokens=64 * 1024)
    arms = {(arm.technique, view): arm for arm in found.arms for view in arm.views if arm.seed == 0}
    assert ("cached", "") not in found.refused
    for view in ("tokens", "compute"):
        cached, soft = arms["cached", view], arms["soft", view]
        assert cached.recipe["cache"]["rows"] == "run" and cached.work.stored == cached.tokens == soft.tokens
        assert cached.flops == soft.flops and cached.work.teacher_forward == cached.tokens + FACTS.text.held_out
    seconds = seconds_of(found, PACE)
    assert seconds["cached-65536-seed0"] == seconds["cached-65536-seed1"] > seconds["soft-65536-seed1"]
    whole = made(("soft", "cached"), budget_tokens=3 * 10**6).arms[1]
    assert whole.technique == "cached" and whole.work.stored == FACTS.text.unique


def test_dollars_are_hours_of_the_machine_and_what_an_endpoint_may_spend_once():
    def of(n, *, cap=3.0):
        api = {"api": {"base_url": "http://127.0.0.1:1/v1"}, "answers": "answers"}
        contest = made(("control", "hard"), equal_compute=False, budget_tokens=n)
        bought = [
            replace(a, recipe={**a.recipe, "teacher": api, "generate": {"budget_usd": cap}}) if a.work.answer else a
            for a in contest.arms
        ]
        return [replace(contest, arms=tuple(bought))]

    budget = budget_of(tokens=None, hours=None, usd=8.0, usd_per_hour=0.5)
    dollars, hours = (within(b, of, paces=[PACE], step=1024)[0].arms[0].tokens for b in (budget, Budget(hours=10.0)))
    assert dollars == hours  # (8 - 3) / 0.5
    with pytest.raises(LimitError, match=r"more than \$8 with what an endpoint may spend; give more --usd"):
        within(budget, lambda n: of(n, cap=9.0), paces=[PACE], step=1024)
    with pytest.raises(ConfigError, match="nothing says how many dollars that may take; set generate.budget_usd"):
        within(budget, lambda n: of(n, cap=None), paces=[PACE], step=1024)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 5, "hours": 1.0}, "--tokens and --hours are budgets each; give one"),
        ({"usd": 5.0}, "no --usd-per-hour"),
        ({"usd_per_hour": 5.0}, "no --usd;"),
    ],
)
def test_half_a_budget_and_two_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        budget_of(**{"tokens": None, "hours": None, "usd": None, "usd_per_hour": None, **given})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"students": {"a": {"layers": [0]}}, "student": None}, "compare takes one student"),
        ({"data": {**RECIPE["data"], "held_out": None}}, "compare has nothing to measure on"),
    ],
)
def test_recipes_that_cannot_be_compared(changed, message):
    with pytest.raises(ConfigError, match=message):
        made(recipe={name: value for name, value in {**RECIPE, **changed}.items() if value is not None})


def test_a_technique_that_the_recipe_does_not_allow_says_why():
    contest = made(("control", "soft", "grey"), recipe={**RECIPE, "loss": ["ground_truth"]}, equal_compute=False)
    assert contest.refused["soft", ""].startswith("no term of loss asks the teacher; add one")
    assert contest.refused["grey", ""].startswith("is for a teacher behind an endpoint")
    assert {arm.technique for arm in contest.arms} == {"control"}


def test_nothing_is_bought_without_a_cap():
    tree = {**base_of(load_recipe(RECIPE), start=None), "teacher": {"api": {"base_url": "http://127.0.0.1:1/v1"}}}
    with pytest.raises(ConfigError, match="nothing caps it; set generate.budget_usd or"):
        techniques()["hard"].recipe({**tree, "generate": {"budget_usd": None}}, PLACE)
    made = techniques()["hard"].recipe({**tree, "generate": {"max_requests": 9, "max_tokens": 7}}, PLACE)
    assert made["teacher"] == {**tree["teacher"], "answers": "/a"}
    assert (made["generate"]["max_requests"], made["generate"]["max_tokens"]) == (9, 7)
