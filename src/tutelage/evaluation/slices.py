"""Where a model is weak: slices of the evaluation text, the worst of them, and the hardest inputs.

Sources and lengths divide the rows, positions, rarity and the teacher's confidence divide their tokens (`cells.py`).
Each slice is compared with the whole text on the same sequences; what is claimed of several slices is corrected for
all of them (`stats.holm`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from tutelage.evaluation import stats
from tutelage.evaluation.cells import NAMES
from tutelage.evaluation.facts import SetFacts
from tutelage.evaluation.stats import Difference
from tutelage.evaluation.sums import Cell, SequenceScore
from tutelage.types import Estimate

SOURCE, LENGTH = "source", "length"
SLICED = {  # metric -> its sum, and its unit
    "held_out_loss": ("nll_nats", "nats"),
    "kl_to_teacher": ("kl_nats", "nats"),
    "top1_agreement": ("n_agree", "share"),
}
_LENGTHS = (64, 128, 256, 512, 1024)
_MOST = 10  # worst slices, and hardest inputs
_FEWEST_SEQUENCES = 5  # of a slice among the worst: fewer say nothing about others like them
_FEWEST_TOKENS = 8  # of a hardest input: the mean of fewer is one token's luck

Part = Cell | SequenceScore  # both have n_tokens, the sums of SLICED and `worst`
PartOf = Callable[[SequenceScore], Part | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One part of a set; `n_sequences` and `n_tokens` count what the first model scored there.

    `against_whole` is the student's KL to the teacher here less that over the whole set (without a teacher its loss);
    its `corrected` holds among all slices of the set.  `example` is the student's worst token in a slice that is among
    the worst.
    """

    kind: str  # source, length or a kind of `cells.NAMES`
    name: str
    n_sequences: int
    n_tokens: int
    estimates: dict[str, dict[str, Estimate]]  # model -> metric -> estimate
    against_whole: Difference | None = None
    example_row: int | None = None
    example_position: int | None = None
    example: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hard:
    """One of the rows where the student is furthest from its teacher, with the text around its worst token."""

    row: int
    values: dict[str, dict[str, float]]  # model -> metric -> mean over the row's tokens
    position: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliced:
    """`worst` points into `slices`, the worst first; both it and `hardest` are of the student."""

    slices: tuple[Slice, ...] = ()
    worst: tuple[int, ...] = ()
    hardest: tuple[Hard, ...] = ()


def sliced(
    by_model: Mapping[str, Sequence[SequenceScore]], facts: SetFacts | None, *, student: str | None, with_teacher: bool
) -> Sliced:
    """The slices of a set from its raw scores; `student` names the model that worst and hardest are said of."""
    complete = {
        model: [s for s in scores if s.n_unscored == 0 and s.n_tokens > 0] for model, scores in by_model.items()
    }
    judged = complete.get(student or "", [])
    metric = "kl_to_teacher" if with_teacher else "held_out_loss"
    parts = [part for kind in _kinds(facts) for part in _filled(kind, next(iter(complete.values())))]
    slices = [_slice(kind, name, part, complete=complete, with_teacher=with_teacher) for kind, name, part in parts]
    gaps = [_against_whole(part, judged, SLICED[metric][0]) for _, _, part in parts]
    known = [i for i, gap in enumerate(gaps) if gap is not None]
    together = stats.corrected([gap for gap in gaps if gap is not None])
    held = dict(zip(known, together, strict=True))
    above = [i for i in known if held[i].value > 0 and held[i].n >= _FEWEST_SEQUENCES]
    worst = sorted(above, key=lambda i: -held[i].value)[:_MOST]
    made = [
        _with_gap(one, held.get(i), _worst_token(parts[i][2], judged, SLICED[metric][0]) if i in worst else None)
        for i, one in enumerate(slices)
    ]
    hardest = _hardest(complete, judged, metric=metric, with_teacher=with_teacher)
    return Sliced(slices=tuple(made), worst=tuple(worst), hardest=hardest)


def _kinds(facts: SetFacts | None) -> Iterator[list[tuple[str, str, PartOf]]]:
    """The slices of each kind: its name, their names, and what a sequence has in each."""
    if facts is not None:
        source, length = facts.source, [int(np.searchsorted(_LENGTHS, n, side="right")) for n in facts.length]
        yield [(SOURCE, name, _rows_where(source, i)) for i, name in enumerate(facts.sources)]
        yield [(LENGTH, name, _rows_where(length, i)) for i, name in enumerate(_length_names())]
    for kind, names in NAMES.items():
        yield [(kind, name, _cell(kind, k)) for k, name in enumerate(names)]


def _filled(kind: list[tuple[str, str, PartOf]], scores: Sequence[SequenceScore]) -> list[tuple[str, str, PartOf]]:
    """Those slices that have tokens; none of a kind that does not divide the text."""
    found = [(name, label, part) for name, label, part in kind if any(part(s) is not None for s in scores)]
    return found if len(found) > 1 else []


def _rows_where(place: Sequence[int], i: int) -> PartOf:
    return lambda s: s if place[s.row] == i else None


def _cell(kind: str, k: int) -> PartOf:
    return lambda s: s.cells[kind][k] if kind in s.cells else None


def _length_names() -> list[str]:
    between = [f"rows of {a:,}-{b - 1:,} tokens" for a, b in pairwise(_LENGTHS)]
    return [f"rows under {_LENGTHS[0]} tokens", *between, f"rows from {_LENGTHS[-1]:,} tokens"]


def _slice(
    kind: str, name: str, part: PartOf, *, complete: Mapping[str, Sequence[SequenceScore]], with_teacher: bool
) -> Slice:
    inside = {model: [p for s in scores if (p := part(s)) is not None] for model, scores in complete.items()}
    first = next(iter(inside.values()))
    return Slice(
        kind=kind,
        name=name,
        n_sequences=len(first),
        n_tokens=sum(p.n_tokens for p in first),
        estimates={
            model: {
                metric: stats.estimate(_mean(parts, total), unit)
                for metric, (total, unit) in SLICED.items()
                if parts and (with_teacher or metric == "held_out_loss") and getattr(parts[0], total) is not None
            }
            for model, parts in inside.items()
        },
    )


def _mean(parts: Sequence[Part | None], total: str) -> stats.Measured:
    """Over the tokens of the parts; a sequence without a part has no tokens there."""
    sums = [(getattr(p, total), p.n_tokens) if p is not None else (0.0, 0) for p in parts]
    return stats.ratio([a for a, _ in sums], [b for _, b in sums])


def _against_whole(part: PartOf, judged: Sequence[SequenceScore], total: str) -> Difference | None:
    """The slice less the whole, on all sequences; None where too few have it or it is all there is."""
    parts = [part(s) for s in judged]
    n_inside = sum(p is not None for p in parts)
    measured = [p for p in parts if p is not None and getattr(p, total) is not None]
    if n_inside < 2 or len(measured) < n_inside:
        return None
    return stats.difference(_mean(parts, total), _mean(judged, total), n_counted=n_inside)


def _worst_token(part: PartOf, judged: Sequence[SequenceScore], total: str) -> tuple[int, int] | None:
    """(row, position) of the worst token of the sequence whose part is worst."""
    found = [(getattr(p, total) / p.n_tokens, -s.row, p.worst) for s in judged if (p := part(s)) is not None]
    _, row, position = max(found, default=(0.0, 0, None))
    return (-row, position) if position is not None else None


def _with_gap(one: Slice, gap: Difference | None, place: tuple[int, int] | None) -> Slice:
    row, position = place if place is not None else (None, None)
    return replace(one, against_whole=gap, example_row=row, example_position=position)


def _hardest(
    complete: Mapping[str, Sequence[SequenceScore]],
    judged: Sequence[SequenceScore],
    *,
    metric: str,
    with_teacher: bool,
) -> tuple[Hard, ...]:
    total = SLICED[metric][0]
    long_enough = [s for s in judged if s.n_tokens >= _FEWEST_TOKENS and getattr(s, total) is not None]
    chosen = sorted(long_enough, key=lambda s: (-getattr(s, total) / s.n_tokens, s.row))[:_MOST]
    by_row = {model: {s.row: s for s in scores} for model, scores in complete.items()}
    return tuple(
        Hard(
            row=s.row,
            values={
                model: _values(rows[s.row], with_teacher=with_teacher)
                for model, rows in by_row.items()
                if s.row in rows
            },
            position=s.worst,
        )
        for s in chosen
    )


def _values(s: SequenceScore, *, with_teacher: bool) -> dict[str, float]:
    sums = {metric: getattr(s, total) for metric, (total, _) in SLICED.items()}
    return {
        metric: value / s.n_tokens
        for metric, value in sums.items()
        if value is not None and (with_teacher or metric == "held_out_loss")
    }
