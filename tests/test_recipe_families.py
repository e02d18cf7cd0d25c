"""Recipes with several students, and with a teacher that trains."""

from tests.recipe_trees import MINIMAL
from tutelage.recipe import load_recipe
from tutelage.recipe.short import TRAINED_TEACHER_WARMUP

FAMILY = {
    "teacher": {"model": "a/teacher", "train": True},
    "student": None,
    "students": {
        "small": {"layers": 20},
        "tiny": {"config": {"hidden_size": 64}, "learning_rate": 1e-3, "start_at_step": 5, "loss": "reverse_kl"},
    },
}


def family(**changes: object) -> dict[str, object]:
    whole = {**MINIMAL, **FAMILY, **changes}
    return {key: value for key, value in whole.items() if value is not None}


def test_a_family_has_its_own_losses_rates_and_starts_and_the_recipes_loss_where_it_says_none() -> None:
    recipe = load_recipe(family())
    small, tiny = recipe.learners["small"], recipe.learners["tiny"]
    assert [term.name for term in small.loss] == [term.name for term in recipe.loss or ()]
    assert (small.learning_rate, small.first_step) == (None, 0)
    assert [term.name for term in tiny.loss] == ["reverse_kl"]
    assert (tiny.learning_rate, tiny.first_step) == (1e-3, 5)
    assert recipe.trains_teacher
    assert load_recipe(recipe.resolved()) == recipe


def test_what_a_trained_teacher_teaches_warms_up_unless_the_weight_says_otherwise() -> None:
    terms = [{"divergence": "forward_kl", "weight": 0.5}, {"cross_entropy": "ground_truth", "weight": 0.5}]

    def warmups(**changes: object) -> list[float]:
        return [term.weight.warmup for term in load_recipe(family(**changes)).learners["small"].loss]

    assert warmups(loss=terms) == [TRAINED_TEACHER_WARMUP, 0.0]
    assert warmups(loss=terms, teacher="a/teacher") == [0.0, 0.0]
    said = {"schedule": "constant", "start": 0.5, "warmup": 0.0}
    assert warmups(loss=[{**terms[0], "weight": said}, terms[1]]) == [0.0, 0.0]
    assert warmups(loss=[{**terms[0], "trust": "progress"}, terms[1]]) == [0.0, 0.0]


def test_a_teacher_from_nothing_is_trusted_by_its_progress_unless_the_term_says_otherwise() -> None:
    terms = [{"divergence": "forward_kl", "weight": 0.5}, {"cross_entropy": "ground_truth", "weight": 0.5}]
    teacher = {"config": {"hidden_size": 64}, "tokenizer": "a/teacher", "train": True}

    def rules(first: dict[str, object]) -> list[tuple[str, float]]:
        recipe = load_recipe(
            family(loss=[first, terms[1]], teacher=teacher, students=None, student={"config": {"hidden_size": 32}})
        )
        assert load_recipe(recipe.resolved()) == recipe
        return [(term.trust, term.weight.warmup) for term in recipe.learners["student"].loss]

    assert rules(terms[0]) == [("progress", 0.0), ("always", 0.0)]
    first_choices = {"cross_entropy": "teacher_argmax", "weight": 0.5}
    assert rules(first_choices) == [("always", TRAINED_TEACHER_WARMUP), ("always", 0.0)]
    assert rules({**terms[0], "trust": "always"}) == [("always", TRAINED_TEACHER_WARMUP), ("always", 0.0)]
    assert rules({**terms[0], "trust": "per_token"}) == [("per_token", 0.0), ("always", 0.0)]
    said = {"schedule": "constant", "start": 0.5, "warmup": 0.0}
    assert rules({**terms[0], "weight": said}) == [("always", 0.0), ("always", 0.0)]
