"""Co-distillation: the teacher learns from the text in the same steps, and teaches what it knows so far."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import one_teacher as impossible
from tutelage.planning.techniques._recipe import Tree, taught, with_teacher, without_features
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "co-distillation: the teacher learns too"


def work(facts: Facts) -> Work:
    """The teacher trains; its one forward pass also teaches."""
    return Work(student_training=facts.text.trained, teacher_training=facts.text.trained)


def recipe(base: Tree, place: Place) -> Tree:
    """The recipe's own loss, and a teacher that learns the text beside the student."""
    return with_teacher(taught(without_features(base)), train=(base.get("teacher") or {}).get("train") or {})
