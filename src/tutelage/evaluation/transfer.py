"""The transfer: what each model scores on each set of held-out text, and which differences are more than noise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from tutelage import plugins
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.score import Scored, SequenceScore, score_models
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
    """A model's confidence against how often it is right: a bin each of n positions, mean confidence, share correct."""

    n: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The results on a part of the positions; `kind` is what they were divided by, `name` says which part, in words."""

    kind: str
    name: str
    n_sequences: int
    n_tokens: int
    estimates: dict[str, dict[str, Estimate]]  # model -> metric -> estimate
    example: str = ""  # a text around the student's worst token in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hard:
    """One of the hardest inputs: its row, an excerpt to read, and each model's values by metric."""

    row: int
    text: str
    values: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """The results on one set of text; `n_unscored` counts the sequences that a model gave no number for."""

    n_sequences: int
    n_tokens: int
    n_unscored: dict[str, int]
    estimates: dict[str, dict[str, Estimate]]  # model -> metric -> estimate
    compared: tuple[stats.Compared, ...]
    reliability: dict[str, Reliability] = field(default_factory=dict)  # by model
    slices: tuple[Slice, ...] = ()
    worst: tuple[int, ...] = ()  # places in `slices`, the student's worst first
    hardest: tuple[Hard, ...] = ()

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
) -> Scores:
    """The raw scores of all models on all sets: what `transfer_of` and the records are made from."""
    return {
        name: score_models(models, batches, teacher=teacher, n_vocabulary=n_vocabulary, chunk=chunk, progress=progress)
        for name, batches in sets.items()
    }


def transfer_of(scores: Scores, teacher: str | None, *, costs: dict[str, Cost] | None = None) -> Transfer:
    """Every number from the raw scores alone: the same scores give the same transfer, bit for bit."""
    models = tuple(next(iter(scores.values())))
    return Transfer(
        teacher=teacher,
        models=models,
        sets={name: _set_result(by_model, with_teacher=teacher is not None) for name, by_model in scores.items()},
        costs=costs or {},
    )


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
    parameters = list(model.parameters())
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        rate_tok_per_s=rate_tok_per_s,
        training_s=training_s,
    )


def _set_result(by_model: dict[str, list[SequenceScore]], *, with_teacher: bool) -> SetResult:
    metrics = [m for m in plugins.names(METRICS) if with_teacher or not plugins.load(METRICS, m).NEEDS_TEACHER]
    first = next(iter(by_model.values()))
    return SetResult(
        n_sequences=len(first),
        n_tokens=sum(s.n_tokens + s.n_unscored for s in first),
        n_unscored={model: sum(s.n_unscored > 0 for s in scores) for model, scores in by_model.items()},
        estimates={
            model: {m: plugins.load(METRICS, m).compute(scores) for m in metrics if _has_scores(scores)}
            for model, scores in by_model.items()
        },
        compared=tuple(
            _compare(metric, by_model, first=first, second=second)
            for first, second in combinations(by_model, 2)
            for metric in metrics
            if stats.paired(by_model[first], by_model[second])[0]
        ),
    )


def _has_scores(scores: Sequence[SequenceScore]) -> bool:
    return any(s.n_unscored == 0 and s.n_tokens > 0 for s in scores)


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
