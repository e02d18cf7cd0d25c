"""Near-duplicates across prompts: by MinHash, the first stays, the same ones whenever it runs."""

import random
import sys

import pytest

from tests.generation.asking import generate, recipe, rows
from tests.instruments.endpoint import Action
from tutelage.errors import ConfigError
from tutelage.generation.select import Candidate, Verdict
from tutelage.generation.select import deduplicate as step
from tutelage.recipe import load_recipe
from tutelage.recipe.generation import Deduplicate

LONG = "first we count the apples in the box and then we add the pears that the boy has brought from the market today"


def asked(body: dict) -> int:
    return int(body["messages"][-1]["content"].split()[2])


def test_an_answer_that_resembles_one_to_any_prompt_is_dropped_and_says_which(server, tmp_path):
    texts = [
        LONG,
        "It is 2.",
        f"{LONG.upper()}!",
        "Quite another text. " * 3 + " ".join(map(str, range(40))),
        f"so {LONG}",
    ]
    server.script = lambda n, body: Action(text=texts[asked(body)])
    made = generate(tmp_path, server.url, n=5, select=[{"deduplicate": {"near": 0.8}}])
    assert [row["messages"][0]["content"].split()[2] for row in rows(tmp_path)] == ["0", "1", "3"]
    (dropped,) = (d for d in made.card.dropped if d.step == "deduplicate")
    assert dropped.reasons == {"resembles an earlier answer": 2}
    assert dropped.examples[0]["about"] == "prompts.jsonl:1, sample 0 (1.00)" and dropped.examples[0]["text"][0] == "F"
    assert generate(tmp_path, server.url, n=5, select=[{"deduplicate": {"near": 0.8}}]).card == made.card


def test_short_answers_may_be_right_for_many_prompts(server, tmp_path):
    server.script = lambda n, body: Action(text="The answer to this question is certainly the number five.")
    made = generate(tmp_path, server.url, n=3, samples=2, seed=0, select=[{"deduplicate": {"near": 0.5}}])
    assert made.card.rows == 3 and {d.step: d.n for d in made.card.dropped}["deduplicate"] == 3


def test_the_short_form_looks_at_one_prompt_alone(server, tmp_path):
    server.script = lambda n, body: Action(text=LONG)
    assert generate(tmp_path, server.url, n=3, samples=2, seed=0, select=["deduplicate"]).card.rows == 3


@pytest.mark.parametrize("near", [0.5, 0.8, 0.9])
def test_what_is_dropped_is_what_really_resembles(near):
    draw = random.Random(7)
    judge = step.build(Deduplicate(near=near))
    wrong = {True: 0, False: 0}
    for _ in range(150):
        words = [f"w{draw.randrange(10**6)}" for _ in range(120)]
        n_changed = draw.choice([1, 2, 4, 8, 12])
        other = list(words)
        for at in draw.sample(range(120), n_changed):
            other[at] = f"x{draw.randrange(10**6)}"
        a, b = ({tuple(text[i : i + 3]) for i in range(118)} for text in (words, other))
        likeness = len(a & b) / len(a | b)
        pair = [Candidate(text=" ".join(text), outcome="answer", reference="", asked=("q",)) for text in (words, other)]
        assert judge(pair[0]) == ""
        is_dropped = isinstance(judge(pair[1]), Verdict)
        if abs(likeness - near) > 0.1:  # five standard errors of 128 permutations at 0.5 are 0.22, at 0.9 0.13
            wrong[is_dropped] += is_dropped != (likeness > near)
    assert wrong[True] + wrong[False] <= 1


def test_without_the_library_the_message_says_what_to_install(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match=r'needs rensa; run: pip install "tutelage\[text\]"') as caught:
        generate(tmp_path, server.url, select=[{"deduplicate": {"near": 0.8}}])
    assert caught.value.code == "MISSING_EXTRA" and server.seen == []


@pytest.mark.parametrize("near", [0, 1.5, "0.8"])
def test_a_share_that_is_none_is_refused(near, tmp_path):
    with pytest.raises(ConfigError, match="near must be"):
        load_recipe(recipe(tmp_path, "http://127.0.0.1:1/v1", select=[{"deduplicate": {"near": near}}]))
