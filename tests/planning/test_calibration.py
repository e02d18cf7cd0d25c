"""What a token takes on this machine: solved from short steps; left out where it has no place."""

import pytest

import tutelage
from tests.planning.test_plan import FACTS
from tests.verbs import tiny_runs
from tutelage.planning.calibration import Costs, Models, solved, tokens_of_a_step
from tutelage.planning.of_recipe import known_of
from tutelage.recipe import load_recipe
from tutelage.training import teachers
from tutelage.training.corpus import Corpus
from tutelage.training.plan import n_steps_of
from tutelage.verbs.plan import described_machine


def test_the_costs_are_solved_from_three_steps_and_noise_below_nothing_is_nothing():
    update, head, layer, parameters = 3e-9, 2e-3, 5e-4, 1_000_000

    def step(layers, tokens):
        return update * parameters + tokens * (head + layers * layer)

    costs = solved(step(1, 400), step(3, 400), step(1, 100), long=400, short=100, parameters=parameters)
    assert (costs.update_s, costs.token_s, costs.layer_s) == pytest.approx((update, head, layer))
    backwards = solved(1.0, 0.5, 2.0, long=400, short=100, parameters=parameters)
    assert (backwards.token_s, backwards.layer_s) == (0.0, 0.0)


def test_a_token_of_a_large_batch_pays_little_for_the_update():
    costs, size = Costs(update_s=1e-9, token_s=1e-3, layer_s=1e-4), FACTS.students["student"]
    small, large = (costs.per_token(size, batch_tokens=n) for n in (10.0, 1000.0))
    assert (small, large) == pytest.approx((1e-3 + 1e-9 * 1000 / 10, 1e-3 + 1e-9 * 1000 / 1000), rel=1e-12)


def test_the_hours_of_this_machine_are_measured_once_and_rest_on_every_part(tmp_path):
    recipe = tiny_runs.recipe(tmp_path)
    plan = tutelage.plan(recipe).plan
    pace = plan.pace
    assert pace.where.startswith("this machine, cpu, float32, steps of ")
    assert pace.student_training["student"] > 0 and pace.teacher_forward >= 0
    soft, control = plan.possible["soft"], plan.possible["control"]
    work = soft.work
    assert soft.seconds == pytest.approx(
        work.student_training * pace.student_training["student"] + work.teacher_forward * pace.teacher_forward
    )
    assert control.seconds <= soft.seconds
    assert tutelage.plan(recipe, calibration=False).plan.pace is None
    described = tutelage.plan(recipe, machine=described_machine("h100"))
    assert described.plan.pace.where.startswith("NVIDIA H100") and described.plan.memory_bytes == 80e9


def test_a_token_counts_with_the_padding_of_its_windows_and_its_share_of_the_last_step(tmp_path):
    given = tiny_runs.recipe(tmp_path)
    recipe = load_recipe({**given, "training": {**given["training"], "steps": None, "tokens": 300}})
    known = known_of(recipe)
    corpus = Corpus(recipe, teachers.tokenizer_of(recipe), examples={})
    computed = n_steps_of(recipe.training, corpus.loader()) * recipe.training.batch_tokens
    assert computed > 300 and known.positions_per_token * 300 == pytest.approx(computed)
    assert known_of(load_recipe(given)).positions_per_token == 1.0  # so many steps of so many positions


def test_models_too_large_to_be_measured_are_not(tmp_path):
    known = known_of(load_recipe(tiny_runs.recipe(tmp_path)))
    models = Models(facts=known.facts, students=known.students, teacher=known.teacher, n_vocabulary=known.n_vocabulary)
    assert tokens_of_a_step(models, training_per_s=2e11, memory_bytes=None) == 768
    assert 64 < tokens_of_a_step(models, training_per_s=4.6e6, memory_bytes=None) < 768
    assert tokens_of_a_step(models, training_per_s=2.3e4, memory_bytes=None) == 0  # too slow
    assert tokens_of_a_step(models, training_per_s=2e11, memory_bytes=1e5) == 0  # too little memory
