"""Which answers are kept: the steps of a recipe in their order, each drop counted once, with examples."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage import plugins
from tutelage.data.answers import Dropped
from tutelage.generation import reply as replies
from tutelage.generation import select
from tutelage.generation.request import Request
from tutelage.generation.select import Candidate, Verdict
from tutelage.generation.select.best import Score, by_judge
from tutelage.recipe.generation import Step

N_EXAMPLES = 3  # of what each step dropped; and the first one for each further reason
_SHOWN = 200  # characters of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A request with its reply."""

    request: Request
    reply: replies.Reply

    @property
    def place(self) -> str:
        """Where its prompt stands, without the folders of this machine."""
        return Path(self.request.prompt.name).name

    def as_candidate(self) -> Candidate:
        """What a step sees of it."""
        prompt = self.request.prompt
        by = f", {self.request.teacher}" if self.request.teacher else ""
        name = f"{self.place}{by}, sample {self.request.sample}"
        text, outcome = self.reply.text, self.reply.outcome
        return Candidate(text=text, outcome=outcome, reference=prompt.reference, asked=prompt.texts, name=name)


@dataclass(slots=True)
class _Tally:
    """What one step dropped so far."""

    step: str
    n: int = 0
    undecided: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, answered: Answered, verdict: Verdict, text: str) -> None:
        if verdict.is_kept:
            self.undecided += 1
            return
        self.n += 1
        self.reasons[verdict.why] += 1
        if len(self.examples) < N_EXAMPLES or self.reasons[verdict.why] == 1:
            about = {"about": verdict.about[:_SHOWN]} if verdict.about else {}
            self.examples.append({"prompt": answered.place, "why": verdict.why, **about, "text": text[:_SHOWN]})

    def as_dropped(self) -> Dropped:
        reasons = dict(sorted(self.reasons.items()))
        examples = tuple(self.examples)
        return Dropped(step=self.step, n=self.n, reasons=reasons, undecided=self.undecided, examples=examples)


class Selection:
    """The steps of a recipe in their order; the first that has something against an answer drops it."""

    def __init__(self, steps: Iterable[Step], *, scores: Score | None = None) -> None:
        """`scores` are those of the judge, where a step asks one."""
        self._steps: list[tuple[select.Step, _Tally]] = []
        self._no_answer = _Tally("no_answer")
        try:
            for step in steps:
                name, settings = named(step)
                if step.best is not None and step.best.judge is not None:
                    self._steps.append((by_judge(scores, keep=step.best.keep), _Tally(name)))
                    continue
                built = plugins.load("generation/select", name).build(settings)
                if not isinstance(built, select.Step):
                    built = select.Step(judge=select.each(built))
                self._steps.append((built, _Tally(name)))
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> dict[str, str]:
        """What the steps have read besides the recipe: name -> SHA-256."""
        return {name: digest for step, _ in self._steps for name, digest in step.files.items()}

    def close(self) -> None:
        """Ends what the steps hold open."""
        for step, _ in self._steps:
            step.close()

    def kept(self, group: Sequence[Answered]) -> list[Answered]:
        """Those that stay, of all answers to one prompt; what is dropped is counted."""
        left = [answered for answered in group if self._has_answer(answered)]
        for step, tally in self._steps:
            said = step.judge([answered.as_candidate() for answered in left]) if left else []
            verdicts = [Verdict(why=s, is_kept=not s) if isinstance(s, str) else s for s in said]
            for answered, verdict in zip(left, verdicts, strict=True):
                if verdict.why:
                    tally.add(answered, verdict, answered.reply.text)
            left = [answered for answered, verdict in zip(left, verdicts, strict=True) if verdict.is_kept]
        return left

    def _has_answer(self, answered: Answered) -> bool:
        reply = answered.reply
        if reply.outcome == "scored" or (reply.outcome in ("answer", "truncated") and reply.text.strip()):
            return True
        why = reply.outcome if reply.outcome != "truncated" else "truncated before the answer"
        self._no_answer.add(answered, Verdict(why=why), reply.reasoning)
        return False

    def dropped(self) -> tuple[Dropped, ...]:
        """Every step, those that dropped nothing too."""
        return tuple(tally.as_dropped() for tally in (self._no_answer, *(tally for _, tally in self._steps)))


def named(step: Step) -> tuple[str, Any]:
    """The name of a step and its settings, whatever their type is."""
    ((name, settings),) = ((n, s) for n in type(step).model_fields if (s := getattr(step, n)) is not None)
    return name, settings


def shown(settings: Any) -> Any:
    """The settings of steps as a card holds them: files by their names, not by where they lie on this machine."""
    return _without_folders(settings, "")


_NAMES: dict[str, Callable[[str], str]] = {
    "function": lambda text: Path(text).name,
    "against": lambda text: Path(text).name,
}


def _without_folders(value: Any, field_name: str) -> Any:
    if isinstance(value, dict):
        value = (
            {**value, "api": {name: value["api"][name] for name in ("base_url", "model")}} if "api" in value else value
        )
        return {name: _without_folders(inner, name if name in _NAMES else "") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner, field_name) for inner in value]
    return _NAMES[field_name](value) if field_name and isinstance(value, str) else value
