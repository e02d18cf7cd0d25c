"""What no single field can know of the terms that compare layers; see `rules.py`."""

from collections.abc import Iterator

from tutelage.losses.names import FEATURES
from tutelage.recipe.problems import Path, Problem
from tutelage.recipe.tree import Tree, all_students, all_terms, dead, given_in, items_of, section_of

_OWN = tuple(dict.fromkeys(name for names in FEATURES.values() for name in names))
_OF_OTHERS = ("temperature", "beta", "alpha")
_NO_LAYERS = {  # of a teacher, and what is wrong with it
    "answers": "answers are text; name teacher.model",
    "cache": "a cache holds its distributions alone; remove teacher.cache",
    "ensemble": "there are several; name one as teacher.model",
    "train": "they change while it trains; leave teacher.train out",
}


def broken_feature(term: Tree, path: Path) -> Iterator[Problem]:
    """Fields of a term that its kind does not read, and layers that are named twice."""
    kind = term.get("features")
    if kind is None:
        for name in given_in(term, "layers", *_OWN):
            yield dead((*path, name), "without features")
        return
    for name in given_in(term, *_OF_OTHERS):
        yield dead((*path, name), "with features")
    if isinstance(kind, str) and kind in FEATURES:
        for name in given_in(term, *_OWN):
            if name not in FEATURES[kind]:
                yield dead((*path, name), f"with {kind}")
    yield from _pairs(term, (*path, "layers"))


def _pairs(term: Tree, path: Path) -> Iterator[Problem]:
    layers = term.get("layers")
    pairs = [pair for pair in layers if isinstance(pair, list) and len(pair) == 2] if isinstance(layers, list) else []
    own = [repr(pair[0]) for pair in pairs]
    if len(set(own)) < len(own):
        yield Problem(path, "names a layer of the student twice; each has one layer to follow")
    if term.get("features") == "attention_relations" and len(pairs) > 1:
        yield Problem(path, f"must be one pair for attention_relations (arXiv:2012.15828), got {len(pairs)}")


def broken_features(tree: Tree) -> Iterator[Problem]:
    """Whom terms with `features` can learn from, and that they stand beside one that trains the head."""
    teacher = section_of(tree, "teacher")
    for path, term in all_terms(tree):
        if term.get("features") is None:
            continue
        if term.get("teacher") is not None:
            yield Problem((*path, "teacher"), "cannot be a student with features: they follow the recipe's teacher")
        for name in given_in(teacher, *_NO_LAYERS):
            if name == "answers" and given_in(teacher, "model", "memory"):
                continue
            yield Problem((*path, "features"), f"asks for the teacher's layers, and {_NO_LAYERS[name]}")
            break
        else:
            if given_in(teacher, "api", "writers"):
                yield Problem((*path, "features"), "asks for the teacher's layers, and an endpoint gives text")
        if section_of(tree, "training").get("compile") is True:
            why = "what a compiled layer computes inside cannot be looked at; leave one out"
            yield Problem((*path, "features"), f"and training.compile exclude each other: {why}")
    losses: list[tuple[Path, Tree]] = [(("loss",), tree)]
    losses += [((*path, "loss"), student) for path, student in all_students(tree)]
    for path, owner in losses:
        terms = [term for _, term in items_of(owner, "loss")]
        if terms and all(term.get("features") is not None for term in terms):
            yield Problem(path, "has only terms with features, which train no head; add one, such as forward_kl")
