"""Plain fine-tuning on the text: what every technique is compared with."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._recipe import GROUND_TRUTH, Tree, with_teacher
from tutelage.planning.work import Place, Work

TITLE = "the text alone, no teacher"


def work(facts: Facts) -> Work:
    """Each student trains; nobody else computes."""
    return Work(student_training=facts.text.trained)


def impossible(facts: Facts) -> str:
    """It needs nothing but text."""
    return ""


def recipe(base: Tree, place: Place) -> Tree:
    """The truth is the only term; a teacher that is here stays, to measure how far from it this leads."""
    teacher = base.get("teacher")
    if teacher is not None and teacher.get("api") is not None:
        return {**base, "teacher": None, "generate": None, "loss": [GROUND_TRUTH]}
    kept = with_teacher(base) if teacher is not None else base
    return {**kept, "loss": [GROUND_TRUTH]}
