"""Selection: each step drops what it says, counts it, shows examples, and is applied again without asking."""

from decimal import Decimal

import pytest

from tests.generation.asking import generate, rows
from tests.instruments.endpoint import Action
from tutelage import plugins
from tutelage.errors import ConfigError
from tutelage.generation.select import Candidate
from tutelage.generation.select.repetition import repeated_share
from tutelage.generation.select.verify import choice, last_number
from tutelage.recipe import load_recipe
from tutelage.recipe.generation import Step


def judged(step: str, settings: object, text: str, *, reference: str = "", outcome: str = "answer") -> str:
    checked = getattr(Step.model_validate({step: settings}), step)
    candidate = Candidate(text=text, outcome=outcome, reference=reference, asked=("q",))
    return str(plugins.load("generation/select", step).build(checked)(candidate))


def test_every_file_of_the_folder_is_a_step_of_the_recipe():
    assert set(plugins.names("generation/select")) == set(Step.model_fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("So it is 42.", "42"), ("#### 1,234.50", "1234.5"), ("x = -3", "-3"), ("\u22127 degrees", "-7"), ("3/4", "4"),
     ("1e3 metres", "1000"), ("0.50", "0.5"), (".5", "0.5"), ("$18,000 a year", "18000"), ("no number", None)],
)  # fmt: skip
def test_the_last_number_of_a_text(text, expected):
    assert last_number(text) == (Decimal(expected) if expected else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("B", "B"), ("(c)", None), ("(C) because", "C"), ("The answer is **D**.", "D"), ("Answer: a", "A"),
     ("A is wrong, so the answer is B", "B"), ("I think it's E", "E"), ("none", None)],
)  # fmt: skip
def test_the_letter_that_a_text_chooses(text, expected):
    assert choice(text) == expected


@pytest.mark.parametrize(
    ("settings", "text", "reference", "why"),
    [
        ("number", "that makes 12", "12", ""),
        ("number", "that makes 12.0", "#### 12", ""),
        ("number", "that makes 13", "12", "wrong number"),
        ("number", "no idea", "12", "no number in it"),
        ("number", "12", "", "no reference to compare with"),
        ("number", "12", "twelve", "no reference to compare with"),
        ("exact", " New  York ", "new york", ""),
        ("exact", "New York City", "New York", "is not the reference"),
        ("choice", "The answer is B.", "B", ""),
        ("choice", "The answer is C.", "B", "wrong choice"),
        ({"regex": r"^\d+$"}, "123", "", ""),
        ({"regex": r"^\d+$"}, "x123", "", "does not match"),
    ],
)
def test_verifiers_keep_right_answers(settings, text, reference, why):
    assert judged("verify", settings, text, reference=reference) == why


SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [('{"name": "Ada", "age": 36}', True), ('```json\n{"name": "Ada", "age": 36.0}\n```', True),
     ('{"name": "Ada", "age": 36, "tags": ["a", "b"]}', True), ('{"name": "", "age": 36}', False),
     ('{"name": "Ada"}', False), ('{"name": "Ada", "age": true}', False), ('{"name": "Ada", "age": 200}', False),
     ('{"name": "Ada", "age": 1, "x": 1}', False), ('{"name": "Ada", "age": 1, "tags": ["c"]}', False),
     ('{"name": "Ada", "age": 1, "tags": ["a", "a", "a"]}', False), ("Sure! {}", False), ("[]", False),
     ("[" * 9999, False)],
)  # fmt: skip
def test_json_is_held_against_the_schema(text, fits):
    why = judged("verify", {"json_schema": SCHEMA}, text)
    assert (why == "") is fits and why in ("", "is not JSON", "does not fit the schema")


@pytest.mark.parametrize(
    "settings",
    [{"regex": "("}, {"json_schema": {"pattern": "a"}}, {"json_schema": {"items": {"anyOf": []}}},
     {"json_schema": {"type": "text"}}],
)  # fmt: skip
def test_a_pattern_or_schema_that_would_not_be_checked_is_refused_before_anything_is_sent(settings, server, tmp_path):
    with pytest.raises(ConfigError, match=r"generate\.select"):
        generate(tmp_path, server.url, select=[{"verify": settings}])
    assert server.seen == []


def test_length_and_repetition():
    assert [judged("length", {"least": 2, "most": 3}, "x" * n) for n in (1, 2, 3, 4)] == [
        "too short",
        "",
        "",
        "too long",
    ]
    loop = "the cat sat " * 20
    assert repeated_share(loop, n_words=4) > 0.9 and repeated_share("a b c", n_words=4) == 0
    assert (
        judged("repetition", {}, loop) == "repeats itself"
        and judged("repetition", {}, "all words differ here now") == ""
    )


def test_every_drop_is_counted_once_at_the_first_step_with_examples(server, tmp_path):
    texts = ["It is 0.", "It is 0.", "It is 2, or 2.", "wrong 5", "It is 6", "it  IS 6", "", "no"]
    server.script = lambda n, body: Action(text=texts[n])
    steps = ["deduplicate", {"verify": "number"}, {"length": {"least": 8}}]
    made = generate(tmp_path, server.url, n=4, samples=2, seed=0, select=steps, api={"concurrency": 1})
    assert {d.step: (d.n, d.reasons) for d in made.card.dropped} == {
        "no_answer": (1, {"empty": 1}),
        "complete": (0, {}),
        "deduplicate": (2, {"equals an earlier answer": 2}),
        "verify": (3, {"no number in it": 1, "wrong number": 2}),
        "length": (0, {}),
    }
    assert sum(d.n for d in made.card.dropped) + made.card.rows == 8
    example = next(d for d in made.card.dropped if d.step == "verify").examples[0]
    assert example["text"] == "wrong 5" and example["prompt"].endswith("prompts.jsonl:2")
    assert generate(tmp_path, server.url, n=4, samples=2, seed=0, select=[]).card.rows == 7 and len(server.seen) == 8
    assert [r["reference"] for r in rows(tmp_path)][:3] == ["0", "0", "2"]


@pytest.mark.parametrize(
    ("select", "message"),
    [({"verify": {"number": True, "exact": True}}, "needs exactly one of number, exact, choice, regex, json_schema"),
     ({}, "length, repetition, deduplicate, decontaminate, language; found none"),
     ("dedupe", "unknown (deduplicate?)"), ({"length": {"least": 5, "most": 2}}, "least 5 is more than most 2")],
)  # fmt: skip
def test_a_wrong_step_is_said_with_its_path(select, message, tmp_path):
    from tests.generation.asking import recipe

    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, "http://127.0.0.1:1/v1", select=[select]))
    assert message in caught.value.message and "generate.select" in caught.value.message


def test_an_article_is_no_choice_and_the_answer_goes_before_an_option():
    found = {
        "The answer is a carbon atom, so it is (B).": "B",
        "Answer: C. Option A is wrong because of the sign.": "C",
        "My choice is D, I believe.": "D",
        "the ANSWER is **E**": "E",
    }
    assert {text: choice(text) for text in found} == found


def test_the_letter_before_an_option_counts_and_not_a_letter_in_its_words():
    found = {
        "C. Vitamin D and rest": "C",
        "(B) I would stay at home": "B",
        "**D)** A person who was kind": "D",
        "A: because I like it": "A",
        "A. is too small.\nB. fits.": "B",
        "A. looks right, but the answer is B": "B",
        "B because I think so": "B",
        "It is B, a thing that I know": "B",
        "A because the others are wrong": "A",
        "A because I like it": "A",
        "I": "I",
        "A": "A",
    }
    assert {text: choice(text) for text in found} == found
