"""Terms with features in a recipe: short forms, what they mean written out, and every mistake with its way out."""

import json
from typing import Any

import pytest

from tests.recipe_trees import MINIMAL, error_of, problems
from tutelage import plugins
from tutelage.losses.feature_sums import FOLDER
from tutelage.losses.names import FEATURES
from tutelage.recipe import load_recipe
from tutelage.training.plan import terms_of

HIDDEN, RELATIONS = {"features": "hidden_states"}, {"features": "attention_relations"}


def with_terms(*terms: Any, **changes: Any) -> dict[str, Any]:
    return {**MINIMAL, "loss": ["forward_kl", *terms], **changes}


def test_every_file_of_a_feature_is_an_option_of_the_recipe():
    assert plugins.names(FOLDER) == tuple(sorted(FEATURES))


@pytest.mark.parametrize("short", ["hidden_states", {"hidden_states": 1.0}, {**HIDDEN, "layers": "auto"}, HIDDEN])
def test_a_name_is_the_term_with_its_defaults(short):
    term = load_recipe(with_terms(short)).loss[1]
    assert (term.layers, term.distance, term.projection, term.weight.start) == ("auto", "cosine", False, 1.0)
    assert term.relation_heads is None
    assert load_recipe(with_terms("attention_relations")).loss[1].relation_heads == "auto"


def test_a_map_of_layers_survives_json_and_reaches_the_trainer():
    recipe = load_recipe(with_terms({**HIDDEN, "layers": {0: 3, "2": 7}, "distance": "mse"}))
    again = load_recipe(json.loads(json.dumps(recipe.resolved())))
    assert again.loss == recipe.loss
    assert again.fingerprint() == recipe.fingerprint()
    soft_term, feature = terms_of(recipe.loss)
    assert feature.name == "hidden_states"
    assert feature.feature.layers == ((0, 3), (2, 7))
    assert feature.feature.settings == {"distance": "mse", "projection": False}
    assert soft_term.feature is None


def test_the_pairs_are_written_in_a_file_as_in_the_guide(tmp_path):
    """A key that YAML reads as a number is a name, in flow style, in block style and in an override."""
    head = "teacher: a/b\nstudent: c/d\ndata: {sources: [{text: x.txt}]}\ntraining: {steps: 1}\n"
    for n, loss in enumerate((
        "loss: [forward_kl, {features: hidden_states, layers: {0: 1, 9: 19}}]\n",
        "loss:\n- forward_kl\n- features: hidden_states\n  layers:\n    0: 1\n    9: 19\n",
    )):  # fmt: skip
        path = tmp_path / f"{n}.yaml"
        path.write_text(head + loss)
        assert load_recipe(path).loss[1].layers == ((0, 1), (9, 19))
        assert load_recipe(path, ["loss[1].layers={2: 3}"]).loss[1].layers == ((2, 3),)


BROKEN: list[tuple[dict[str, Any], str]] = [
    (with_terms({**HIDDEN, "layers": {0: "x"}}),
     "loss[1].layers must be auto, or pairs of layers from 0 such as {0: 1, 1: 3}, got [[0, 'x']]"),
    (with_terms({**HIDDEN, "layers": [[0, 1], [0, 2]]}),
     "loss[1].layers names a layer of the student twice; each has one layer to follow"),
    (with_terms({**RELATIONS, "layers": {0: 1, 1: 2}}),
     "loss[1].layers must be one pair for attention_relations (arXiv:2012.15828), got 2"),
    (with_terms({**HIDDEN, "relation_heads": 2}),
     "loss[1].relation_heads has no effect with hidden_states; remove it"),
    (with_terms({**HIDDEN, "temperature": 2.0}), "loss[1].temperature has no effect with features; remove it"),
    (with_terms({**HIDDEN, "trust": "per_token"}), "loss[1].trust has no effect with features; remove it"),
    (with_terms({"cross_entropy": "ground_truth", "layers": "auto"}),
     "loss[1].layers has no effect without features; remove it"),
    ({**MINIMAL, "loss": ["hidden_states"]},
     "loss has only terms with features, which train no head; add one, such as forward_kl"),
    (with_terms("hidden_states", {**HIDDEN, "layers": {0: 1}}),
     "loss[2] repeats loss[1] (hidden_states); one term with the sum of the weights is the same"),
    (with_terms(HIDDEN, teacher={"model": "a/b", "cache": "c"}),
     "loss[1].features asks for the teacher's layers, and a cache holds its distributions alone; remove teacher.cache"),
    (with_terms(HIDDEN, teacher={"model": "a/b", "train": True}),
     "loss[1].features asks for the teacher's layers, and they change while it trains; leave teacher.train out"),
    (with_terms(HIDDEN, teacher={"ensemble": [{"model": "a/b"}, {"model": "c/d"}]}, student="a/b"),
     "loss[1].features asks for the teacher's layers, and there are several; name one as teacher.model"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "message"), BROKEN, ids=[message[:60] for _, message in BROKEN])
def test_a_mistake_is_one_line_with_its_path_and_the_way_out(recipe, message):
    assert problems(recipe) == [part for part in message.split("; ") if not part.startswith("remove it")]


def test_text_and_other_students_have_no_layers_to_show():
    answers = {"answers": "a"}
    assert "answers are text; name teacher.model" in error_of(
        {"loss": ["ground_truth", HIDDEN], "teacher": answers, "student": "a/b", "data": {"held_out": None}}
    )
    family = {"a": {"layers": 2}, "b": {"layers": 1}}
    (line,) = problems({**with_terms({**HIDDEN, "teacher": "a"}, students=family), "student": None})[:1]
    assert line == "loss[1].teacher cannot be a student with features: they follow the recipe's teacher"
