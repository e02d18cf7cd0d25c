"""Best of n: of each prompt's samples the best stay, by a verifier, a score or the length."""

import pytest

from tests.generation.asking import generate, recipe, row_bytes, rows
from tests.instruments.endpoint import Action
from tutelage.errors import ConfigError
from tutelage.recipe import load_recipe

TEXTS = {(0, 0): "long, but it is 0", (0, 1): "0", (0, 2): "so 0", (1, 0): "no", (1, 1): "2", (1, 2): "7"}
SCORE = """
def score(prompt, answer, reference):
    if answer == "no":
        raise KeyError("no score")
    return len(answer) / 10
"""


def by_seed(n: int, body: dict[str, object]) -> Action:
    return Action(text=TEXTS[int(body["messages"][-1]["content"].split()[2]), body["seed"]])


def kept(folder, url, best, *, extra=(), **fields):
    made = generate(folder, url, n=2, samples=3, seed=0, select=[*extra, {"best": best}], **fields)
    found = [(row["messages"][-2]["content"].split()[2], row["sample"]) for row in rows(folder)]
    return [(int(number), sample) for number, sample in found], made


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ({"by": "length"}, [(0, 1), (1, 1)]),  # of 2 and 7 the earlier one
        ({"by": "length", "prefer": "shortest", "keep": 2}, [(0, 1), (0, 2), (1, 1), (1, 2)]),
        ({"by": "length", "prefer": "longest"}, [(0, 0), (1, 0)]),
        ({"by": "verify", "verify": "number"}, [(0, 0), (1, 1)]),
        ({"by": "verify", "verify": {"regex": "^7$"}}, [(0, 0), (1, 2)]),
        ({"by": "verify", "verify": {"function": "score.py:score"}}, [(0, 0), (1, 1)]),
    ],
)
def test_the_best_of_the_samples_of_each_prompt_is_kept(best, expected, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.py").write_text(SCORE)
    server.script = by_seed
    found, made = kept(tmp_path, server.url, best)
    assert found == expected
    (step,) = (step for step in made.card.dropped if step.step == "best")
    assert step.n == 6 - len(expected) and made.card.rows == len(expected)
    wrong = {"function raised KeyError": 1} if "function" in str(best) else {}
    assert step.reasons == {"not the best of its prompt": step.n - len(wrong)} | wrong


def test_only_what_earlier_steps_kept_is_compared_and_the_example_names_the_best(server, tmp_path):
    server.script = by_seed
    found, made = kept(tmp_path, server.url, {"by": "length"}, extra=[{"verify": "number"}])
    assert found == [(0, 1), (1, 1)]
    (step,) = (step for step in made.card.dropped if step.step == "best")
    assert step.examples[0]["about"] == "its score is 17, prompts.jsonl:1, sample 1 has 1"


def test_other_rules_need_no_new_answer_and_the_bytes_follow_from_the_recipe_alone(server, tmp_path):
    server.script = by_seed
    first = kept(tmp_path, server.url, {"by": "length"})[0], row_bytes(tmp_path)
    kept(tmp_path, server.url, {"by": "length", "prefer": "longest"})
    assert (kept(tmp_path, server.url, {"by": "length"})[0], row_bytes(tmp_path)) == first and len(server.seen) == 6


@pytest.mark.parametrize(
    ("best", "samples", "message"),
    [
        ({"by": "length"}, 1, "best.keep must be below generate.samples (1)"),
        ({"by": "length", "keep": 3}, 3, "best.keep must be below generate.samples (3)"),
        ({"by": "verify"}, 2, "best.verify is missing"),
        ({"by": "length", "verify": "number"}, 2, "best.verify has no effect with by: length"),
        ({"by": "verify", "verify": "number", "prefer": "longest"}, 2, "best.prefer has no effect with by: verify"),
        ({"by": "verify", "verify": {"number": True, "exact": True}}, 2, "best.verify needs exactly one of number"),
        ({"by": "lenght"}, 2, "unknown (length?)"),
    ],
)
def test_a_choice_that_would_choose_nothing_is_refused(best, samples, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, "http://127.0.0.1:1/v1", samples=samples, select=[{"best": best}]))
    assert message in caught.value.message
