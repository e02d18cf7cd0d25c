"""Soft labels from a teacher cache: the teacher is asked once, whatever the epochs and the number of runs."""

from tutelage.cache.calibrate import SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_SHARE
from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import no_layers, one_teacher
from tutelage.planning.techniques._recipe import Tree, taught, with_teacher
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "soft labels from a cache"


def work(facts: Facts) -> Work:
    """A forward pass for each token that is there or that the run reads, held-out ones too; every draw is stored."""
    text = facts.text
    asked = min(text.unique, text.trained) if facts.caches_run else text.unique
    return Work(
        student_training=text.trained,
        teacher_forward=asked + text.held_out,
        stored=asked * text.trained_share * facts.draws,
        sampled=_sample(asked) + _sample(text.held_out),
    )


def _sample(n: float) -> float:
    """Of so many tokens those that `label` asks about first, to fit the codec."""
    return min(n, max(SAMPLE_LEAST, min(SAMPLE_SHARE * n, SAMPLE_MOST)))


def impossible(facts: Facts) -> str:
    """`label` asks one teacher, for distributions; the caches of several are merged."""
    reason = one_teacher(facts)
    if not reason:
        return no_layers(facts)
    return f"{reason}; label each by itself, then tutelage cache merge" if reason and facts.members > 1 else reason


def recipe(base: Tree, place: Place) -> Tree:
    """The recipe's own loss, and its own way to store, or the default; of the rows those that the run reads."""
    dropped = base["data"].get("missing_soft") == "drop"  # which rows are read then is known only to the cache
    cache = {**(base.get("cache") or {}), **({} if dropped else {"rows": "run"})}
    return {**with_teacher(taught(base), cache=place.cache), "cache": cache}
