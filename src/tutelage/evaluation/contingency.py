"""Who is right where the other is wrong: teacher and student on the same prompts, and whether they err alike.

Of several answers to one prompt each counts as a part: with r of n right, a random one of them is right with
probability r / n, and the four cells are the probabilities for one random answer of each model.

The same wrong answer: the share among prompts that both got wrong.  What chance would give is worked out, not guessed:
- for a choice among k, 1 / (k - 1): two models that err independently and without preference; a prompt with two choices
  says nothing, since two wrong answers to it are always the same: it is left out;
- else the mean over all ways to shuffle one model's wrong answers among the prompts, in closed form: the sum over
  answers w of (share of w among the teacher's wrong answers) * (its share among the student's).
The first p-value is the tail of a sum of such chances, the second counts shuffles; both are corrected by Holm for the
number of students.
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
TWO_CHOICES = "with two choices, two wrong answers are always the same"
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
    choices: int | None  # of every prompt; None: they differ, or chance is from the two models' own wrong answers
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
    same_wrong: SameWrong | None
    no_same_wrong: str = ""  # why it is None


def contingencies(
    first: tuple[str, Sequence[Answered]],
    others: Iterable[tuple[str, Sequence[Answered]]],
    *,
    choices: int | Sequence[int] | None = None,
) -> tuple[Contingency, ...]:
    """The first model against each other one, on the same prompts in the same order.

    `choices`: how many a prompt has to choose from, or how many each has; None where answers are not chosen.
    """
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
    first: tuple[str, Sequence[Answered]],
    second: tuple[str, Sequence[Answered]],
    *,
    choices: int | Sequence[int] | None,
) -> Contingency:
    a_N, b_N = _right(first[1]), _right(second[1])
    n = len(a_N)
    difference = stats.difference(stats.ratio(a_N, np.ones(n)), stats.ratio(b_N, np.ones(n)))
    is_exact = all(row.n == 1 for row in (*first[1], *second[1]))  # of several answers a share says nothing of order
    same_wrong = _same_wrong(first[1], second[1], choices=choices)
    return Contingency(
        first=first[0],
        second=second[0],
        both=share(float((a_N * b_N).sum()), n),
        only_first=share(float((a_N * (1 - b_N)).sum()), n),
        only_second=share(float(((1 - a_N) * b_N).sum()), n),
        neither=share(float(((1 - a_N) * (1 - b_N)).sum()), n),
        difference=difference,
        p_value=sign_test(int((a_N > b_N).sum()), int((a_N < b_N).sum())) if is_exact else difference.p,
        same_wrong=same_wrong if isinstance(same_wrong, SameWrong) else None,
        no_same_wrong=same_wrong if isinstance(same_wrong, str) else "",
    )


def _right(rows: Sequence[Answered]) -> Array:
    return np.array([row.right / row.n for row in rows], dtype=np.float64)


def _same_wrong(
    first: Sequence[Answered], second: Sequence[Answered], *, choices: int | Sequence[int] | None
) -> SameWrong | str:
    """What was found, or why there is nothing to find."""
    of_each = [choices or 0] * len(first) if choices is None or isinstance(choices, int) else choices
    every = [(a, b, k) for a, b, k in zip(first, second, of_each, strict=True) if a.wrong and b.wrong]
    pairs = [(a, b, k) for a, b, k in every if k != 2]
    if not pairs:
        return TWO_CHOICES if every else "no prompt was answered wrong by both"
    weight_N = np.array([len(a.wrong) / a.n * len(b.wrong) / b.n for a, b, _ in pairs])
    match_NN = _matches([a.wrong for a, _, _ in pairs], [b.wrong for _, b, _ in pairs])
    hits, n = float((weight_N * match_NN.diagonal()).sum()), float(weight_N.sum())
    numbers = {k for _, _, k in pairs}
    if min(numbers) > 2:
        chances_N = np.array([1 / (k - 1) for _, _, k in pairs])
        chance, p_value = float(weight_N @ chances_N) / n, _tail(hits, n, chances_N)
    else:
        chance, p_value = float(weight_N @ match_NN.mean(1)) / n, _shuffled(match_NN, weight_N)
    return SameWrong(
        share=share(hits, n),
        chance=chance,
        choices=min(numbers) if min(numbers) > 2 and len(numbers) == 1 else None,
        p_value=p_value,
        decided=p_value < stats.ALPHA,
    )


def _tail(hits: float, n: float, chances_N: Array) -> float:
    """P(as many matches or more): binomial where every prompt has the same chance, else the sum of unequal ones."""
    if (chances_N == chances_N[0]).all():
        return binomial_tail(round(hits), max(round(n), round(hits)), p=float(chances_N[0]))
    of_counts = np.ones(1)  # P(0, 1, ... matches) among the prompts so far
    for chance in chances_N:
        of_counts = np.convolve(of_counts, [1 - chance, chance])
    return float(min(1.0, of_counts[round(hits) :].sum()))


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
