"""Soft labels from a teacher cache: the teacher is asked once, whatever the epochs and the number of runs."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import weights as impossible
from tutelage.planning.work import Work

__all__ = ["TITLE", "impossible", "work"]

TITLE = "soft labels from a cache"


def work(facts: Facts) -> Work:
    """A forward pass for each token that is there, held-out ones too; every draw is stored."""
    text = facts.text
    return Work(
        student_training=text.trained,
        teacher_forward=text.unique + text.held_out,
        stored=text.learned * facts.draws,
    )
