"""What `doctor` measures on a recipe's data: whether the teacher is better here, and what real traffic they lack."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tutelage import console, io, visible
from tutelage.data.split import Rows
from tutelage.data.store import Store
from tutelage.data.tokenize import TokenRow
from tutelage.data.words import words_of
from tutelage.errors import ConfigError, TutelageError
from tutelage.evaluation import traffic as traffics
from tutelage.evaluation.advantage import advantage_of
from tutelage.evaluation.likelihood import RowLogp, row_logp
from tutelage.evaluation.row_text import prompts_of, words_of_rows
from tutelage.evaluation.traffic import Traffic
from tutelage.models import load, vocabulary
from tutelage.models.doctor import Report
from tutelage.models.safety import Finding
from tutelage.recipe import Recipe
from tutelage.training import teachers
from tutelage.training.corpus import Corpus

N_ROWS = 200
MOST_TOKENS = 128  # of each row: the beginning tells who predicts such text better
N_WORST = 5  # items of the traffic that are shown


def with_measured(report: Report, recipe: Recipe, *, traffic: str | Path | None, measured: bool) -> Report:
    """The report with what was measured; nothing is, where something is wrong or where there is nothing to compare."""
    compared = _compared(recipe) if measured else []
    if not report.ok or (traffic is None and not compared):
        return report
    try:
        corpus = Corpus(recipe, teachers.tokenizer_of(recipe), examples={})
        if compared:
            report = _with_losses(report, recipe, corpus, students=compared)
        return _with_traffic(report, corpus, Path(traffic)) if traffic is not None else report
    except TutelageError as error:
        found = Finding(level="error", code=error.code, message=error.message)
        return replace(report, findings=(*report.findings, found))


def _compared(recipe: Recipe) -> list[str]:
    """The students whose own weights may know the data better: not those cut out of the teacher, or from nothing."""
    if recipe.teacher is None or recipe.teacher.model is None or recipe.trains_teacher:
        return []
    if any(source.memory for source in recipe.data.sources):
        return []
    return [name for name, learner in recipe.learners.items() if learner.section.model is not None]


# --- who predicts the data better ---
def _with_losses(report: Report, recipe: Recipe, corpus: Corpus, *, students: list[str]) -> Report:
    assert recipe.teacher is not None
    where, rows = _sample(corpus)
    n_vocabulary = vocabulary.real_vocabulary(corpus.tokenizer)
    sections = [recipe.learners[name].section for name in students]
    named = [(recipe.teacher.model, recipe.teacher.revision), *((s.model, s.revision) for s in sections)]
    scores: dict[tuple[str | None, str | None], RowLogp] = {}
    with console.Progress("the loss of teacher and student", total=len(set(named)) * len(rows)) as bar:
        for source, revision in dict.fromkeys(named):
            assert source is not None
            is_teacher = (source, revision) == named[0]
            model = teachers.on_cpu(recipe.teacher) if is_teacher else load.load_model(source, revision=revision)
            scores[source, revision] = row_logp(model, rows, n_vocabulary=n_vocabulary, progress=bar.advance)
    findings, facts = [], {}
    for name, own in zip(students, named[1:], strict=True):
        found = advantage_of(scores[named[0]], scores[own])
        message = found.sentence(rows=where, student=name)
        findings.append(Finding(level="note" if found.is_better else "warning", code="TEACHER_LOSS", message=message))
        low, high = found.interval
        own_facts: dict[str, io.Json] = {
            "rows": found.difference.n,
            "teacher": round(found.teacher.value, 4),
            name: round(found.student.value, 4),
            "teacher better by": round(found.difference.value, 4),
            "interval": [_plain(low), _plain(high)],
        }
        facts[f"loss on {where} rows, nats a token ({name})"] = own_facts
    return replace(report, findings=(*report.findings, *findings), facts={**report.facts, **facts})


def _plain(value: float) -> io.Json:
    return round(value, 4) if np.isfinite(value) else None


def _sample(corpus: Corpus) -> tuple[str, list[TokenRow]]:
    """Held-out rows where there are some, else training rows, spread over all of them."""
    where, store, rows = "held-out", corpus.held_out_store, corpus.split.held_out
    if not len(rows):
        where, store, rows = "training", corpus.store, corpus.split.train
    spread = rows[np.linspace(0, len(rows) - 1, min(N_ROWS, len(rows))).astype(int)]
    return where, list(_beginnings(store, spread))


def _beginnings(store: Store, rows: Rows) -> Iterator[TokenRow]:
    """The first tokens of each row; of one whose first trained token comes later the tokens around it."""
    for number in rows.tolist():
        row = store.row(number)
        trained = np.flatnonzero(row.loss_mask[1:]) + 1
        begin = max(0, int(trained[0]) - MOST_TOKENS // 2) if len(trained) and trained[0] >= MOST_TOKENS else 0
        part = slice(begin, begin + MOST_TOKENS)
        yield TokenRow(row.ids[part], row.loss_mask[part])


# --- real traffic ---
def _with_traffic(report: Report, corpus: Corpus, path: Path) -> Report:
    if not len(corpus.split.held_out):
        message = "--traffic is compared with held-out rows, and nothing is held out; set data.held_out, such as 0.02"
        raise ConfigError("CONFIG", message)
    sample = traffics.read(path)
    held_out = _one_a_document(corpus)
    pieces = [words_of(text) for text in prompts_of(corpus.tokenizer, corpus.held_out_store, held_out)]
    training = words_of_rows(corpus.tokenizer, corpus.store, corpus.split.train)
    found = traffics.judge(sample.items, pieces, training)
    said = _said(found, path) + _left_out(sample)
    finding = Finding(level="warning" if found.is_foreign else "note", code="TRAFFIC", message=said)
    facts: dict[str, io.Json] = {
        "items": found.n_items,
        "lines left out": len(sample.skipped),
        "judged": int(found.share.n),
        "not covered": len(found.uncovered),
        "share": _plain(found.share.value),
        "interval": [_plain(found.share.low), _plain(found.share.high)],
        "of text like the training data, 95% of the time at most": round(found.by_chance, 4),
        "p": round(found.p_value, 4),
        **{
            f"worst {n}": f"{one.item.name}, {one.seen:.0%} seen: {_excerpt(one.item.text)}"
            for n, one in enumerate(found.uncovered[:N_WORST], start=1)
        },
    }
    return replace(report, findings=(*report.findings, finding), facts={**report.facts, f"traffic {path}": facts})


def _one_a_document(corpus: Corpus) -> Rows:
    """The first held-out row of each document, at most about 1,000: windows of one text are no independent samples."""
    documents = corpus.held_out_store.documents[corpus.split.held_out]
    _, first = np.unique(documents, axis=0, return_index=True)
    rows = corpus.split.held_out[np.sort(first)]
    return rows[:: max(1, len(rows) // 1000)]


def _said(found: Traffic, path: Path) -> str:
    n = int(found.share.n)
    if not n:
        return (
            f"none of {visible.counted(found.n_items, 'item')} of {path} has {traffics.LEAST_WORDS} words of its own: "
            "nothing can be compared; give longer ones"
        )
    of_all = f"{len(found.uncovered)} of {visible.counted(n, 'item')} of {path} ({found.share.value:.1%})"
    what = (
        "not covered by the training data: fewer of their words, pairs and triples stand there than of 95% of the "
        "held-out text of the same length"
    )
    chance = (
        f"of text like it 5% would be so, and up to {found.by_chance:.1%} by the luck of "
        f"{visible.counted(found.n_rows, 'held-out row')}"
    )
    if not found.is_foreign:
        return f"{of_all}: {what} ({chance}): no more than that"
    return f"{of_all}: {what} ({chance}); worst: {found.uncovered[0].item.name}; add text like it to data.sources"


def _left_out(sample: traffics.Sample) -> str:
    if not sample.skipped:
        return ""
    first = sample.skipped[0]
    return f"; {visible.counted(len(sample.skipped), 'line')} left out (first: {first.name}: {first.reason})"


def _excerpt(text: str) -> str:
    shown = visible.line(text)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
