"""The teacher's first choice at each token as the label: hard labels without generation."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import weights
from tutelage.planning.techniques._recipe import Tree, asks_teacher, taught
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "the teacher's first choice at each token"


def work(facts: Facts) -> Work:
    """As soft labels from a live teacher."""
    return Work(student_training=facts.text.trained, teacher_forward=facts.text.trained)


def impossible(facts: Facts) -> str:
    """A live teacher."""
    return weights(facts)


def recipe(base: Tree, place: Place) -> Tree:
    """Each term that asks for the teacher's distribution asks for its first choice, with the same weight.

    Terms that follow its layers stay.
    """
    tree = taught(base)
    about_words = [term for term in tree["loss"] if asks_teacher(term) and term.get("features") is None]
    first = [{"cross_entropy": "teacher_argmax", "weight": term["weight"]} for term in about_words]
    return {**tree, "loss": [*first[:1], *(term for term in tree["loss"] if term not in about_words)]}
