"""How a recipe is changed for a technique; every function takes its long form and gives back a changed copy."""

from typing import Any

from tutelage.errors import ConfigError

Tree = dict[str, Any]

GROUND_TRUTH: Tree = {"cross_entropy": "ground_truth", "weight": 1.0}
_OF_WEIGHTS = ("model", "memory", "revision", "dtype", "device", "ensemble", "config", "tokenizer")


def asks_teacher(term: Tree) -> bool:
    """Whether a term of the loss needs what the teacher thinks, and not only what it wrote."""
    return term.get("cross_entropy") != "ground_truth"


def taught(tree: Tree) -> Tree:
    """The recipe as it is, of a teacher that is asked live.

    Raises ConfigError when no term of the loss asks the teacher.
    """
    if not any(asks_teacher(term) for term in tree.get("loss") or ()):
        raise ConfigError("CONFIG", "no term of loss asks the teacher; add one, such as {forward_kl: 1.0}")
    return with_teacher(tree)


def with_teacher(tree: Tree, **more: Any) -> Tree:
    """The teacher's weights alone (no cache, no answers, no training), and what is given."""
    teacher = {name: value for name, value in tree["teacher"].items() if name in _OF_WEIGHTS and value is not None}
    return {**tree, "teacher": {**teacher, **more}, "cache": None, "generate": None}


def on_text(tree: Tree, *, answers: str, teacher: Tree, generate: Tree, loss: list[Tree]) -> Tree:
    """Training on what the teacher writes; measured on the rows that the recipe holds out of its own text."""
    data = tree["data"]
    held_out = data.get("held_out")
    if held_out is not None and held_out.get("sources") is None:
        held_out = {**held_out, "sources": data["sources"]}
    return {
        **tree,
        "teacher": {**teacher, "answers": answers},
        "generate": generate,
        "cache": None,
        "loss": loss,
        "data": {**data, "sources": [{"answers": answers}], "train_on": "answers", "held_out": held_out},
    }
