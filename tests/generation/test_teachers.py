"""Several teachers that write text: each prompt for every one, or for the one that its source names; one cap."""

import json
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation.asking import ledger_of, prompts_file, row_bytes, rows
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs import tiny_runs
from tutelage.errors import ConfigError, LimitError, TutelageError
from tutelage.recipe import load_recipe

N = 4


@pytest.fixture
def other():
    with Endpoint(lambda n, body: Action(text="I am the other one.")) as running:
        yield running


def api(server: Endpoint, **fields: Any) -> dict[str, Any]:
    return {"base_url": server.url, "model": "m", "concurrency": 2, "terms": "none", "body": {"user": "b"}, **fields}


def recipe(folder: Path, writers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    asked = {
        "prompts": {"jsonl": str(prompts_file(folder, N)), "prompt": "prompt", "answer": "answer"},
        "max_tokens": 20, "budget_usd": 1.0, "price": {"prompt_usd": 1.0, "answer_usd": 2.0},
    }  # fmt: skip
    return {
        "teacher": {"writers": writers, "answers": str(folder / "answers")},
        "student": "somewhere/a-student",
        "loss": "cross_entropy",
        "training": {"steps": 1},
        "generate": {key: value for key, value in {**asked, **fields}.items() if value is not None},
    }


def two(server: Endpoint, other: Endpoint) -> dict[str, Any]:
    return {"big": {"api": api(server)}, "small": {"api": api(other, model="n", terms="mine")}}


def test_each_prompt_is_asked_of_every_teacher_and_the_card_counts_them_apart(server, other, tmp_path):
    made = tutelage.generate(recipe(tmp_path, two(server, other), select=["complete", {"verify": {"regex": "answer"}}]))
    assert len(server.seen) == len(other.seen) == N
    assert [row["teacher"] for row in rows(tmp_path)] == ["big"] * N
    assert {name: (entry.asked, entry.rows) for name, entry in made.card.teachers.items()} == {
        "big": (N, N), "small": (N, 0),
    }  # fmt: skip
    assert (made.card.teachers["small"].terms, made.card.teachers["big"].body) == ("mine", {"user": "b"})
    assert (made.card.model, made.card.prompts, made.card.asked) == ("m, n", N, 2 * N)
    before = row_bytes(tmp_path)
    assert tutelage.generate(recipe(tmp_path, two(server, other), select=["complete", {"verify": {"regex": "answer"}}]))
    assert row_bytes(tmp_path) == before and len(server.seen) == N


def test_rows_stand_in_the_order_of_prompts_and_teachers(server, other, tmp_path):
    tutelage.generate(recipe(tmp_path, two(server, other), samples=2))
    found = [(row["messages"][0]["content"], row["teacher"], row["sample"]) for row in rows(tmp_path)]
    assert found[:5] == [
        ("What is 0 and 0?", "big", 0), ("What is 0 and 0?", "big", 1),
        ("What is 0 and 0?", "small", 0), ("What is 0 and 0?", "small", 1), ("What is 1 and 1?", "big", 0),
    ]  # fmt: skip


def test_a_source_names_its_teacher(server, other, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"prompt": "only for the small one"}\n{"prompt": "and this"}\n')
    first = {"jsonl": str(prompts_file(tmp_path, N)), "prompt": "prompt", "teacher": "big"}
    second = {"jsonl": str(tmp_path / "b.jsonl"), "prompt": "prompt", "teacher": "small"}
    made = tutelage.generate(recipe(tmp_path, two(server, other), prompts=[first, second]))
    assert (len(server.seen), len(other.seen), made.card.prompts) == (N, 2, N + 2)
    assert {s.body["messages"][0]["content"] for s in other.seen} == {"only for the small one", "and this"}


def test_the_cap_holds_over_all_of_them_and_each_has_its_price(server, other, tmp_path):
    other.usd = (10.0, 20.0)
    writers = two(server, other)
    writers["small"]["price"] = {"prompt_usd": 10.0, "answer_usd": 20.0}
    cap = 0.0029
    failed: object = None
    try:
        tutelage.generate(recipe(tmp_path, writers, budget_usd=cap))
    except TutelageError as error:
        failed = error
    assert isinstance(failed, LimitError) and failed.code == "BUDGET"
    ledger_of(tmp_path, cap_usd=cap)
    assert len(server.seen) == N and 0 < len(other.seen) < N
    assert server.billed_usd + other.billed_usd <= cap
    made = tutelage.generate(recipe(tmp_path, writers, budget_usd=1.0))
    assert made.card.asked == 2 * N and made.card.teachers["small"].price == writers["small"]["price"]
    assert made.card.spent_usd == pytest.approx(server.billed_usd + other.billed_usd)


def test_a_cap_on_requests_counts_all_teachers(server, other, tmp_path):
    fields = {"budget_usd": None, "price": None, "max_requests": N + 1}
    with pytest.raises(LimitError, match=f"{N + 1} of {N + 1} requests are spent"):
        tutelage.generate(recipe(tmp_path, two(server, other), **fields))
    assert len(server.seen) + len(other.seen) == N + 1


def test_an_endpoint_and_a_model_on_this_machine_write_together(server, tmp_path):
    model = tiny_runs.model_folder(tmp_path / "model", layers=2)
    home = {"model": str(model), "dtype": "float32", "terms": "own"}
    writers = {"far": {"api": api(server)}, "here": home}
    made = tutelage.generate(recipe(tmp_path, writers, max_tokens=6, select=[{"complete": False}]))
    assert {name: entry.rows for name, entry in made.card.teachers.items()} == {"far": N, "here": N}
    assert made.card.requests == N and made.card.teachers["here"].weights and not made.card.teachers["far"].weights
    assert len(server.seen) == N


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"both": {"api": {"base_url": "x", "model": "m"}, "model": "y"}}, "teacher.writers.both needs exactly one of api"),
    ({"a": {"model": "x", "price": {"prompt_usd": 1, "answer_usd": 1}}}, "teacher.writers.a.price has no effect"),
    ({"a": {"api": {"base_url": "x", "model": "m"}, "terms": "t"}}, "teacher.writers.a.terms has no effect"),
    ({"a": {"api": {"base_url": "x", "model": "m", "headers": {"x-api-key": "1"}}}}, "may hold a key|literal key"),
    ({"a": {"modle": "x"}}, r"teacher.writers.a.modle unknown \(model\?\)"),
]


@pytest.mark.parametrize("writers, message", BROKEN, ids=[message[:30] for _, message in BROKEN])
def test_mistakes_are_named_with_their_place(writers, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, writers))


def test_names_of_teachers_are_checked(server, other, tmp_path):
    written = recipe(tmp_path, two(server, other))
    written["generate"]["prompts"]["teacher"] = "middle"
    with pytest.raises(ConfigError, match=r"teacher must be one of teacher.writers \(big, small\), got 'middle'"):
        load_recipe(written)
    written["generate"]["prompts"]["teacher"] = "big"
    with pytest.raises(ConfigError, match=r"teacher.writers.small has no effect where every source"):
        load_recipe(written)
    written["teacher"]["api"] = api(server)
    with pytest.raises(ConfigError, match=r"teacher.writers and teacher.api exclude each other"):
        load_recipe(written)
    trained = recipe(tmp_path, two(server, other))
    trained["data"] = {"sources": [{"answers": str(tmp_path / "answers"), "teacher": "big"}]}
    with pytest.raises(ConfigError, match=r"data.sources\[0\].teacher unknown"):
        load_recipe(trained)
    assert json.dumps(load_recipe(recipe(tmp_path, two(server, other))).resolved())
    assert load_recipe(load_recipe(recipe(tmp_path, two(server, other))).resolved())
