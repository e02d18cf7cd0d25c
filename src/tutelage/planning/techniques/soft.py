"""Soft labels from a live teacher: it is asked about every token that the students train on."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import weights as impossible
from tutelage.planning.techniques._recipe import Tree, taught
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "soft labels, the teacher live"


def work(facts: Facts) -> Work:
    """A forward pass of the teacher for each token, in every epoch; several students share it."""
    return Work(student_training=facts.text.trained, teacher_forward=facts.text.trained)


def recipe(base: Tree, place: Place) -> Tree:
    """The recipe's own loss."""
    return taught(base)
