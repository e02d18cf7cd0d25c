"""Hard labels: the teacher writes, the students train on its text."""

import math

from tutelage.errors import ConfigError
from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import a_teacher as impossible
from tutelage.planning.techniques._recipe import GROUND_TRUTH, Tree, on_text
from tutelage.planning.work import Place, Work

__all__ = ["TITLE", "impossible", "recipe", "work"]

TITLE = "text that the teacher writes"
_PROMPT_TOKENS = 64


def work(facts: Facts) -> Work:
    """As much text as the data hold, each begun by the data and gone on with by the teacher."""
    written = facts.text.written_share
    prompt = (facts.prompt_share if written is None else 1.0 - written) * facts.text.unique
    return Work(student_training=facts.text.trained, prompt=prompt, answer=facts.text.unique - prompt)


def recipe(base: Tree, place: Place) -> Tree:
    """The teacher goes on from the beginnings of the training texts, or answers their questions."""
    teacher = base["teacher"]
    if teacher.get("api") is not None:
        writer = {"api": teacher["api"]}
    else:
        writer = {name: teacher[name] for name in ("model", "revision", "dtype", "device") if name in teacher}
    generate = generate_of(base, place)
    return on_text(base, answers=place.answers, teacher=writer, generate=generate, loss=[GROUND_TRUTH])


def generate_of(base: Tree, place: Place) -> Tree:
    """What the recipe says is asked, or the default; ConfigError for an endpoint without a cap: nothing is bought."""
    own = {name: value for name, value in (base.get("generate") or {}).items() if value is not None}
    if base["teacher"].get("api") is not None and not {"budget_usd", "max_requests"} & own.keys():
        raise ConfigError(
            "CONFIG", "an endpoint is asked, and nothing caps it; set generate.budget_usd or max_requests"
        )
    return {**default(base, place), **own}


def default(base: Tree, place: Place) -> Tree:
    """What is asked where the recipe says nothing: so much text that a row is full, sampled as the teacher speaks."""
    max_length = int(base["data"].get("max_length", 512))
    n_prompt = min(_PROMPT_TOKENS, max_length // 4)
    share = place.texts / max(1, sum(found.documents for found in place.beginnings))  # of the documents, or times all
    return {
        "prompts": [
            {**found.source, "limit": max(1, math.ceil(min(1.0, share) * found.documents))}
            for found in place.beginnings
        ],
        "samples": max(1, math.ceil(share)),
        "prompt_tokens": n_prompt,
        "max_tokens": max_length - n_prompt,
        "temperature": 1.0,
        "seed": 0,
        "select": [{"complete": False}],
    }
