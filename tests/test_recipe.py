"""Recipes: the resolved recipe is the recipe; files, overrides and secrets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recipe_trees import (
    CHAT,
    MINIMAL,
    data,
    loss,
    problems,
    training,
)
from tutelage.errors import ConfigError
from tutelage.losses.names import DIVERGENCES
from tutelage.recipe import LossTerm, Recipe, Schedule, dump, json_schema, load_recipe
from tutelage.recipe.text import parse


def test_missing_sections_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe({})
    for name in ("student", "data", "loss", "training"):
        assert f"{name} is missing" in caught.value.message


GOOD: list[dict[str, Any]] = [
    {},
    {"loss": ["forward_kl", {"ground_truth": 0.1}]},
    {"loss": {"jensen_shannon": {"schedule": "wsd", "start": 1.0, "end": 0.1}}},
    {"loss": [{"divergence": "skew_kl", "alpha": 0.3, "temperature": {"schedule": "cosine", "start": 4, "end": 1}}]},
    {"loss": "teacher_argmax", "control": True},
    {"loss": "ground_truth", "teacher": None, "student": "org/model"},
    {"student": {"layers": [0, 2, 29]}, "control": True},
    {"student": {"layers": {"evenly": 15}}},
    {"student": {"config": {"model_type": "llama", "hidden_size": 320}}},
    {"teacher": {"memory": "f00"}, "student": {"memory": "ba5"}, "data": {"sources": [{"memory": "da7a"}]}},
    {"data": {**CHAT, "train_on": "answers", "chat_template": "{% for m in messages %}{% endfor %}"}},
    {"data": {"sources": ["python_docs", {"jsonl": "a.jsonl"}], "held_out": [{"text": ["x.txt", "y.txt"]}]}},
    {"data": {"sources": [{"text": "a.txt", "weight": 3}, "python_docs"], "held_out": None, "max_length": 256}},
    {"training": {"epochs": 1, "schedule": "constant", "betas": [0.9, 0.99], "precision": "bf16", "batch_tokens": 512}},
    {"training": {"steps": 1e3, "evaluate_every": 200_000, "early_stop": {"patience": 2}, "max_grad_norm": None}},
    {"evaluation": {"prompts": "The capital of France is", "out_of_domain": [{"text": "o.txt", "name": "other"}]}},
    {"data": {"sources": ["python_docs"], "held_out": [CHAT["sources"][0]], "chat_template": "{{ messages }}"}},
    {"data": {"sources": ["python_docs"], "train_on": "answers"}, "evaluation": {"out_of_domain": CHAT["sources"]}},
]


@pytest.mark.parametrize("changes", GOOD, ids=range(len(GOOD)))
def test_the_resolved_recipe_is_the_same_recipe_in_every_form(changes: dict[str, Any]) -> None:
    recipe = load_recipe({**MINIMAL, **changes})
    resolved = recipe.resolved()
    assert load_recipe(resolved) == recipe
    assert load_recipe(recipe) == recipe
    assert load_recipe(yaml.safe_load(dump(resolved))).fingerprint() == recipe.fingerprint()
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved


def test_short_forms_stand_for_their_long_forms() -> None:
    short = load_recipe({**MINIMAL, "loss": {"jensen_shannon": 0.9}})
    long = load_recipe(
        {
            "teacher": {"model": MINIMAL["teacher"], "revision": None, "dtype": "auto"},
            "student": {"layers": {"important": 20}},
            "data": {"sources": [{"text": ["corpus/*.txt"], "weight": 1}], "held_out": {"share": 0.02}},
            "loss": [
                {
                    "divergence": "jensen_shannon",
                    "beta": 0.5,
                    "weight": {"schedule": "constant", "start": 0.9},
                    "temperature": 1,
                }
            ],
            "training": {"tokens": 2e6, "schedule": "wsd", "decay": 0.2},
        }
    )
    assert short == long
    assert short.fingerprint() == long.fingerprint()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_an_option_with_exactly_its_parameters(name: str) -> None:
    (term,) = load_recipe({**MINIMAL, "loss": name}).loss
    assert term.name == name
    assert term.needs_teacher
    assert {p for p in ("alpha", "beta") if getattr(term, p) is not None} == set(DIVERGENCES[name])


@settings(max_examples=60, deadline=None)
@given(
    weight=st.floats(0, 1e6, exclude_min=True),
    temperature=st.floats(1e-6, 1e3),
    rate=st.floats(1e-12, 10),
    seed=st.integers(0, 2**63),
)
def test_every_number_survives_the_way_through_yaml(weight: float, temperature: float, rate: float, seed: int) -> None:
    recipe = load_recipe(
        {**MINIMAL, **loss(weight=weight, temperature=temperature), **training(learning_rate=rate, seed=seed)}
    )
    assert load_recipe(parse(dump(recipe.resolved()))) == recipe


@pytest.mark.parametrize(
    "word", ["1e3", "1E3", "no", "12:30", "010", "1_0", "~", "", "<<", "=", ".5", "2001-01-01", "é\n"]
)
def test_text_stays_text_for_both_ways_of_reading_yaml(word: str) -> None:
    tree = {"evaluation": {"prompts": [word]}, word or "x": {"learning_rate": 1e-5, "tokens": 2_000_000}}
    assert parse(dump(tree)) == tree
    assert yaml.safe_load(dump(tree)) == tree


def test_any_changed_field_changes_the_fingerprint() -> None:
    changes = [{}, *GOOD[1:], training(seed=1), training(device="cpu"), loss(weight=0.5), data(max_length=256)]
    fingerprints = [load_recipe({**MINIMAL, **change}).fingerprint() for change in changes]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(f) == 64 for f in fingerprints)


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


FILE = """
teacher: org/teacher
student: {layers: 20}
data:
  sources: [{text: corpus/*.txt}]
loss:
  - {forward_kl: 0.9}
training: {tokens: 2_000_000, learning_rate: 1e-3}
"""


def test_a_file_is_read_as_people_read_it(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, FILE))
    assert recipe.training.learning_rate == 1e-3  # YAML 1.1 would make text of it
    assert recipe.training.tokens == 2_000_000
    assert recipe.data.sources[0].text == (str(tmp_path / "corpus/*.txt"),)
    assert recipe.loss == (
        LossTerm(
            divergence="forward_kl",
            weight=Schedule(schedule="constant", start=0.9),
            temperature=Schedule(schedule="constant", start=1.0),
        ),
    )


def test_relative_places_count_from_the_recipe_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = write(tmp_path, FILE.replace("org/teacher", "mine"))
    assert load_recipe(path).teacher == load_recipe({**MINIMAL, "teacher": str(tmp_path / "mine")}).teacher
    resolved = load_recipe(path, ["teacher=./x.gguf", "student=org/other"])
    assert resolved.teacher is not None
    assert resolved.teacher.model == str(tmp_path / "x.gguf")
    assert resolved.student.model == "org/other"


BAD_FILES = [
    ("a: 1\nb: 2\na: 3\n", "line 3: a already stands in line 1; keep one"),
    ("training:\n  seed: 1\n  seed: 2\n", "line 3: seed already stands in line 2; keep one"),
    ("a: [1\n", "line 2, column 1: not YAML: expected ',' or ']', but got '<stream end>'"),
    ("a:\n\t- 1\n", "line 2, column 1: not YAML: found character '\\t' that cannot start any token"),
    ("1.5: 2\n", "line 1: a field's name must be text"),
    ("a: {7: 1, 7: 2}\n", "line 1: 7 already stands in line 1; keep one"),
    ("a: &x [*x]\n", "line 1: an alias contains itself"),
    (
        "a: " + "9" * 5000 + "\n",
        "a number cannot be read: Exceeds the limit (4300 digits) for integer string conversion",
    ),
    ("a: !!python/object:os.system x\n", None),
    ("a: !!timestamp 2001-01-01\nb: *nope\n", None),
    ("", ": holds nothing; expected sections such as teacher, student, data, loss"),
    ("- a\n", ": holds a list; expected sections such as teacher, student, data, loss"),
    ("a: \x07\n", None),
    ("[" * 600, "nested too deeply"),
    (
        "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "aliases stand for more than 100000 values; write them out",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_file_that_is_no_recipe_is_refused_with_its_place(tmp_path: Path, text: str, message: str | None) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.code == "CONFIG"
    assert "\n" not in str(caught.value)
    assert caught.value.message.startswith(str(path))
    if message is not None:
        assert caught.value.message.removeprefix(str(path)).strip() == message


def test_missing_folder_and_foreign_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not found; write a first one: tutelage init soft"):
        load_recipe(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="a folder; expected a recipe file"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"teacher: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 \\(byte 0xe9 at offset 12\\)"):
        load_recipe(tmp_path / "latin.yaml")


def test_words_and_numbers_have_no_yaml_1_1_surprises(tmp_path: Path) -> None:
    text = FILE + "evaluation:\n  prompts: [no, on, 12:30, 2001-01-01]\n  rows: 010\n"
    evaluation = load_recipe(write(tmp_path, text)).evaluation
    assert evaluation.prompts == ("no", "on", "12:30", "2001-01-01")
    assert evaluation.rows == 10


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = FILE.replace(
        "training: {", "training:\n  <<: &base {seed: 3, batch_tokens: 1024}\n  seed: 4\n  tokens: 1e6\n#"
    )
    training = load_recipe(write(tmp_path, text)).training
    assert (training.seed, training.batch_tokens, training.tokens) == (4, 1024, 1_000_000)


def test_an_override_reaches_any_field_also_inside_a_short_form(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    recipe = load_recipe(
        path,
        [
            "teacher.dtype=float32",
            "loss.0.temperature=2",
            "loss[0].weight=0.25",
            "training.learning_rate=3e-4",
            "training.tokens=null",
            "training.steps=7",
            "data.sources=[{jsonl: a.jsonl, text: body}]",
            "data.held_out={share: 0.5}",
            "evaluation.prompts=[a, b]",
        ],
    )
    assert recipe.teacher is not None
    assert (recipe.teacher.model, recipe.teacher.dtype) == ("org/teacher", "float32")
    (term,) = recipe.loss
    assert term.temperature is not None
    assert (term.temperature.start, term.weight.start) == (2, 0.25)
    assert (recipe.training.learning_rate, recipe.training.tokens, recipe.training.steps) == (3e-4, None, 7)
    assert recipe.data.sources[0].columns is not None
    assert recipe.data.sources[0].columns.text == "body"
    assert recipe.data.held_out is not None
    assert recipe.data.held_out.share == 0.5
    assert recipe.evaluation.prompts == ("a", "b")


def test_an_override_of_the_kind_takes_its_defaults_along() -> None:
    (term,) = load_recipe({**MINIMAL, "loss": ["jensen_shannon"]}, ["loss.0.divergence=forward_kl"]).loss
    assert (term.name, term.beta) == ("forward_kl", None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr=1", "training.lr unknown (learning_rate?)"),
        ("loss.3.weight=1", "loss[3].weight cannot be set: there is no [3]: the list has 1"),
        ("control.x=1", "control.x cannot be set: x does not fit: there stands a bool"),
        ("training.tokens=abc", "training.tokens must be a whole number >= 1, got 'abc'"),
        ("student.layers=", "student needs exactly one of layers, width, model, config"),
    ],
)
def test_a_wrong_override_is_listed_like_any_mistake(override: str, message: str) -> None:
    assert problems({**MINIMAL, "control": False}, override)[0] == message


@pytest.mark.parametrize("override", ["training.tokens", "=3", "a b=3", "../x=1", "training..x=1"])
def test_what_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not section\.field=value"):
        load_recipe(MINIMAL, [override])
    with pytest.raises(ConfigError, match="the value is line 1"):
        load_recipe(MINIMAL, ["training.tokens=[1"])


def places(tree: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for name, value in inner for place in places(value, (*path, name)))]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(sorted(DIVERGENCES)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("start"), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(choice=st.data())
def test_whatever_stands_in_a_recipe_it_is_accepted_or_refused_in_one_line(choice: st.DataObject) -> None:
    tree = load_recipe({**MINIMAL, **choice.draw(st.sampled_from(GOOD))}).resolved()
    path = choice.draw(st.sampled_from(places(tree)[1:]))
    *above, last = path
    holder: Any = tree
    for part in above:
        holder = holder[part]
    holder[last] = choice.draw(ANYTHING)
    try:
        recipe = load_recipe(tree)
    except ConfigError as error:
        assert error.code in ("CONFIG", "KEY_IN_CONFIG")
        assert "\n" not in str(error)
    else:
        assert load_recipe(recipe.resolved()) == recipe


CANARY = "sk-proj-canary0123456789abcdefgh"


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": {"api": {"api_key": "short"}}},
        {"data": {"sources": [{"jsonl": "s3://user:short@bucket/a.jsonl"}]}},
        {"data": {"sources": [{"jsonl": "https://h/a.jsonl?X-Amz-Signature=short&a=b"}]}},
        {"teacher": {"model": "a", "hf_token": CANARY}},
        {"data": {"sources": [{"text": CANARY}]}},
        {"tracker": {"password": CANARY}},
        {"student": {"config": {"secret": CANARY}}, "nope": CANARY},
    ],
)
def test_a_literal_key_is_refused_and_never_shown(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe({**MINIMAL, **changes}, ["training.tokens=abc"])
    assert caught.value.code == "KEY_IN_CONFIG"
    assert "holds a literal key; use an environment variable" in caught.value.message
    assert CANARY not in caught.value.message
    assert "short" not in caught.value.message


def test_token_names_of_a_model_config_are_no_secrets() -> None:
    load_recipe({**MINIMAL, "student": {"config": {"model_type": "llama", "pad_token": "<pad>", "eos_token": "</s>"}}})


def test_recipes_cannot_be_changed() -> None:
    recipe = load_recipe(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.seed = 3


def test_reading_a_recipe_imports_no_torch() -> None:
    code = (
        "import sys, tutelage; tutelage.load_recipe(%r); tutelage.Recipe; "
        "sys.exit(sorted(m for m in ('torch', 'transformers', 'numpy') if m in sys.modules).__repr__() != '[]')"
    )
    assert subprocess.run([sys.executable, "-c", code % MINIMAL], check=False).returncode == 0


def test_the_schema_for_editors_knows_short_forms_and_all_fields() -> None:
    schema: Any = json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert {"type": "string"} in schema["properties"]["teacher"]["anyOf"]
    assert schema["$defs"]["Layers"]["additionalProperties"] is False
    assert list(DIVERGENCES) in [
        option.get("enum") for option in schema["$defs"]["LossTerm"]["properties"]["divergence"]["anyOf"]
    ]


def test_changing_a_field_of_one_section_leaves_the_other_sections_as_they_are():
    written = {
        "teacher": {"model": "some/teacher", "cache": "cache"}, "student": {"layers": 2}, "loss": "forward_kl",
        "data": {"sources": [{"text": "a.txt"}]}, "training": {"steps": 1}, "cache": {"bytes_per_token": 32},
    }  # fmt: skip
    changed = load_recipe(written, ["teacher.dtype=float32", "teacher.cache=other"])
    assert changed.cache is not None and changed.cache.bytes_per_token == 32
