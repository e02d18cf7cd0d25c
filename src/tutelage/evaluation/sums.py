"""From numbers at positions to one `SequenceScore` a row: float64 sums over the row's tokens, and over each cell's.

Shape legend: N trained positions of a batch, R rows in it, K cells of a kind.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.cells import NAMES
from tutelage.evaluation.positions import Columns

N_BINS = 15  # equal-width bins of confidence, as in Guo et al., arXiv:1706.04599
N_BYTES, BYTE_NLL = "n_bytes", "byte_nll_nats"
_FIELDS = ("nll_nats", "kl_nats", "agree", "correct", "brier", "confidence", "heated_nats", "heated_slopes")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The sums over the tokens of one sequence that fall into one cell."""

    n_tokens: int
    nll_nats: float
    kl_nats: float | None
    n_agree: int | None
    worst: int  # place in the row of the token with the largest KL, without a teacher the largest loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceScore:
    """What one model did on one held-out sequence: float64 sums over its scored positions.

    A position is scored when each of the numbers named here is finite; the others are counted in `n_unscored` and are
    in no sum.
    """

    row: int
    n_tokens: int
    n_unscored: int
    nll_nats: float  # of the true next tokens
    kl_nats: float | None  # KL(teacher || model); None without a teacher
    n_agree: int | None  # the model's first token is the teacher's
    n_correct: int  # the model's first token is the true one
    brier: float  # squared distance of the distribution from the true token, in [0, 2] a position
    bin_n: tuple[int, ...]  # positions in each bin of confidence (the probability of the first token)
    bin_confidence: tuple[float, ...]
    bin_correct: tuple[int, ...]
    sums: Mapping[str, float] = field(default_factory=dict)  # of the other measures of `positions.py`, where finite
    heated_nats: tuple[float, ...] = ()  # the loss at each of `positions.INVERSE_TEMPERATURES`
    heated_slopes: tuple[float, ...] = ()  # its derivative there
    cells: Mapping[str, tuple[Cell | None, ...]] = field(default_factory=dict)  # by kind of `cells.NAMES`
    worst: int | None = None  # as of a cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """One model's columns at the trained positions of a batch, and where these stand."""

    columns: Columns
    row_N: Ints
    position_N: Ints  # of the predicted token in its row
    cells: Mapping[str, Ints]
    n_bytes_N: Ints | None


@dataclass(slots=True)
class Totals:
    """One model's sums so far, by row."""

    _sums: dict[int, dict[str, Floats]] = field(default_factory=dict)

    def add(self, found: Positions) -> None:
        """One batch more."""
        for row, sums in _by_row(found):
            before = self._sums.get(row)
            self._sums[row] = sums if before is None else _added(before, sums)

    def scores(self) -> list[SequenceScore]:
        """One a row, in the order of the rows."""
        return [_score(row, self._sums[row]) for row in sorted(self._sums)]


def _by_row(found: Positions) -> Iterator[tuple[int, dict[str, Floats]]]:
    """The sums of each row; positions with a number that is not finite are only counted."""
    columns = found.columns
    finite_N = np.ones(len(found.row_N), dtype=bool)
    for name in (name for name in _FIELDS if name in columns):
        finite_N &= np.isfinite(columns[name].reshape(len(finite_N), -1)).all(-1)
    rows_R, inverse_N = np.unique(found.row_N, return_inverse=True)
    here_M, values = inverse_N[finite_N], {name: column[finite_N] for name, column in columns.items()}
    plain = {"n_tokens": np.ones(len(here_M)), **values}
    if found.n_bytes_N is not None:
        n_bytes_M = found.n_bytes_N[finite_N].astype(np.float64)
        plain |= {N_BYTES: n_bytes_M, BYTE_NLL: np.where(n_bytes_M > 0, values["nll_nats"], 0.0)}
    sums = {name: _sums(column, here_M, len(rows_R)) for name, column in plain.items()}
    sums["n_unscored"] = np.bincount(inverse_N[~finite_N], minlength=len(rows_R)).astype(np.float64)
    sums |= _bins(values, here_M, len(rows_R))
    badness_M, place_M = values["kl_nats" if "kl_nats" in values else "nll_nats"], found.position_N[finite_N]
    sums["worst"] = _worst(badness_M, place_M, here_M, n_groups=len(rows_R))
    for kind, cell_N in found.cells.items():
        n_cells = len(NAMES[kind])
        group_M = here_M * n_cells + cell_N[finite_N]
        for name in ("n_tokens", "nll_nats", "kl_nats", "agree"):
            if name in plain:
                sums[f"{kind}/{name}"] = _sums(plain[name], group_M, len(rows_R) * n_cells).reshape(-1, n_cells)
        worst = _worst(badness_M, place_M, group_M, n_groups=len(rows_R) * n_cells)
        sums[f"{kind}/worst"] = worst.reshape(-1, n_cells, 2)
    for i, row in enumerate(rows_R.tolist()):
        yield row, {name: value[i] for name, value in sums.items()}


def _sums(values_M: Floats, group_M: Ints, n_groups: int) -> Floats:
    """Sums by group, [G] or of several columns [G, L]."""
    if values_M.ndim == 1:
        return np.bincount(group_M, values_M, minlength=n_groups).astype(np.float64)
    return np.stack([_sums(column_M, group_M, n_groups) for column_M in values_M.T], axis=-1)


def _bins(values: Columns, here_M: Ints, n_rows: int) -> dict[str, Floats]:
    """Positions, summed confidence and right first tokens by row and bin of confidence."""
    confidence_M = values["confidence"]
    bin_M = np.clip(np.ceil(confidence_M * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    parts = {"bin_n": np.ones_like(confidence_M), "bin_confidence": confidence_M, "bin_correct": values["correct"]}
    group_M = here_M * N_BINS + bin_M
    return {name: _sums(part, group_M, n_rows * N_BINS).reshape(n_rows, N_BINS) for name, part in parts.items()}


def _worst(badness_M: Floats, place_M: Ints, group_M: Ints, *, n_groups: int) -> Floats:
    """By group the largest badness and its first place, [G, 2]; (-inf, -1) of an empty one."""
    found = np.tile(np.array([-np.inf, -1.0]), (n_groups, 1))
    order = np.lexsort((-place_M, badness_M, group_M))  # the last of each group is its worst
    last = np.flatnonzero(np.diff(group_M[order], append=-1))
    chosen = order[last]
    found[group_M[chosen]] = np.stack([badness_M[chosen], place_M[chosen].astype(np.float64)], axis=-1)
    return found


def _added(before: dict[str, Floats], more: dict[str, Floats]) -> dict[str, Floats]:
    """Two parts of one row together."""

    def joined(name: str) -> Floats:
        if name.rpartition("/")[2] != "worst":
            return before[name] + more[name]
        return np.where(more[name][..., :1] > before[name][..., :1], more[name], before[name])

    return {name: joined(name) for name in before}


def _score(row: int, sums: Mapping[str, Floats]) -> SequenceScore:
    with_teacher = "kl_nats" in sums
    others = [name for name, value in sums.items() if name not in _KNOWN and "/" not in name and np.isfinite(value)]
    worst = int(sums["worst"][1])
    return SequenceScore(
        row=row,
        n_tokens=int(sums["n_tokens"]),
        n_unscored=int(sums["n_unscored"]),
        nll_nats=float(sums["nll_nats"]),
        kl_nats=float(sums["kl_nats"]) if with_teacher else None,
        n_agree=int(sums["agree"]) if with_teacher else None,
        n_correct=int(sums["correct"]),
        brier=float(sums["brier"]),
        bin_n=tuple(int(x) for x in sums["bin_n"]),
        bin_confidence=tuple(sums["bin_confidence"].tolist()),
        bin_correct=tuple(int(x) for x in sums["bin_correct"]),
        sums={name: float(sums[name]) for name in others},
        heated_nats=tuple(sums["heated_nats"].tolist()),
        heated_slopes=tuple(sums["heated_slopes"].tolist()),
        cells={kind: _cells(kind, sums) for kind in NAMES if f"{kind}/n_tokens" in sums},
        worst=worst if worst >= 0 else None,
    )


_KNOWN = {*_FIELDS, "n_tokens", "n_unscored", "worst", "bin_n", "bin_confidence", "bin_correct"}


def _cells(kind: str, sums: Mapping[str, Floats]) -> tuple[Cell | None, ...]:
    kl_K, agree_K = sums.get(f"{kind}/kl_nats"), sums.get(f"{kind}/agree")

    def cell(k: int) -> Cell | None:
        n_tokens = int(sums[f"{kind}/n_tokens"][k])
        if n_tokens == 0:
            return None
        return Cell(
            n_tokens=n_tokens,
            nll_nats=float(sums[f"{kind}/nll_nats"][k]),
            kl_nats=float(kl_K[k]) if kl_K is not None else None,
            n_agree=int(agree_K[k]) if agree_K is not None else None,
            worst=int(sums[f"{kind}/worst"][k, 1]),
        )

    return tuple(cell(k) for k in range(len(NAMES[kind])))
