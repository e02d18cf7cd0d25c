"""Runs that differ in their seed alone, taken together: sums of sums, and what the choice of a seed is worth.

The seeds' runs scored the same rows, so their sums add up row by row, and every metric of the sums is that of all runs
together.  Its error has two parts: which rows were held out (the jackknife over rows), and which seeds were drawn (the
spread of the seeds' own values).  They are added as variances.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any  # fields by their names

from tutelage import plugins
from tutelage.errors import ConfigError
from tutelage.evaluation import stats
from tutelage.evaluation.sums import Cell, SequenceScore
from tutelage.evaluation.transfer import METRICS

_OF_ONE = ("row", "worst", "sums", "cells")  # not added field by field


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """metric(first) - metric(second) of runs that are paired by seed; `by_seed` are the seeds' own differences.

    `stderr` is of rows and seeds; with one seed of rows alone, and `seeds_stderr` is None.  `p` is two-sided, of
    Student's t with Welch and Satterthwaite's degrees of freedom (doi:10.2307/3002019).
    """

    value: float
    stderr: float
    rows_stderr: float
    seeds_stderr: float | None
    by_seed: tuple[float, ...]
    p: float


def pooled(runs: Sequence[Sequence[SequenceScore]]) -> list[SequenceScore]:
    """One score a row: the sums of all runs.  Raises ConfigError[NOT_COMPARABLE] unless all scored the same rows."""
    if len(runs) == 1:
        return list(runs[0])
    rows = [[score.row for score in run] for run in runs]
    if any(found != rows[0] for found in rows):
        raise ConfigError("NOT_COMPARABLE", "these runs scored different rows; give them one held-out set")
    return [_together(scores) for scores in zip(*runs, strict=True)]


def compare(
    metric: str, first: Sequence[Sequence[SequenceScore]], second: Sequence[Sequence[SequenceScore]]
) -> Paired | None:
    """The difference of two techniques, a list of scores a seed each, in the same order of seeds; None of no row."""
    measure = plugins.load(METRICS, metric).measure
    a, b = stats.paired(pooled(first), pooled(second))
    if not a:
        return None
    by_seed = []
    for one, other in zip(first, second, strict=True):
        x, y = stats.paired(one, other)
        by_seed.append(measure(x).value - measure(y).value)
    return combined(stats.difference(measure(a), measure(b)), by_seed)


def estimate(metric: str, runs: Sequence[Sequence[SequenceScore]]) -> Paired | None:
    """The metric itself with both its errors: as its difference from zero."""
    measure = plugins.load(METRICS, metric).measure
    scored = [s for s in pooled(runs) if s.n_unscored == 0 and s.n_tokens > 0]
    if not scored:
        return None
    rows, together = {s.row for s in scored}, measure(scored)
    over_rows = stats.difference(together, stats.Measured(0.0, 0 * together.influence_n))
    return combined(over_rows, [measure([s for s in run if s.row in rows]).value for run in runs])


def combined(rows: stats.Difference, by_seed: Sequence[float]) -> Paired:
    """The error over rows and the spread of the seeds' own differences, in one."""
    n_seeds = len(by_seed)
    if n_seeds < 2:
        return Paired(
            value=rows.value, stderr=rows.stderr, rows_stderr=rows.stderr, seeds_stderr=None, by_seed=tuple(by_seed),
            p=rows.p,
        )  # fmt: skip
    mean = math.fsum(by_seed) / n_seeds
    of_seeds = math.sqrt(math.fsum((d - mean) ** 2 for d in by_seed) / (n_seeds - 1) / n_seeds)
    whole = math.hypot(rows.stderr, of_seeds)
    degrees = _degrees(rows.stderr, rows.n - 1, of_seeds, n_seeds - 1)
    return Paired(
        value=rows.value,
        stderr=whole,
        rows_stderr=rows.stderr,
        seeds_stderr=of_seeds,
        by_seed=tuple(by_seed),
        p=stats.p_value(rows.value, whole, n=degrees + 1),
    )


def _degrees(a: float, of_a: int, b: float, of_b: int) -> int:
    """Of a sum of two variances, given as standard errors with their degrees; rounded down, at least 1.

    Where few seeds make most of it, theirs alone: the approximation is too bold there (6.4 false alarms of 100 in
    simulations of 3 seeds, in place of 5).
    """
    if not (math.isfinite(a) and math.isfinite(b)) or a == b == 0 or of_a < 1:
        return 1
    found = math.floor((a * a + b * b) ** 2 / (a**4 / of_a + b**4 / of_b))
    return max(1, min(found, of_b) if b > a else found)


def _together(scores: Sequence[SequenceScore]) -> SequenceScore:
    first = scores[0]
    added: dict[str, Any] = {
        f.name: _sum([getattr(s, f.name) for s in scores]) for f in fields(first) if f.name not in _OF_ONE
    }
    names = set(first.sums).intersection(*(s.sums for s in scores[1:]))
    cells = {kind: tuple(_cell(found) for found in zip(*(s.cells[kind] for s in scores), strict=True))
             for kind in first.cells}  # fmt: skip
    return replace(first, **added, sums={name: math.fsum(s.sums[name] for s in scores) for name in names}, cells=cells)


def _sum(values: Sequence[Any]) -> Any:
    """Of numbers, of tuples place by place; None where one is unknown."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], tuple):
        return tuple(_sum(place) for place in zip(*values, strict=True))
    return math.fsum(values) if isinstance(values[0], float) else sum(values)


def _cell(found: Sequence[Cell | None]) -> Cell | None:
    """Cells of one kind hold the same tokens in every run; one that is empty here is empty there."""
    there = [cell for cell in found if cell is not None]
    if not there:
        return None
    added: Mapping[str, Any] = {
        f.name: _sum([getattr(cell, f.name) for cell in there]) for f in fields(Cell) if f.name != "worst"
    }
    return replace(there[0], **added)
