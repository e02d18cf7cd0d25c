"""A recipe in its long form before its types are checked: how the rules read it, and what several of them say."""

from collections.abc import Iterator
from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.recipe.problems import Path, Problem, is_finite, section_at

Tree = dict[str, Any]

COPIES = ("layers", "width")  # of a student that is made of the teacher's weights
STARTS = (*COPIES, "model", "config", "memory")  # what a student begins as: one of them, or both copies


def section_of(tree: Tree, name: str) -> Tree:
    """A section as a mapping, empty where there is none."""
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def items_of(tree: Tree, name: str) -> list[tuple[int, Tree]]:
    """The mappings of a list with their places."""
    value = tree.get(name)
    return [(i, v) for i, v in enumerate(value) if isinstance(v, dict)] if isinstance(value, list) else []


def given_in(section: Tree, *names: str) -> list[str]:
    """Those of the names that a section gives."""
    return [name for name in names if section.get(name) is not None]


def exactly_one(section: Any, *names: str, path: Path) -> Iterator[Problem]:
    """One kind must be chosen; a name that is misspelt is said on its own."""
    expected = section_at(path)
    if not isinstance(section, dict) or expected is None:
        return
    given = given_in(section, *names)
    misspelt = not given and section.keys() - expected.model_fields.keys()
    if len(given) != 1 and not misspelt:
        known = ", ".join(name for name in names if name != "memory")
        found = f"found {' and '.join(given)}" if given else "found none"
        yield Problem(path, f"needs exactly one of {known}; {found}")


def dead(path: Path, why: str) -> Problem:
    """A field that nothing reads here."""
    return Problem(path, f"has no effect {why}; remove it")


def all_students(tree: Tree) -> list[tuple[Path, Tree]]:
    """Each student with its path, the one of `student` or those of `students`."""
    alone = tree.get("student")
    found: list[tuple[Path, Tree]] = [(("student",), alone)] if isinstance(alone, dict) else []
    return found + [(("students", n), s) for n, s in section_of(tree, "students").items() if isinstance(s, dict)]


def all_terms(tree: Tree) -> list[tuple[Path, Tree]]:
    """Each term of a loss with its path: the recipe's, then those that students have of their own."""
    found: list[tuple[Path, Tree]] = [(("loss", i), term) for i, term in items_of(tree, "loss")]
    for path, student in all_students(tree):
        found += [((*path, "loss", i), term) for i, term in items_of(student, "loss")]
    return found


def shares(section: Tree, path: Path) -> Iterator[Problem]:
    """Warm-up and decay together are at most the whole run."""
    warmup, decay = section.get("warmup", 0.0), section.get("decay")
    decay = 0.2 if decay is None and section.get("schedule") == "wsd" else decay
    if is_finite(warmup) and is_finite(decay) and warmup < 1 and decay < 1 < warmup + decay:
        yield Problem((*path, "warmup"), f"and decay together must be <= 1, got {warmup} + {decay}")
