"""Co-distillation: the teacher learns from the text in the same steps, and teaches what it knows so far."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import no_layers, one_teacher
from tutelage.planning.techniques._recipe import Tree, taught, with_teacher
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "co-distillation: the teacher learns too"


def work(facts: Facts) -> Work:
    """The teacher trains; its one forward pass also teaches."""
    return Work(student_training=facts.text.trained, teacher_training=facts.text.trained)


def impossible(facts: Facts) -> str:
    """One teacher, whose layers nobody follows while they change."""
    return one_teacher(facts) or no_layers(facts)


def recipe(base: Tree, place: Place) -> Tree:
    """The recipe's own loss, and a teacher that learns the text beside the student, and computes as it does."""
    tree = with_teacher(taught(base), train=(base.get("teacher") or {}).get("train") or {})
    as_students = {name: value for name, value in tree["teacher"].items() if name not in ("dtype", "device")}
    return {**tree, "teacher": as_students}
