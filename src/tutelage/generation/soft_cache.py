"""From the journal to a teacher cache beside the answers: the endpoint's log-probabilities at the answers' positions.

Every row of the finished set is looked at: its reply is read again from the journal, byte for byte as it came, and
matched with the tokens that `train` will learn (`soft.py`).  Rows are found by content, so the cache serves any order,
packing and split; it does not serve another tokenizer, template, max_length or choice of what is trained.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import console, io
from tutelage.cache.given import GivenRow, endpoint_record, write_given
from tutelage.cache.manifest import Asked
from tutelage.data.answers import ROWS, SOFT, Card
from tutelage.data.store import Store
from tutelage.data.tokenize import TokenRow
from tutelage.errors import IntegrityError
from tutelage.generation import reply as replies
from tutelage.generation.endpoint import Endpoint
from tutelage.generation.journal import fields_at
from tutelage.generation.ledger import Ledger
from tutelage.generation.logprobs import Unusable, given_of, written_of
from tutelage.generation.product import write_card
from tutelage.generation.soft import OTHER_TOKENS, Matcher, Soft
from tutelage.generation.task import Task, named_student
from tutelage.generation.work import body_of
from tutelage.models import load, vocabulary
from tutelage.recipe import Api, Evaluation, Recipe, Source
from tutelage.training.corpus import Corpus

_ASIDE = ".soft"  # rows and card, while the soft labels are made: the card itself comes after them


@dataclass(slots=True, kw_only=True)
class SoftLabels:
    """What was written, and what was refused with the reasons; rows are answers of the set."""

    path: Path
    n_rows: int = 0
    n_positions: int = 0
    n_hard: int = 0  # positions that the endpoint said nothing about: ends of turns
    n_alike: int = 0  # positions with listed tokens that are spelt alike: parts of characters, in the tail
    reasons: Counter[str] = field(default_factory=Counter)
    first: str = ""  # the first refusal, with its details

    @property
    def n_refused(self) -> int:
        """Answers without soft labels."""
        return self.reasons.total()

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        counts = {"rows": self.n_rows, "positions": self.n_positions, "hard_positions": self.n_hard}
        return {"cache": str(self.path), **counts, "spelt_alike": self.n_alike, "refused": dict(self.reasons)}

    def __str__(self) -> str:
        hard = f", {self.n_hard:,} of them ends or beginnings without numbers, hard" if self.n_hard else ""
        alike = (
            f", at {self.n_alike:,} some of the listed tokens are spelt alike and in the tail" if self.n_alike else ""
        )
        found = f"{self.path}  ({self.n_rows:,} answers, {self.n_positions:,} positions{hard}{alike})"
        if not self.reasons:
            return found
        why = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
        return f"{found}; {self.n_refused:,} refused ({why}); data.missing_soft=drop trains without them"


def student_of(recipe: Recipe) -> tuple[Any, Any]:
    """(tokenizer, config) of the student; ConfigError unless the recipe names a model for it."""
    name, revision = named_student(recipe, "generate.top_logprobs is matched with the student's tokens")
    return load.load_tokenizer(name, revision=revision), load.load_config(name, revision=revision)


def write_soft(task: Task, ledger: Ledger, journal: Path, card: Card) -> SoftLabels:
    """The cache of the rows of a set whose card is not written yet, in place of the one that was there.

    Raises IntegrityError[TOKENIZER_MISMATCH] or [API_LOGPROBS] when most answers are refused; the rows stay.
    """
    assert task.generate.top_logprobs is not None
    tokenizer, config = student_of(task.recipe)
    corpus = _corpus(task, tokenizer, card)
    found = SoftLabels(path=task.folder / SOFT)
    matcher = Matcher(tokenizer, k=task.generate.top_logprobs)
    rows = list(_rows(task, corpus.store, ledger=ledger, journal=journal, matcher=matcher, found=found))
    _require_most(task, found)
    api, endpoint = _only_endpoint(task)
    write_given(
        found.path,
        rows,
        asked=_asked(task, corpus, tokenizer, k=matcher.k),
        why=f"the {matcher.k} most likely tokens as {endpoint.host} gave them, taken for temperature "
        f"{api.logprobs_temperature:g}; what lacks to 1 is the tail; {found.n_hard} of "
        f"{found.n_positions} positions are ends of turns, or beginnings, without numbers, stored as hard labels",
        store=corpus.store.path.name,
        tokenizer=tokenizer,
        config=config,
    )
    return found


def _only_endpoint(task: Task) -> tuple[Api, Endpoint]:
    """The recipe's rules: no other teacher is asked beside it."""
    (writer,) = task.writers
    assert writer.api is not None and writer.endpoint is not None
    return writer.api, writer.endpoint


def _corpus(task: Task, tokenizer: Any, card: Card) -> Corpus:
    """The answers alone, as `train` will read them; from a folder beside them that has the card already."""
    data, aside = task.recipe.data, task.folder / _ASIDE
    own = [source for source in data.sources if source.answers and Path(source.answers) == task.folder]
    source = own[0] if own else Source(answers=str(task.folder))
    there = source.model_copy(update={"answers": str(aside), "name": source.name or f"answers:{source.answers}"})
    alone = data.model_copy(update={"sources": (there,), "held_out": None})
    recipe = task.recipe.model_copy(update={"data": alone, "evaluation": Evaluation()})
    io.remove_tree(aside)
    io.make_directory(aside)
    io.symlink(aside / ROWS, f"../{ROWS}")
    write_card(aside, card)
    try:
        return Corpus(recipe, tokenizer, examples={})
    finally:
        io.remove_tree(aside)


def _asked(task: Task, corpus: Corpus, tokenizer: Any, *, k: int) -> Asked:
    (writer,), (api, _) = task.writers, _only_endpoint(task)
    where = json.dumps(["endpoint", writer.sampling.place, api.model])
    return Asked(
        codec="topk",
        temperature=api.logprobs_temperature,
        draws=1,
        fixed={"k": k, "tail": True},
        max_length=task.recipe.data.max_length,
        n_vocabulary=vocabulary.real_vocabulary(tokenizer),
        tokenizer=corpus.fingerprint,
        template=corpus.template,
        teacher=endpoint_record(api.model, identity=hashlib.sha256(where.encode()).hexdigest()),
    )


def _rows(
    task: Task, store: Store, *, ledger: Ledger, journal: Path, matcher: Matcher, found: SoftLabels
) -> Iterator[GivenRow]:
    """The rows of every answer that can be matched; the others are counted."""
    documents = _documents(store)
    with (task.folder / ROWS).open("rb") as file, console.Progress("matching tokens", total=len(documents)) as bar:
        for number, line in enumerate(file, start=1):
            if number not in documents:
                found.reasons["not read as a row"] += 1
                continue
            bar.advance()
            answer = json.loads(line)
            try:
                body = _body(journal, ledger, str(answer["id"]))
                whole, windows = _whole(store, documents[number])
                soft = _soft(body, whole, matcher=matcher, task=task)
            except Unusable as why:
                found.reasons[str(why).partition(":")[0]] += 1
                found.first = found.first or f"{ROWS}:{number}, {why}"
                continue
            found.n_rows += 1
            found.n_positions += len(soft.tail_N)
            found.n_hard += soft.n_hard
            found.n_alike += soft.n_alike
            yield from _cut(soft, store, documents[number], windows)


def _body(journal: Path, ledger: Ledger, key: str) -> bytes:
    place = ledger.final[key][1]
    return body_of(fields_at(journal, place.offset, place.n_bytes))


def _soft(body: bytes, row: TokenRow, *, matcher: Matcher, task: Task) -> Soft:
    if task.generate.given is not None:
        return matcher.match_text(row, given_of(body, given=task.generate.given))
    optional = _only_endpoint(task)[0].finish_reason_optional
    reply = replies.parse(body, finish_reason_optional=optional)
    if reply.reasoning:
        raise Unusable("the answer came after reasoning, and the row does not hold it as it was written")
    return matcher.match(row, written_of(body), is_cut=reply.outcome == "truncated")


def _documents(store: Store) -> dict[int, list[int]]:
    """The rows of each line of answers.jsonl: one, or its windows in their order."""
    numbers = range(len(store))
    by_line = groupby(numbers, key=lambda number: int(store.name(number).rpartition(":")[2]))
    return {line: list(rows) for line, rows in by_line}


def _whole(store: Store, rows: list[int]) -> tuple[TokenRow, list[TokenRow]]:
    """The document of some windows (each begins with the last token of the one before), and the windows."""
    windows = [store.row(number) for number in rows]
    ids = np.concatenate([windows[0].ids, *(window.ids[1:] for window in windows[1:])])
    mask = np.concatenate([windows[0].loss_mask, *(window.loss_mask[1:] for window in windows[1:])])
    return TokenRow(ids, mask), windows


def _cut(soft: Soft, store: Store, rows: list[int], windows: list[TokenRow]) -> Iterator[GivenRow]:
    """The targets of each window that has trained positions."""
    begin = 0
    for number, window in zip(rows, windows, strict=True):
        trained = np.flatnonzero(window.loss_mask[1:]) + 1
        here = slice(begin, begin + len(trained))
        begin += len(trained)
        if len(trained):
            yield GivenRow(
                key=store.keys[number].tobytes(),
                next_ids_N=window.ids[trained].astype(np.int64),
                ids_NK=soft.ids_NK[here],
                logp_NK=soft.logp_NK[here],
                tail_N=soft.tail_N[here],
                next_logp_N=soft.next_logp_N[here],
            )
    assert begin == len(soft.tail_N), "every trained position is in one window"


def _require_most(task: Task, found: SoftLabels) -> None:
    """IntegrityError when more answers are refused than matched."""
    if found.n_refused <= found.n_rows and found.n_rows:
        return
    of = f"{found.n_refused} of {found.n_refused + found.n_rows} answers cannot have soft labels"
    safe = f"the answers are safe in {task.folder}, and loss: cross_entropy learns them"
    if sum(n for reason, n in found.reasons.items() if reason == OTHER_TOKENS) * 2 > found.n_refused:
        raise IntegrityError(
            "TOKENIZER_MISMATCH",
            f"{of}: {task.model} and the student have different tokenizers ({found.first}); give a student with "
            f"the teacher's tokenizer, or leave generate.top_logprobs out; {safe}",
        )
    raise IntegrityError(
        "API_LOGPROBS", f"{of} (first: {found.first}); repair that, or leave generate.top_logprobs out; {safe}"
    )
