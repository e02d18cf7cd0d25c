"""Plain fine-tuning on the text: what every technique is compared with."""

from tutelage.planning.facts import Facts
from tutelage.planning.work import Work

TITLE = "the text alone, no teacher"


def work(facts: Facts) -> Work:
    """Each student trains; nobody else computes."""
    return Work(student_training=facts.text.trained)


def impossible(facts: Facts) -> str:
    """It needs nothing but text."""
    return ""
