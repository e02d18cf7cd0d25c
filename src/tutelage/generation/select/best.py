"""Keeps the best answers to each prompt, by a verifier, a judge or the length; of equal ones the earlier sample."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tutelage.generation.function_process import TIMEOUT_S, FunctionProcess
from tutelage.generation.select import Candidate, Said, Step, Verdict
from tutelage.generation.select import verify as verifiers
from tutelage.recipe.generation import Best, Verify

Score: TypeAlias = Callable[[Candidate], float | Verdict]  # or why there is none, and the answer is dropped


def build(settings: Best) -> Step:
    """The first `keep` by their scores."""
    if settings.verify is not None:
        return _by_verifier(settings.verify, keep=settings.keep)
    sign = 1 if settings.prefer == "longest" else -1
    return Step(judge=lambda candidates: of_prompt(candidates, lambda c: len(c.text), keep=settings.keep, sign=sign))


def by_judge(scores: Score | None, *, keep: int) -> Step:
    """The same by what a judge has said; where all may stay it was not asked."""

    def judge(candidates: Sequence[Candidate]) -> Sequence[Said]:
        if len(candidates) <= keep:
            return [""] * len(candidates)
        return of_prompt(candidates, scores or (lambda _: Verdict(why="not judged yet")), keep=keep)

    return Step(judge=judge)


def _by_verifier(verify: Verify, *, keep: int) -> Step:
    if verify.function is None:
        right = verifiers.build(verify)
        assert not isinstance(right, Step)
        return Step(judge=lambda candidates: of_prompt(candidates, lambda c: float(right(c) == ""), keep=keep))
    function = FunctionProcess(verify.function, timeout_s=verify.timeout_s or TIMEOUT_S)
    return Step(
        judge=lambda candidates: of_prompt(candidates, lambda c: verifiers.called(function, c), keep=keep),
        files={function.name: function.sha256},
        close=function.close,
    )


def of_prompt(candidates: Sequence[Candidate], score: Score, *, keep: int, sign: int = 1) -> list[Said]:
    """What is said of all answers to one prompt; with sign -1 the lowest is the best."""
    scores = [score(candidate) for candidate in candidates]
    ranked = sorted((-sign * value, i) for i, value in enumerate(scores) if not isinstance(value, Verdict))
    kept = {i for _, i in ranked[:keep]}
    said: list[Said] = []
    for i, value in enumerate(scores):
        if isinstance(value, Verdict):
            said.append(value)
        elif i in kept:
            said.append("")
        else:
            best = f"{candidates[ranked[0][1]].name} has {-sign * ranked[0][0]:g}"
            said.append(Verdict(why="not the best of its prompt", about=f"its score is {value:g}, {best}"))
    return said
