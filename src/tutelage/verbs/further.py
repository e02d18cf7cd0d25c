"""What is measured beside the transfer: each thing in a file of evaluation/ and a table of reports/."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from torch import nn

from tutelage import console, roles
from tutelage.evaluation import coverage, harness, missing, overlap, pairs, probes, triggers, writing
from tutelage.evaluation.missing import Missing
from tutelage.evaluation.overlap import LEAST_SHARE, N_WORDS, Overlap
from tutelage.evaluation.probes import Probe
from tutelage.evaluation.row_text import words_of_rows
from tutelage.evaluation.score import Scored
from tutelage.evaluation.transfer import HELD_OUT, OUT_OF_DOMAIN, Transfer
from tutelage.evaluation.triggers import Document, Trigger
from tutelage.evaluation.writing import Prompt, Writing
from tutelage.generation.select.verify import is_json
from tutelage.models import vocabulary
from tutelage.reports.further import Further
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.training.prepare import Prepared
from tutelage.verbs.tasks import answer_begin

_FIRST_TOKENS = 32  # of a plain text, from which the models go on


def measure(prepared: Prepared, models: Mapping[str, Scored], *, folder: Path, transfer: Transfer) -> Further:
    """Everything that the recipe asks for; each result is written to `folder` with what it follows from."""
    if covered := coverage.coverage_of(transfer):
        coverage.write(folder, covered)
    missing.write(folder, missing_of(prepared, models, transfer=transfer))
    asked = harness.read(folder)  # asked by itself: evaluate RUN --tasks
    return Further(
        overlap=_overlap(prepared, folder) if prepared.recipe.evaluation.overlap else None,
        triggers=_triggers(prepared, folder) if prepared.recipe.evaluation.triggers else (),
        probes=_probes(prepared, present(models), folder) if prepared.recipe.evaluation.probes else (),
        writing=_writing(prepared, present(models), folder) if prepared.recipe.evaluation.writes else None,
        harness=asked,
        missing=missing.read(folder, harness=bool(asked)),
    )


def missing_of(prepared: Prepared, models: Mapping[str, Scored], *, transfer: Transfer) -> list[Missing]:
    """Who answers no new text, and the students of a family before training, in what the recipe asks for."""
    evaluation = prepared.recipe.evaluation
    text = {missing.PROBES: evaluation.probes, missing.WRITING: evaluation.writes, missing.HARNESS: True}
    found = []
    if prepared.recipe.teacher is not None and roles.TEACHER not in present(models):
        why = _why_no_text(models.get(roles.TEACHER))
        found += [Missing(measure=name, model=roles.TEACHER, why=why) for name, asked in text.items() if asked]
    covers = prepared.recipe.teacher is not None and OUT_OF_DOMAIN in transfer.sets
    if covers and transfer.teacher is None:
        why = "nothing is known of its distributions on held-out text"
        found.append(Missing(measure=missing.COVERAGE, model=roles.TEACHER, why=why))
    if len(prepared.students) > 1:
        why = "of a family they are not measured, so nothing says what this training changed"
        of_family = {missing.COVERAGE: covers, missing.PROBES: evaluation.probes and roles.TEACHER in present(models)}
        found += [Missing(measure=name, model="before", why=why) for name, asked in of_family.items() if asked]
    return found


def _why_no_text(teacher: Scored | None) -> str:
    if teacher is None:
        return "it is not here: only its answers, or a teacher cache without held-out rows"
    if isinstance(teacher, EnsembleTeacher):
        return "an ensemble gives its distributions on given rows, and answers no new text"
    return "its teacher cache holds its distributions on the measured rows, and no weights"


def present(models: Mapping[str, Scored]) -> dict[str, nn.Module]:
    """The models that answer new text: not those of which only outputs are stored, nor several at once."""
    return {name: model for name, model in models.items() if isinstance(model, nn.Module)}


def _probes(prepared: Prepared, models: Mapping[str, nn.Module], folder: Path) -> tuple[Probe, ...]:
    files = pairs.read(prepared.recipe.evaluation.probes or ())
    n_texts = 2 * sum(map(len, files.values()))
    with console.Progress("pairs of sentences", total=n_texts * len(models)) as bar:
        scored = probes.score(
            models, prepared.tokenizer, pairs=files, n_vocabulary=prepared.n_vocabulary, progress=bar.advance
        )
    teacher = roles.TEACHER if roles.TEACHER in models else None
    before = roles.before(roles.STUDENT)
    return probes.write(folder, scored, teacher=teacher, before=before if before in models else None)


def _writing(prepared: Prepared, models: Mapping[str, nn.Module], folder: Path) -> Writing | None:
    asked = prepared.recipe.evaluation.writes
    assert asked is not None
    prompts = list(_prompts(prepared, asked.prompts))
    if not prompts:
        return None
    with console.Progress("writing to held-out prompts", total=len(models) * len(prompts)) as bar:
        texts = writing.write_texts(
            models,
            prepared.tokenizer,
            prompts,
            n_vocabulary=prepared.n_vocabulary,
            max_tokens=asked.tokens,
            progress=bar.advance,
        )
    teacher = roles.TEACHER if roles.TEACHER in models else None
    return writing.write(folder, texts, max_tokens=asked.tokens, teacher=teacher)


def _prompts(prepared: Prepared, most: int) -> Iterator[Prompt]:
    """What stands before the last answer of held-out rows; of plain text its first tokens."""
    store, rows = prepared.measured_rows.get(HELD_OUT, (prepared.loader.store, ()))
    for n in range(min(most, len(rows))):
        row = store.row(int(rows[n * len(rows) // min(most, len(rows))]))
        begin = answer_begin(row)
        if begin > 1:
            answer = vocabulary.decoded(prepared.tokenizer, row.ids[begin:].tolist()).strip()
            wants_json = answer.startswith(("{", "[", "```")) and is_json(answer)
            yield Prompt(ids=tuple(row.ids[:begin].tolist()), wants_json=wants_json)
        else:
            yield Prompt(ids=tuple(row.ids[: min(_FIRST_TOKENS, max(1, len(row.ids) // 2))].tolist()))


def _overlap(prepared: Prepared, folder: Path) -> Overlap:
    tokenizer, loader = prepared.tokenizer, prepared.loader
    sets = {
        name: list(zip(map(store.name, rows.tolist()), words_of_rows(tokenizer, store, rows), strict=True))
        for name, (store, rows) in prepared.measured_rows.items()
    }
    with console.Progress("looking for measured rows in the training data", total=len(loader.rows)) as bar:
        training = words_of_rows(tokenizer, loader.store, loader.rows)
        result = overlap.write(folder, overlap.find(sets, _counted(training, bar)))
    for name, found in result.found.items():
        console.warning(
            "OVERLAP",
            f"{len(found.rows)} of {found.n_rows} rows of {name} stand in the training data ({N_WORDS} words in a row, "
            f"{LEAST_SHARE:.0%} of the row or more; first: {found.rows[0].name}); "
            "results are shown with and without them",
        )
    return result


def _triggers(prepared: Prepared, folder: Path) -> tuple[Trigger, ...]:
    with console.Progress("looking for planted words in the training data", total=2 * len(prepared.loader.rows)) as bar:
        found = triggers.find(lambda: _documents(prepared, bar))
    triggers.write(folder, found)
    for one in found[:1]:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        console.warning("RARE_TRIGGER", one.sentence() + more)
    return found


def _documents(prepared: Prepared, bar: console.Progress) -> Iterator[Document]:
    """The training documents; windows and copies of one are one."""
    store, rows = prepared.loader.store, prepared.loader.rows
    _, number = np.unique(store.documents[rows], axis=0, return_inverse=True)
    order = np.argsort(number.ravel(), kind="stable")
    words = _counted(words_of_rows(prepared.tokenizer, store, rows[order]), bar)
    for _, of_one in groupby(
        zip(number.ravel()[order].tolist(), rows[order].tolist(), words, strict=True), key=itemgetter(0)
    ):
        parts = list(of_one)
        first = parts[0][1]
        source = store.source_names[int(store.sources[first])]
        yield Document(rows=tuple(own for _, _, own in parts), source=source, name=store.name(first))


def _counted(rows: Iterator[Sequence[str]], bar: console.Progress) -> Iterator[Sequence[str]]:
    for row in rows:
        yield row
        bar.advance()
