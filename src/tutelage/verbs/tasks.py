"""Who answers held-out prompts right: the teacher, as it was judged, and what the models of a run write to them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from tutelage import console, roles
from tutelage.data import split as splits
from tutelage.data.answers import VERDICTS, example_of, verify
from tutelage.data.example import Example
from tutelage.data.tokenize import Encoder, TokenRow
from tutelage.evaluation import tasks
from tutelage.evaluation.score import Scored
from tutelage.evaluation.tasks import Judged, TaskResult
from tutelage.evaluation.written import write_answers
from tutelage.generation import journal as journals
from tutelage.generation.reply import split_reasoning
from tutelage.generation.select import Candidate
from tutelage.generation.select.verify import is_json
from tutelage.generation.verdicts import Asked, Head, Verifier, read_answer, read_verdicts, verifier_of
from tutelage.models.template import Renderer
from tutelage.recipe import Recipe
from tutelage.recipe.generation import Verify
from tutelage.training.prepare import Prepared

_OLD_VERDICTS = "verdicts.jsonl"  # before verdicts had checksums


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A held-out prompt: how the teacher did, and the ids that a student is given."""

    asked: Asked
    example: Example
    ids: list[int]


def measure_tasks(prepared: Prepared, models: Mapping[str, Scored], *, folder: Path) -> TaskResult | None:
    """Ask every model the held-out prompts of the answers that it learned from, judge, and write it to `folder`.

    None where no step verified the answers, nothing is held out, or `evaluation.task_prompts` is null.
    """
    most, found = prepared.recipe.evaluation.task_prompts, _verdicts(prepared)
    if most is None or found is None:
        return None
    head, asked = found
    if unknown := _functions_of(head.verify) - _functions_named(prepared.recipe):
        names = ", ".join(sorted(Path(name).name for name in unknown))
        console.note("TASKS", f"task accuracy is not measured: {names} judges, and generate.select does not name it")
        return None
    questions = _questions(prepared, asked)
    if not questions:
        return None
    chosen = [questions[n * len(questions) // most] for n in range(most)] if len(questions) > most else questions
    present = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    bought = roles.TEACHER if roles.TEACHER not in present else "the_answers"  # beside a teacher that answers itself
    judged = {bought: _of_teacher(chosen)}
    with (
        verifier_of(head.verify) as verifier,
        console.Progress("answering held-out prompts", total=len(present) * len(chosen)) as bar,
    ):
        for name, model in present.items():
            texts = write_answers(
                model,
                prepared.tokenizer,
                [question.ids for question in chosen],
                n_vocabulary=prepared.n_vocabulary,
                max_tokens=head.max_tokens,
                progress=bar.advance,
            )
            judged[name] = _of_model(chosen, texts, verifier, verify=head.verify)
    result = tasks.result_of(
        judged,
        n_held_out=len(questions),
        max_tokens=head.max_tokens,
        verify=[one.model_dump(mode="json", exclude_none=True) for one in head.verify],
        choices=_choices(questions, head.verify),
    )
    tasks.write(folder, judged, result)
    return result


def _verdicts(prepared: Prepared) -> tuple[Head, Iterator[Asked]] | None:
    """Those of the first set of answers that has some: of the held-out sources, else of the training data."""
    data = prepared.recipe.data
    if data.held_out is None:
        return None
    for source in data.held_out.sources or data.sources:
        if source.answers is None:
            continue
        folder = Path(source.answers)
        card = verify(folder)
        if found := read_verdicts(folder, card):
            return found
        if any(step.get("verify") for step in card.select):
            console.note("TASKS", _without_verdicts(folder))
    return None


def _without_verdicts(folder: Path) -> str:
    """What to say of a set that was verified, and whose verdicts are not there, or not its own."""
    old = f" (an older tutelage wrote {_OLD_VERDICTS})" if (folder / _OLD_VERDICTS).is_file() else ""
    found = f"task accuracy is not measured: {folder} lacks the {VERDICTS} of its answers{old}"
    if (folder / journals.NAME).is_file():
        return f"{found}; write it, nothing is asked: tutelage generate RECIPE --no-ask"
    return f"{found}, and the {journals.NAME} that it follows from; take both from where the set was made"


def _functions_of(verify: Iterable[Verify]) -> set[str]:
    return {one.function for one in verify if one.function is not None}


def _functions_named(recipe: Recipe) -> set[str]:
    """A set of answers may come from somebody else: no code is run that the recipe does not name itself."""
    return _functions_of(step.verify for step in recipe.generate.select if step.verify) if recipe.generate else set()


def _questions(prepared: Prepared, asked: Iterator[Asked]) -> list[_Question]:
    """The prompts on the held-out side, whether their answers were kept or not; none that is trained on."""
    held_out, loader = prepared.recipe.data.held_out, prepared.loader
    share = held_out.share if held_out is not None else None
    trained = {row.tobytes() for row in loader.store.documents[loader.rows]}
    some = [(one, example_of(one.row)) for one in asked]
    some = [
        (one, example)
        for one, example in some
        if example.document not in trained and (share is None or splits.is_held_out(example.document, share))
    ]
    renderer = Renderer.of(prepared.tokenizer, template=prepared.recipe.data.chat_template)
    rows = Encoder(prepared.tokenizer, renderer=renderer, train_on="answers").encode([example for _, example in some])
    if renderer is not None:
        renderer.close()
    found = [
        _Question(asked=one, example=example, ids=_beginning(row))
        for (one, example), row in zip(some, rows, strict=True)
        if isinstance(row, TokenRow)
    ]
    return [question for question in found if 0 < len(question.ids) < prepared.recipe.data.max_length]


def _beginning(row: TokenRow) -> list[int]:
    """Everything before the last answer."""
    ids: list[int] = row.ids[: answer_begin(row)].tolist()
    return ids


def answer_begin(row: TokenRow) -> int:
    """Where the last answer begins: the last stretch of trained tokens."""
    trained = np.flatnonzero(row.loss_mask)
    breaks = np.flatnonzero(np.diff(trained) > 1)
    return int(trained[breaks[-1] + 1] if len(breaks) else trained[0])


def _choices(questions: Sequence[_Question], verify: Sequence[Verify]) -> int | None:
    """How many letters a question has to choose from: those that are the right one of any; None for other answers."""
    if not any(one.choice for one in verify):
        return None
    return len({read_answer(q.asked.reference, verify) for q in questions} - {""})


def _of_teacher(questions: Sequence[_Question]) -> list[Judged]:
    return [
        Judged(
            prompt=n,
            n=q.asked.answers,
            right=q.asked.right,
            json_texts=q.asked.json_texts,
            wrong=q.asked.wrong,
        )
        for n, q in enumerate(questions)
    ]


def _of_model(
    questions: Sequence[_Question], texts: Sequence[str], verifier: Verifier, *, verify: Sequence[Verify]
) -> list[Judged]:
    found = []
    for n, (question, text) in enumerate(zip(questions, texts, strict=True)):
        answer = split_reasoning(text)[0]
        turns = question.example.messages[:-1]
        asked = tuple(turn.content for turn in turns) or (question.example.prompt,)
        reference = question.asked.reference
        why = verifier(Candidate(text=answer, outcome="answer", reference=reference, asked=asked))
        why = why if answer.strip() else why or "empty"
        right, json_texts = int(not why), int(is_json(answer))
        wrong = (read_answer(answer, verify),) if why else ()
        found.append(Judged(prompt=n, n=1, right=right, json_texts=json_texts, text=text, why=why, wrong=wrong))
    return found
