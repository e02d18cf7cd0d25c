"""Held-out texts token by token: where a student expects something else than its teacher, and what.

`evaluation/explorer.json` holds a few texts, chosen by a rule, with the most likely tokens of teacher and students at
each position: what the report's explorer shows.  Its size does not grow with the evaluation set.

Shape legend: T positions of a row, N trained positions of a batch, P positions that are kept of a row, V vocabulary,
K tokens that are kept of a distribution.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import io, reading, roles
from tutelage.errors import IntegrityError
from tutelage.evaluation.score import Scored, SequenceScore, Whole
from tutelage.models import vocabulary
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import IGNORED, Batch, DenseTargets, LogitTargets, MixtureTargets, TokenView

FORMAT = 1
EXPLORER = "explorer.json"
KINDS = ("hardest", "median", "easiest")
TOP = 8
_EACH = 4  # texts of a kind
_POSITIONS = 224  # of a text, shared by the students; so the file stays below a megabyte
_LEAST_TOKENS = 24  # shorter texts are chosen only where longer ones are too few: their means say little
_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one model expected at one position: its `TOP` tokens, most likely first, and the true one."""

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    true_probability: float
    true_rank: int  # 1: the true token was the most likely one


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A token that was predicted: `at` is its index in the text; KL(teacher || student) in nats, by student."""

    at: int
    kl_nats: dict[str, float]
    expected: dict[str, Expected]  # by model, the teacher first


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploredText:
    """One held-out text; `kl_nats` is the mean of the whole row by student, `pieces` the raw text of each token."""

    row: int
    kind: str  # one of KINDS
    kl_nats: dict[str, float]
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """The texts, hardest first; `tokens` is the raw text of every id that occurs among the expected ones."""

    teacher: str
    students: tuple[str, ...]
    set_name: str
    n_rows: int  # among which they were chosen
    texts: tuple[ExploredText, ...]
    tokens: dict[int, str]

    def json(self) -> dict[str, Any]:
        """Plain JSON values: of each position the models in order, their tokens as id, probability, id, …"""
        return {
            "format": FORMAT,
            "teacher": self.teacher,
            "students": list(self.students),
            "set": self.set_name,
            "n_rows": self.n_rows,
            "tokens": {str(number): text for number, text in self.tokens.items()},
            "texts": [_text_json(text, students=self.students) for text in self.texts],
        }


@torch.no_grad()
def explore(
    models: Mapping[str, Scored],
    batches: Sequence[tuple[Batch, Tensor]],
    scores: Mapping[str, Sequence[SequenceScore]],
    *,
    tokenizer: Any,
    n_vocabulary: int,
    set_name: str,
) -> Explorer | None:
    """The explorer of one set of held-out text; None without a teacher or a student, or when nothing has a score.

    `batches` and `scores` are those of the set: a batch with the row of each trained position, and every model's
    scores.  Chosen are the four texts with the highest KL(teacher || student), the four around the median and the four
    with the lowest, of those with at least 24 scored tokens (of all where these are fewer than twelve); with several
    students the mean of their KL decides.
    """
    students = tuple(name for name in roles.students(models) if name in scores)
    if roles.TEACHER not in models or not students:
        return None
    means = _mean_kl(scores, students)
    chosen = _chosen({row: sum(by.values()) / len(by) for row, by in means.items()}, scores[students[0]])
    asked = {name: models[name] for name in (roles.TEACHER, *students)}
    n_positions = max(32, _POSITIONS // len(students))
    texts = []
    for row, kind in chosen:
        batch, place = _place_of(batches, row)
        ids, at = _row_of(batch, place, n_positions=n_positions)
        logp = {
            name: _logp(model, batch, place, ids=ids, at=at, n_vocabulary=n_vocabulary) for name, model in asked.items()
        }
        texts.append(_text(row, kind, means[row], ids=ids, at=at, logp=logp, tokenizer=tokenizer))
    if not texts:
        return None
    return Explorer(
        teacher=roles.TEACHER,
        students=students,
        set_name=set_name,
        n_rows=len(means),
        texts=tuple(texts),
        tokens=_token_texts(texts, tokenizer),
    )


def write(folder: Path, explorer: Explorer) -> None:
    """Writes `explorer.json`, without white space: it is mostly numbers."""
    text = json.dumps(explorer.json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    io.write_text(folder / EXPLORER, text + "\n")


def read(folder: Path) -> Explorer | None:
    """The explorer of a folder, None where there is none; IntegrityError[FORMAT_VERSION] for one of another version."""
    path = folder / EXPLORER
    if not path.is_file():
        return None
    stored = reading.read_json(path)
    if stored.get("format") != FORMAT:
        raise IntegrityError(
            "FORMAT_VERSION",
            f"{path} has format {stored.get('format')}, this tutelage reads {FORMAT}; "
            f"run: tutelage evaluate {folder.parent} --force",
        )
    students = tuple(stored["students"])
    return Explorer(
        teacher=stored["teacher"],
        students=students,
        set_name=stored["set"],
        n_rows=stored["n_rows"],
        texts=tuple(_text_of(text, models=(stored["teacher"], *students)) for text in stored["texts"]),
        tokens={int(number): text for number, text in stored["tokens"].items()},
    )


# --- which texts ---
def _mean_kl(scores: Mapping[str, Sequence[SequenceScore]], students: Sequence[str]) -> dict[int, dict[str, float]]:
    """By row, each student's mean KL to the teacher, nats a token; rows that every student scored completely."""
    by_student = {
        name: {
            s.row: s.kl_nats / s.n_tokens
            for s in scores[name]
            if s.kl_nats is not None and s.n_tokens > 0 and s.n_unscored == 0
        }
        for name in students
    }
    rows = set.intersection(*(set(found) for found in by_student.values()))
    return {row: {name: by_student[name][row] for name in students} for row in sorted(rows)}


def _chosen(kl: Mapping[int, float], scores: Sequence[SequenceScore]) -> list[tuple[int, str]]:
    """(row, kind) of the hardest, the median and the easiest texts, hardest first; ties by row."""
    n_tokens = {s.row: s.n_tokens for s in scores}
    long_enough = [row for row in kl if n_tokens[row] >= _LEAST_TOKENS]
    rows = long_enough if len(long_enough) >= _EACH * len(KINDS) else list(kl)
    ordered = sorted(rows, key=lambda row: (-kl[row], row))
    if len(ordered) <= _EACH * len(KINDS):
        return [(row, KINDS[len(KINDS) * n // len(ordered)]) for n, row in enumerate(ordered)]
    middle = (len(ordered) - _EACH) // 2
    parts = (ordered[:_EACH], ordered[middle : middle + _EACH], ordered[-_EACH:])
    return [(row, kind) for kind, part in zip(KINDS, parts, strict=True) for row in part]


def _place_of(batches: Sequence[tuple[Batch, Tensor]], row: int) -> tuple[Batch, slice]:
    """The batch that holds a row, and where its trained positions lie among the N of the batch (they are together)."""
    for batch, row_N in batches:
        found = (row_N == row).nonzero().squeeze(-1)
        if len(found):
            return batch, slice(int(found[0]), int(found[-1]) + 1)
    raise AssertionError(f"row {row} was scored and is in no batch")


def _row_of(batch: Batch, place: slice, *, n_positions: int) -> tuple[Tensor, Tensor]:
    """(ids [T] of a row from its first token to the last one that is kept, positions [P] whose next token is kept)."""
    view = batch.view
    index_P = view.index_N[place][:n_positions]
    width = view.ids_BT.shape[1]
    positions_BT = view.positions_BT if view.positions_BT is not None else torch.arange(width).expand_as(view.ids_BT)
    first, last = int(index_P[0]), int(index_P[-1])
    begin = first - int(positions_BT.reshape(-1)[first])
    return view.ids_BT.reshape(-1)[begin : last + 2], index_P - begin


# --- what the models expected ---
def _logp(model: Scored, batch: Batch, place: slice, *, ids: Tensor, at: Tensor, n_vocabulary: int) -> Tensor:
    """Log-probabilities [P, V] at the kept positions, float64 on the CPU.

    A model runs over the row alone; what is stored is asked for the whole batch, whose rows it knows by their keys.
    """
    if not isinstance(model, nn.Module):
        return _of_answer(model.targets(batch), slice(place.start, place.start + len(at)))
    labels_T = torch.full_like(ids, IGNORED)
    labels_T[at + 1] = ids[at + 1]
    head = head_of(model, n_vocabulary=n_vocabulary)
    view = TokenView.of(ids[None], labels_T[None]).to(head.weight_VD.device)
    return _of_answer(DenseTargets(hidden_ND=trained_hidden(model, view), head=head), slice(0, len(at)))


def _of_answer(answer: Whole, place: slice) -> Tensor:
    if isinstance(answer, MixtureTargets):
        return answer.logp(place).double().cpu()
    if isinstance(answer, LogitTargets):
        return torch.log_softmax(answer.logits_NV[place].double(), -1).cpu()
    return torch.log_softmax(answer.head.logits(answer.hidden_ND[place]).double(), -1).cpu()


def _text(
    row: int, kind: str, kl_nats: dict[str, float], *, ids: Tensor, at: Tensor, logp: dict[str, Tensor], tokenizer: Any
) -> ExploredText:
    true_P = ids[at + 1]
    teacher_PV = logp[roles.TEACHER]
    students = [name for name in logp if name != roles.TEACHER]
    kl = {name: _kl(teacher_PV, logp[name]).tolist() for name in students}
    expected = {name: _expected(found, true_P) for name, found in logp.items()}
    places = tuple(
        Place(
            at=position + 1,
            kl_nats={name: round(max(0.0, kl[name][n]), _DIGITS) for name in students},
            expected={name: expected[name][n] for name in logp},
        )
        for n, position in enumerate(at.tolist())
    )
    numbers = tuple(ids.tolist())
    return ExploredText(
        row=row,
        kind=kind,
        kl_nats={name: round(value, _DIGITS) for name, value in kl_nats.items()},
        ids=numbers,
        pieces=pieces_of(tokenizer, numbers),
        places=places,
    )


def _kl(teacher_logp_PV: Tensor, logp_PV: Tensor) -> Tensor:
    """KL(teacher || student) by position, shape [P], nats; a token that the teacher excludes adds nothing."""
    probability_PV = teacher_logp_PV.exp()
    return (probability_PV * (teacher_logp_PV - logp_PV)).masked_fill(probability_PV == 0, 0.0).sum(-1)


def _expected(logp_PV: Tensor, true_P: Tensor) -> list[Expected]:
    top = logp_PV.topk(min(TOP, logp_PV.shape[-1]))
    true_logp_P = logp_PV.gather(-1, true_P[:, None]).squeeze(-1)
    rank_P = (logp_PV > true_logp_P[:, None]).sum(-1) + 1
    return [
        Expected(
            ids=tuple(ids),
            probabilities=tuple(round(p, _DIGITS) for p in probabilities),
            true_probability=round(true, _DIGITS),
            true_rank=rank,
        )
        for ids, probabilities, true, rank in zip(
            top.indices.tolist(), top.values.exp().tolist(), true_logp_P.exp().tolist(), rank_P.tolist(), strict=True
        )
    ]


# --- what tokens read ---
def pieces_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The raw text of each token where it stands; "" for one that only begins a character, which the last one gets."""
    pieces: list[str] = []
    begin = read = 0  # decoded is from `begin`, given out is what is before `read`
    for n in range(1, len(ids) + 1):
        before, both = (
            vocabulary.decoded(tokenizer, list(ids[begin:read])),
            vocabulary.decoded(tokenizer, list(ids[begin:n])),
        )
        is_whole = n == len(ids) or not both.endswith("\ufffd")
        pieces.append(both[len(before) :] if is_whole else "")
        if is_whole:
            begin, read = read, n
    return tuple(pieces)


def _token_texts(texts: Sequence[ExploredText], tokenizer: Any) -> dict[int, str]:
    """The text of each id that is listed, as it stands after the token where it is first met."""
    found: dict[int, str] = {}
    for text in texts:
        for place in text.places:
            before, true = text.ids[place.at - 1], text.ids[place.at]
            for number in (true, *(i for e in place.expected.values() for i in e.ids)):
                if number not in found:
                    found[number] = vocabulary.token_text(tokenizer, number, after=before)
    return dict(sorted(found.items()))


# --- JSON ---
def _text_json(text: ExploredText, *, students: Sequence[str]) -> dict[str, Any]:
    return {
        "row": text.row,
        "kind": text.kind,
        "kl_nats": text.kl_nats,
        "ids": list(text.ids),
        "pieces": list(text.pieces),
        "at": [place.at for place in text.places],
        "kl_nats_at": [[place.kl_nats[name] for name in students] for place in text.places],
        "top": [[_flat(expected) for expected in place.expected.values()] for place in text.places],
        "true": [[[e.true_probability, e.true_rank] for e in place.expected.values()] for place in text.places],
    }


def _flat(expected: Expected) -> list[float | int]:
    return [x for pair in zip(expected.ids, expected.probabilities, strict=True) for x in pair]


def _text_of(stored: Mapping[str, Any], *, models: Sequence[str]) -> ExploredText:
    places = tuple(
        Place(
            at=at,
            kl_nats=dict(zip(models[1:], kl_nats, strict=True)),
            expected={
                name: Expected(
                    ids=tuple(flat[::2]), probabilities=tuple(flat[1::2]), true_probability=true[0], true_rank=true[1]
                )
                for name, flat, true in zip(models, top, trues, strict=True)
            },
        )
        for at, kl_nats, top, trues in zip(
            stored["at"], stored["kl_nats_at"], stored["top"], stored["true"], strict=True
        )
    )
    return ExploredText(
        row=stored["row"],
        kind=stored["kind"],
        kl_nats=dict(stored["kl_nats"]),
        ids=tuple(stored["ids"]),
        pieces=tuple(stored["pieces"]),
        places=places,
    )
