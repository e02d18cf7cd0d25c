"""Text that the teacher writes, with the log-probabilities of its likeliest tokens: soft labels from an endpoint."""

from tutelage.errors import ConfigError
from tutelage.planning.facts import Facts
from tutelage.planning.techniques import hard
from tutelage.planning.techniques._needs import a_teacher, no_layers
from tutelage.planning.techniques._recipe import Tree, asks_teacher, on_text
from tutelage.planning.work import Place, Work

TITLE = "text with the log-probabilities of an endpoint"


def work(facts: Facts) -> Work:
    """As hard labels; what came with the answers is stored."""
    written = hard.work(facts)
    return Work(
        student_training=written.student_training,
        prompt=written.prompt,
        answer=written.answer,
        stored=written.answer,
    )


def impossible(facts: Facts) -> str:
    """An endpoint has to give log-probabilities; of a teacher that is here they are whole (soft, cached)."""
    if reason := a_teacher(facts):
        return reason
    if facts.endpoint is None:
        return "is for a teacher behind an endpoint; this one gives whole distributions: soft, cached"
    if not facts.endpoint.top_logprobs:
        return "needs log-probabilities from the endpoint; where it gives them, set generate.top_logprobs"
    return no_layers(facts)


def recipe(base: Tree, place: Place) -> Tree:
    """As hard labels and of the same answers, with the log-probabilities that come with the text as soft ones."""
    if base["training"].get("early_stop") is not None:
        raise ConfigError(
            "CONFIG", "the endpoint says nothing of the held-out text, whose loss training.early_stop follows"
        )
    terms = [term for term in base["loss"] if asks_teacher(term)] or [{"divergence": "forward_kl"}]
    generate = hard.generate_of(base, place)
    teacher = {"api": base["teacher"]["api"]}
    base = {**base, "training": {**base["training"], "evaluate_every": None}}
    return on_text(base, answers=place.answers, teacher=teacher, generate=generate, loss=terms)
