"""Who is right where the other is wrong: teacher and student on the same prompts, and whether they err alike.

Of several answers to one prompt each counts as a part: with r of n right, a random one of them is right with
probability r / n, and the four cells are the probabilities for one random answer of each model.

The same wrong answer: the share among prompts that both got wrong.  What chance would give is worked out, not guessed:
- for a choice among k, 1 / (k - 1): two models that err independently and without preference;
- else the mean over all ways to shuffle one model's wrong answers among the prompts, in closed form: the sum over
  answers w of (share of w among the teacher's wrong answers) * (its share among the student's).
The first p-value is a binomial tail, the second counts shuffles; both are corrected by Holm for the number of students.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation import stats
from tutelage.evaluation.shares import Share, binomial_tail, share, sign_test

N_SHUFFLES = 1_999
Array = NDArray[np.float64]


class Answered(Protocol):
    """One model's answers to one prompt; see `tasks.Judged`."""

    @property
    def n(self) -> int:
        """Answers."""

    @property
    def right(self) -> int:
        """How many of them are right."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What the others say, as the verifier reads it; "" where it reads nothing, which equals nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SameWrong:
    """How often two models that are both wrong say the same."""

    share: Share  # of the prompts that both got wrong
    chance: float
    choices: int | None  # chance is 1 / (choices - 1); None: from the two models' own wrong answers
    p_value: float  # corrected for the number of students
    decided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Contingency:
    """The four cells for two models on the same prompts; `difference` is first minus second."""

    first: str
    second: str
    both: Share
    only_first: Share
    only_second: Share
    neither: Share
    difference: stats.Difference
    p_value: float  # of "they are right equally often": exact, or of the paired shares; corrected for the pairs
    same_wrong: SameWrong | None  # None where no prompt was answered wrong by both


def contingencies(
    first: tuple[str, Sequence[Answered]],
    others: Iterable[tuple[str, Sequence[Answered]]],
    *,
    choices: int | None = None,
) -> tuple[Contingency, ...]:
    """The first model against each other one, on the same prompts in the same order."""
    found = [_contingency(first, other, choices=choices) for other in others]
    corrected = stats.holm([one.p_value for one in found])
    found = [
        replace(one, p_value=p, difference=replace(one.difference, decided=p < stats.ALPHA))
        for one, p in zip(found, corrected, strict=True)
    ]
    alike = [one.same_wrong for one in found if one.same_wrong is not None]
    of_alike = iter(stats.holm([one.p_value for one in alike]))
    return tuple(
        one if one.same_wrong is None else replace(one, same_wrong=_decided(one.same_wrong, next(of_alike)))
        for one in found
    )


def _decided(found: SameWrong, p_value: float) -> SameWrong:
    return replace(found, p_value=p_value, decided=p_value < stats.ALPHA)


def _contingency(
    first: tuple[str, Sequence[Answered]], second: tuple[str, Sequence[Answered]], *, choices: int | None
) -> Contingency:
    a_N, b_N = _right(first[1]), _right(second[1])
    n = len(a_N)
    difference = stats.difference(stats.ratio(a_N, np.ones(n)), stats.ratio(b_N, np.ones(n)))
    is_exact = all(row.n == 1 for row in (*first[1], *second[1]))  # of several answers a share says nothing of order
    return Contingency(
        first=first[0],
        second=second[0],
        both=share(float((a_N * b_N).sum()), n),
        only_first=share(float((a_N * (1 - b_N)).sum()), n),
        only_second=share(float(((1 - a_N) * b_N).sum()), n),
        neither=share(float(((1 - a_N) * (1 - b_N)).sum()), n),
        difference=difference,
        p_value=sign_test(int((a_N > b_N).sum()), int((a_N < b_N).sum())) if is_exact else difference.p,
        same_wrong=_same_wrong(first[1], second[1], choices=choices),
    )


def _right(rows: Sequence[Answered]) -> Array:
    return np.array([row.right / row.n for row in rows], dtype=np.float64)


def _same_wrong(first: Sequence[Answered], second: Sequence[Answered], *, choices: int | None) -> SameWrong | None:
    """None where no prompt was answered wrong by both."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.wrong and b.wrong]
    if not pairs:
        return None
    weight_N = np.array([len(a.wrong) / a.n * len(b.wrong) / b.n for a, b in pairs])
    match_NN = _matches([a.wrong for a, _ in pairs], [b.wrong for _, b in pairs])
    hits, n = float((weight_N * match_NN.diagonal()).sum()), float(weight_N.sum())
    if choices is not None and choices > 1:
        chance = 1 / (choices - 1)
        p_value = binomial_tail(round(hits), max(round(n), round(hits)), p=chance)
    else:
        chance = float(weight_N @ match_NN.mean(1)) / n
        p_value = _shuffled(match_NN, weight_N)
    return SameWrong(
        share=share(hits, n), chance=chance, choices=choices, p_value=p_value, decided=p_value < stats.ALPHA
    )


def _matches(first: Sequence[tuple[str, ...]], second: Sequence[tuple[str, ...]]) -> Array:
    """[i, j]: the probability that a wrong answer of the first to prompt i equals one of the second to prompt j."""
    every = {said for row in (*first, *second) for said in row if said}
    place = {said: i for i, said in enumerate(sorted(every))}

    def shares(rows: Sequence[tuple[str, ...]]) -> Array:
        found = np.zeros((len(rows), max(len(place), 1)))
        for i, row in enumerate(rows):
            for said, n in Counter(row).items():
                if said in place:
                    found[i, place[said]] = n / len(row)
        return found

    matched: Array = shares(first) @ shares(second).T
    return matched


def _shuffled(match_NN: Array, weight_N: Array) -> float:
    """The share of shuffles of the second model's answers, this one among them, with at least as many matches."""
    n = len(weight_N)
    draw = np.random.default_rng(0)  # a number of the result, not of the run: the same records give the same p
    found = float((weight_N * match_NN.diagonal()).sum())
    order_SN = draw.permuted(np.tile(np.arange(n), (N_SHUFFLES, 1)), axis=1)
    as_many = (match_NN[np.arange(n), order_SN] @ weight_N >= found - 1e-12).sum()
    return float((1 + as_many) / (1 + N_SHUFFLES))
