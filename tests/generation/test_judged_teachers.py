"""A judge over several teachers, and over a model on this machine: one cap, each at its own price."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation import test_local, test_teachers
from tests.generation.asking import rows
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs import tiny_runs
from tutelage.errors import ConfigError, LimitError


@pytest.fixture
def other() -> Iterator[Endpoint]:
    with Endpoint(lambda n, body: Action(text="I am the other one."), usd=(3.0, 4.0)) as running:
        yield running


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    """Likes the other one better; of a model's noise it likes everything."""
    with Endpoint(scoring, usd=(10.0, 20.0)) as running:
        yield running


def scoring(n: int, body: dict[str, Any]) -> Action:
    return Action(text=f"Score: {9 if 'the other one' in body['messages'][0]['content'] else 4}")


def best(judge: Endpoint) -> dict[str, Any]:
    api = {"base_url": judge.url, "model": "j", "concurrency": 2}
    return {"by": "judge", "judge": {"api": api, "price": {"prompt_usd": 10.0, "answer_usd": 20.0}, "max_tokens": 10}}


def test_the_best_answer_across_teachers_is_kept_and_all_are_paid_under_one_cap(server, other, judge, tmp_path):
    writers = test_teachers.two(server, other)
    writers["small"]["price"] = {"prompt_usd": 3.0, "answer_usd": 4.0}
    asked = test_teachers.recipe(tmp_path, writers, select=["complete", {"best": best(judge)}])
    made = tutelage.generate(asked)
    assert [row["teacher"] for row in rows(tmp_path)] == ["small"] * test_teachers.N
    assert len(judge.seen) == 2 * test_teachers.N
    assert made.card.spent_usd == pytest.approx(server.billed_usd + other.billed_usd + judge.billed_usd)
    assert tutelage.generate(asked).n_sent == 0


def test_one_sample_of_each_of_two_teachers_is_a_choice_and_one_of_one_is_none(server, other, judge, tmp_path):
    writers = test_teachers.two(server, other)
    steps = {"select": ["complete", {"best": best(judge) | {"keep": 2}}]}
    with pytest.raises(ConfigError, match=r"keep must be below generate.samples \(1 a teacher\)"):
        tutelage.load_recipe(test_teachers.recipe(tmp_path, writers, **steps))
    tutelage.load_recipe(test_teachers.recipe(tmp_path, writers, samples=2, **steps))


@pytest.fixture(scope="module")
def local_teacher(tmp_path_factory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "teacher", layers=2)


def test_a_model_on_this_machine_is_judged_under_a_cap(local_teacher, judge, tmp_path):
    steps = {"samples": 2, "select": [{"complete": False}, {"best": best(judge)}]}
    unpriced = {"by": "judge", "judge": {"api": best(judge)["judge"]["api"]}}
    bare = test_local.recipe(tmp_path, local_teacher, samples=2, select=[{"best": unpriced}])
    with pytest.raises(ConfigError, match=r"generate needs a cap"):
        tutelage.generate(bare)
    assert not judge.seen
    with pytest.raises(LimitError, match=r"raise generate.budget_usd"):
        tutelage.generate(test_local.recipe(tmp_path, local_teacher, budget_usd=0.005, **steps))
    made = tutelage.generate(test_local.recipe(tmp_path, local_teacher, budget_usd=1.0, **steps))
    assert len(judge.seen) == 2 * test_local.N and made.card.rows == test_local.N
    assert made.card.spent_usd == pytest.approx(judge.billed_usd)


def test_log_probabilities_are_asked_of_one_endpoint_alone(server, other, tmp_path):
    with pytest.raises(ConfigError, match=r"top_logprobs asks one endpoint.*tutelage label"):
        tutelage.load_recipe(test_teachers.recipe(tmp_path, test_teachers.two(server, other), top_logprobs=5))


def test_a_judge_without_a_price_is_refused_under_a_cap_in_dollars(server, other, judge, tmp_path):
    """Its requests would count as nothing."""
    unpriced = {"by": "judge", "judge": {"api": best(judge)["judge"]["api"]}}
    writers = test_teachers.two(server, other)
    for writer in writers.values():
        writer["price"] = {"prompt_usd": 1.0, "answer_usd": 2.0}
    asked = test_teachers.recipe(tmp_path, writers, price=None, select=["complete", {"best": unpriced}])
    with pytest.raises(ConfigError, match=r"no price for the judge") as refused:
        tutelage.generate(asked)
    assert refused.value.code == "NO_PRICE" and not server.seen and not judge.seen


def test_what_a_judge_cannot_use_is_refused(server, other, judge, tmp_path):
    for name, value in (("transport", "batch"), ("logprobs_temperature", 0.7)):
        step = best(judge)
        step["judge"]["api"] = {**step["judge"]["api"], name: value}
        asked = test_teachers.recipe(tmp_path, test_teachers.two(server, other), samples=2, select=[{"best": step}])
        with pytest.raises(ConfigError, match=rf"judge.api.{name} has no effect"):
            tutelage.load_recipe(asked)


def test_two_servers_on_this_machine_with_models_of_one_name_are_both_asked(server, other, tmp_path):
    same = {"a": {"api": test_teachers.api(server)}, "b": {"api": test_teachers.api(other)}}
    tutelage.generate(test_teachers.recipe(tmp_path, same))
    assert len(server.seen) == len(other.seen) == test_teachers.N


def test_one_model_named_twice_is_refused(server, tmp_path):
    same = {"a": {"api": test_teachers.api(server)}, "b": {"api": test_teachers.api(server)}}
    with pytest.raises(ConfigError, match=r"teacher.writers: a and b would be asked the same"):
        tutelage.generate(test_teachers.recipe(tmp_path, same))
    assert not server.seen


def test_a_parquet_row_names_its_own_teacher_price_and_terms(server, other, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    writers = test_teachers.two(server, other)
    writers["small"]["price"] = {"prompt_usd": 3.0, "answer_usd": 4.0}
    tutelage.generate(test_teachers.recipe(tmp_path, writers, parquet=True))
    found = parquet.read_table(tmp_path / "answers" / "answers.parquet").to_pylist()
    assert [row["teacher"] for row in found[:2]] == ["big", "small"]
    assert ['"prompt_usd": 1.0' in found[0]["price"], '"prompt_usd": 3.0' in found[1]["price"]] == [True, True]
    assert [row["terms"] for row in found[:2]] == ["none", "mine"]


def test_what_a_local_teacher_cost_is_said_in_words(local_teacher, tmp_path):
    made = tutelage.generate(test_local.recipe(tmp_path, local_teacher))
    assert f"cost:    nothing, written on this machine; {test_local.N} answers in this call" in str(made)
