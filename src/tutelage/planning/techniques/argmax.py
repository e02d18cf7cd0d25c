"""The teacher's first choice at each token as the label: hard labels without generation."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import weights as impossible
from tutelage.planning.work import Work

__all__ = ["TITLE", "impossible", "work"]

TITLE = "the teacher's first choice at each token"


def work(facts: Facts) -> Work:
    """As soft labels from a live teacher."""
    return Work(student_training=facts.text.trained, teacher_forward=facts.text.trained)
