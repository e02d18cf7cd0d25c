"""The transfer: what each model scores on each set of held-out text, and which differences are more than noise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from tutelage import plugins, roles
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.cells import TokenFacts
from tutelage.evaluation.facts import SetFacts
from tutelage.evaluation.score import N_BINS, Scored, SequenceScore, score_models
from tutelage.evaluation.slices import Hard, Slice, sliced
from tutelage.models import quantized
from tutelage.types import Batch, Estimate

METRICS = "evaluation/metrics"
HELD_OUT = "held_out"
OUT_OF_DOMAIN = "out_of_domain"

Scores = dict[str, dict[str, list[SequenceScore]]]  # set -> model -> sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model costs; None where nobody measured it."""

    parameters: int
    parameter_bytes: int
    rate_tok_per_s: float | None = None  # forward over held-out text, see speed.py
    training_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """By bin of confidence (equal widths in [0, 1]): positions, their mean confidence, the share that was right.

    An empty bin has 0 positions, and 0 for both shares.
    """

    n: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """The results on one set of text; `n_unscored` counts the sequences that a model gave no number for.

    `compared` holds every metric for every two models; what holds of all of them together is `difference.is_sure`.
    `worst` points into `slices`, the worst ten for the student first; `hardest` are its hardest inputs.
    """

    n_sequences: int
    n_tokens: int
    n_unscored: dict[str, int]
    estimates: dict[str, dict[str, Estimate]]  # model -> metric -> estimate
    compared: tuple[stats.Compared, ...]
    reliability: dict[str, Reliability] = field(default_factory=dict)
    slices: tuple[Slice, ...] = ()
    worst: tuple[int, ...] = ()
    hardest: tuple[Hard, ...] = ()

    def places(self) -> list[tuple[int, int]]:
        """Where the examples of the worst slices and the hardest inputs stand: (row, position)."""
        of_slices = [(s.example_row, s.example_position) for s in (self.slices[i] for i in self.worst)]
        found = [*of_slices, *((h.row, h.position) for h in self.hardest)]
        return [(row, position) for row, position in found if row is not None and position is not None]

    def difference(self, metric: str, *, first: str, second: str) -> stats.Difference | None:
        """metric(first) - metric(second), paired; None when the two were not compared."""
        for c in self.compared:
            if c.metric == metric and {c.first, c.second} == {first, second}:
                return c.difference if c.first == first else stats.negative(c.difference)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Everything the table and the report show; `models` keeps the order of the columns."""

    teacher: str | None
    models: tuple[str, ...]
    sets: dict[str, SetResult]
    costs: dict[str, Cost] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite (the error of a single sequence) becomes null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def evaluate_models(
    models: Mapping[str, Scored],
    sets: Mapping[str, Iterable[tuple[Batch, Tensor]]],
    *,
    teacher: str | None,
    n_vocabulary: int,
    chunk: int = 256,
    progress: Callable[[int], None] | None = None,
    tokens: TokenFacts | None = None,
) -> Scores:
    """The raw scores of all models on all sets: what `transfer_of` and the records are made from."""
    return {
        name: score_models(
            models,
            batches,
            teacher=teacher,
            n_vocabulary=n_vocabulary,
            chunk=chunk,
            progress=progress,
            tokens=tokens,
        )
        for name, batches in sets.items()
    }


def transfer_of(
    scores: Scores,
    teacher: str | None,
    *,
    costs: dict[str, Cost] | None = None,
    facts: Mapping[str, SetFacts] | None = None,
) -> Transfer:
    """Every number from the raw scores alone: the same scores give the same transfer, bit for bit.

    `facts` says of a set's rows where they come from and how long they are; without it there are no slices by these.
    """
    models = tuple(next(iter(scores.values())))
    made = Transfer(
        teacher=teacher,
        models=models,
        sets={
            name: _set_result(by_model, with_teacher=teacher is not None, facts=(facts or {}).get(name))
            for name, by_model in scores.items()
        },
        costs=costs or {},
    )
    return with_texts(made, facts or {})


def with_texts(made: Transfer, facts: Mapping[str, SetFacts]) -> Transfer:
    """The same with the text of each example for which `facts` has one."""

    def filled(result: SetResult, known: SetFacts) -> SetResult:
        slices = [replace(s, example=known.text(s.example_row, s.example_position)) for s in result.slices]
        hardest = [replace(h, text=known.text(h.row, h.position)) for h in result.hardest]
        return replace(result, slices=tuple(slices), hardest=tuple(hardest))

    sets = {name: filled(result, facts[name]) if name in facts else result for name, result in made.sets.items()}
    return replace(made, sets=sets)


def check_unscored(transfer: Transfer, *, max_unscored: float = 0.01) -> None:
    """IntegrityError[UNSCORED] when a model has no score for more than this share of a set's sequences."""
    for name, result in transfer.sets.items():
        for model, n in result.n_unscored.items():
            if n > max_unscored * result.n_sequences:
                raise IntegrityError(
                    "UNSCORED",
                    f"{model}: {n} of {result.n_sequences} sequences of {name} have no finite score, at most "
                    f"{max_unscored:.0%} may; look at the model, or pass --max-unscored {n / result.n_sequences:.2f}",
                )


def cost_of(model: Scored, *, rate_tok_per_s: float | None = None, training_s: float | None = None) -> Cost:
    """Parameters (tied ones once) and their bytes, with the measured times given."""
    if not isinstance(model, nn.Module):
        return Cost(parameters=model.n_parameters, parameter_bytes=model.parameter_bytes)
    return Cost(
        parameters=quantized.n_parameters(model),
        parameter_bytes=quantized.n_bytes(model),
        rate_tok_per_s=rate_tok_per_s,
        training_s=training_s,
    )


def _set_result(by_model: dict[str, list[SequenceScore]], *, with_teacher: bool, facts: SetFacts | None) -> SetResult:
    metrics = [m for m in plugins.names(METRICS) if _is_measured(m, by_model, with_teacher=with_teacher)]
    first = next(iter(by_model.values()))
    found = sliced(by_model, facts, student=next(iter(roles.students(by_model)), None), with_teacher=with_teacher)
    return SetResult(
        n_sequences=len(first),
        n_tokens=sum(s.n_tokens + s.n_unscored for s in first),
        n_unscored={model: sum(s.n_unscored > 0 for s in scores) for model, scores in by_model.items()},
        estimates={
            model: {m: plugins.load(METRICS, m).compute(scores) for m in metrics if _has_scores(scores)}
            for model, scores in by_model.items()
        },
        compared=_compared(metrics, by_model),
        reliability={model: _reliability(scores) for model, scores in by_model.items() if _has_scores(scores)},
        slices=found.slices,
        worst=found.worst,
        hardest=found.hardest,
    )


def _is_measured(metric: str, by_model: Mapping[str, Sequence[SequenceScore]], *, with_teacher: bool) -> bool:
    """Whether every sequence that is scored has the sums that the metric is made of."""
    module = plugins.load(METRICS, metric)
    if module.NEEDS_TEACHER and not with_teacher:
        return False
    complete = (s for scores in by_model.values() for s in scores if s.n_unscored == 0 and s.n_tokens > 0)
    return all(stats.has(s, module.SUMS) for s in complete)


def _reliability(scores: Sequence[SequenceScore]) -> Reliability:
    complete = stats.scored(scores, "reliability")
    n = [sum(s.bin_n[k] for s in complete) for k in range(N_BINS)]
    confidence, correct = (
        tuple(sum(getattr(s, name)[k] for s in complete) / max(n[k], 1) for k in range(N_BINS))
        for name in ("bin_confidence", "bin_correct")
    )
    return Reliability(n=tuple(n), confidence=confidence, correct=correct)


def _has_scores(scores: Sequence[SequenceScore]) -> bool:
    return any(s.n_unscored == 0 and s.n_tokens > 0 for s in scores)


def _compared(metrics: Sequence[str], by_model: dict[str, list[SequenceScore]]) -> tuple[stats.Compared, ...]:
    """Every metric for every two models, corrected for all of them together."""
    made = [
        _compare(metric, by_model, first=first, second=second)
        for first, second in combinations(by_model, 2)
        for metric in metrics
        if stats.paired(by_model[first], by_model[second])[0]
    ]
    together = stats.corrected([c.difference for c in made])
    return tuple(replace(c, difference=difference) for c, difference in zip(made, together, strict=True))


def _compare(metric: str, by_model: dict[str, list[SequenceScore]], *, first: str, second: str) -> stats.Compared:
    measure = plugins.load(METRICS, metric).measure
    a, b = stats.paired(by_model[first], by_model[second])
    return stats.Compared(
        metric=metric, first=first, second=second, difference=stats.difference(measure(a), measure(b))
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
