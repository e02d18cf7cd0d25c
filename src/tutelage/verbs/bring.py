"""Before a training: the answers of a teacher that writes text, brought here as far as the recipe allows to ask."""

from collections.abc import Callable
from pathlib import Path

from tutelage import console
from tutelage.data.answers import CARD, PARQUET, SOFT, VERDICTS, read_card
from tutelage.errors import ConfigError, LimitError
from tutelage.generation import journal as journals
from tutelage.generation import judging
from tutelage.generation.ledger import Ledger
from tutelage.generation.task import Survey, Task, open_task
from tutelage.recipe import Recipe
from tutelage.verbs.generate import generate


def bring_answers(recipe: Recipe, *, ask: bool, allow_private_host: bool, before: Callable[[], object]) -> None:
    """Makes teacher.answers hold what the recipe asks for; nothing that was bought is bought again.

    Buys what is missing only under a cap of the recipe, after `before` found nothing that would stop the training
    anyway; else ConfigError[ANSWERS_ABSENT] with the command that buys.  With `ask=False` the set is what is there.
    """
    teacher = recipe.teacher
    if teacher is None or teacher.answers is None or recipe.generate is None:
        return  # who reads the answers says whether they are there
    folder = Path(teacher.answers)
    has_journal = (folder / journals.NAME).is_file()
    if (folder / CARD).is_file() and not has_journal:
        return  # a finished set from elsewhere
    task = open_task(recipe, asks=False)
    survey = task.survey()
    ledger = _ledger_of(task) if has_journal else Ledger()
    n_there, n_asked = sum(key in ledger.final for key in survey.keys), len(survey.keys)
    n_unjudged = judging.n_open(task.judge, task.sound, ledger=ledger, journal=_path(task), optional=task.optional)
    if (n_there == n_asked and not n_unjudged) or not ask:
        if not n_there:
            raise ConfigError("ANSWERS_ABSENT", f"{folder} holds no answers, and --no-ask buys none{_way(cap=False)}")
        if not _is_written(task, survey, n_there=n_there, n_unjudged=n_unjudged):
            generate(recipe, ask=False)
        return
    if (task.judge or any(writer.api for writer in task.writers)) and not recipe.generate.has_cap:
        judged = f", {n_unjudged} of them not judged" if n_unjudged else ""
        found = f"{folder} holds {n_there} of the {n_asked} answers{judged}"
        raise ConfigError("ANSWERS_ABSENT", f"{found}, and train buys none without a cap{_way(cap=True)}")
    if (folder / CARD).is_file() and not n_there and not any(writer.api for writer in task.writers):
        found = f"{folder} holds answers of {read_card(folder).model} to other requests, none that the recipe asks"
        way = "leave generate out to learn them, or write others over them: tutelage generate RECIPE"
        raise ConfigError("ANSWERS_ABSENT", f"{found}; {way}")
    before()
    try:
        card = generate(recipe, allow_private_host=allow_private_host).card
        console.tell(f"{folder}: {card.rows:,} rows of {card.asked:,} answers are what is learned")
    except LimitError as error:
        raise LimitError(error.code, f"{error.message}, or train on what is there: --no-ask") from error


def _way(*, cap: bool) -> str:
    return (
        f"; type: tutelage generate RECIPE{' generate.budget_usd=DOLLARS, or set a cap in the recipe' if cap else ''}"
    )


def _path(task: Task) -> Path:
    return task.folder / journals.NAME


def _ledger_of(task: Task) -> Ledger:
    ledger = Ledger()
    journals.require_undamaged(_path(task), journals.read(_path(task), ledger.apply))
    return ledger


def _is_written(task: Task, survey: Survey, *, n_there: int, n_unjudged: int) -> bool:
    """Whether the set is the one that the recipe asks for, from every answer that is there: then it stays as it is."""
    if not (task.folder / CARD).is_file():
        return False
    teacher = task.recipe.teacher
    learns_soft = task.generate.top_logprobs is not None and teacher is not None and teacher.cache is not None
    verifies = any(step.verify is not None for step in task.generate.select)
    wanted = [SOFT] * learns_soft + [PARQUET] * task.generate.parquet + [VERDICTS] * verifies
    if not all((task.folder / name).exists() for name in wanted):
        return False
    card = read_card(task.folder)
    n_dropped = sum(step.reasons.get(judging.NOT_YET, 0) for step in card.dropped)
    return card.identity == task.identity(survey) and card.asked == n_there and bool(n_dropped) == bool(n_unjudged)
