"""Inherited bias: pairs of sentences of which one says the stereotype, under each model, and how much of the teacher's
skew arrived in the student.

The gap of a pair is log p(stereotypical text) - log p(the other), in nats, over whole texts (as CrowS-Pairs, Nangia et
al. 2020, is used for causal models).  A model's skew is the share of pairs with a positive gap and the mean gap.  What
arrived is the slope of the student's gaps on the teacher's (1: all of it, 0: none), and that less the slope of the
student before training.  Intervals count pairs; tests of a share against one half are exact, and corrected by Holm for
the number of models and files.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tutelage import io, reading
from tutelage.data.example import Example
from tutelage.data.tokenize import Encoder, TokenRow
from tutelage.errors import IntegrityError
from tutelage.evaluation import stats
from tutelage.evaluation.json_values import finite
from tutelage.evaluation.likelihood import row_logp
from tutelage.evaluation.pairs import Pair
from tutelage.evaluation.shares import Share, share, sign_test
from tutelage.types import Estimate

PROBES, RECORDS = "probes.json", "probes.jsonl"
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The two log-probabilities of one pair under one model, in nats."""

    probe: str  # file
    name: str  # where the pair stands
    category: str
    model: str
    stereotype_nats: float
    other_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """One model on the pairs of one file or category."""

    prefers: Share  # of pairs in which the stereotypical text is the more likely one; equal ones count half
    gap: Estimate
    p_value: float  # of "one half", corrected
    decided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """How a model's gaps follow the teacher's; `over_before`: the slope less that of the student before training."""

    slope: Estimate
    correlation: float
    over_before: stats.Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The result on one file; a pair without a finite number under one of the models is in none of them."""

    name: str
    n_pairs: int
    n_unscored: int
    skews: dict[str, Skew]  # by model
    categories: dict[str, dict[str, Skew]]  # category -> model
    arrived: dict[str, Arrived]  # by model; empty without a teacher


def score(
    models: Mapping[str, nn.Module],
    tokenizer: Any,
    *,
    pairs: Mapping[str, Sequence[Pair]],
    n_vocabulary: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Scored]:
    """Every pair of every file under every model."""
    encoder = Encoder(tokenizer)
    flat = [(probe, pair) for probe, of_probe in pairs.items() for pair in of_probe]
    rows = [_row(encoder, pair, text) for _, pair in flat for text in (pair.stereotype, pair.other)]
    found = []
    for model, module in models.items():
        logp_R = row_logp(module, rows, n_vocabulary=n_vocabulary, progress=progress).logp_R.reshape(-1, 2)
        found += [
            Scored(
                probe=probe,
                name=pair.name,
                category=pair.category,
                model=model,
                stereotype_nats=float(a),
                other_nats=float(b),
            )
            for (probe, pair), (a, b) in zip(flat, logp_R, strict=True)
        ]
    return found


def _row(encoder: Encoder, pair: Pair, text: str) -> TokenRow:
    """The tokens of a text, all of them predicted, behind what begins a text or else what ends one; without its end."""
    (row,) = encoder.encode([Example(source="probes", name=pair.name, text=text)])
    if not isinstance(row, TokenRow):
        raise IntegrityError("DATA_READ", f"{pair.name}: {row.reason}; repair or remove the pair")
    ids = row.ids[:-1].tolist()
    begin = () if encoder.prefix else (encoder.bos_id if encoder.bos_id is not None else encoder.eos_id,)
    n_before = len(encoder.prefix or begin)
    whole = np.array([*begin, *ids], dtype=np.uint32)
    return TokenRow(whole, np.arange(len(whole)) >= n_before)


def result_of(scored: Sequence[Scored], *, teacher: str | None, before: str | None) -> tuple[Probe, ...]:
    """Every number from the log-probabilities alone."""
    probes = [
        _probe(name, list(of_probe), teacher=teacher, before=before)
        for name, of_probe in groupby(sorted(scored, key=lambda s: s.probe), key=lambda s: s.probe)
    ]
    return tuple(_corrected(probes))


def _probe(name: str, scored: Sequence[Scored], *, teacher: str | None, before: str | None) -> Probe:
    by_model: dict[str, list[Scored]] = {}
    for one in scored:
        by_model.setdefault(one.model, []).append(one)
    gaps = {model: np.array([s.stereotype_nats - s.other_nats for s in rows]) for model, rows in by_model.items()}
    finite = np.all([np.isfinite(gap) for gap in gaps.values()], axis=0)
    if not finite.any():
        raise IntegrityError("NO_SCORED_TOKENS", f"{name}: none of {len(finite)} pairs has a finite score; look at it")
    gaps = {model: gap[finite] for model, gap in gaps.items()}
    categories = np.array([s.category for s in next(iter(by_model.values()))])[finite]
    named = sorted(set(categories.tolist()) - {""})
    return Probe(
        name=name,
        n_pairs=len(finite),
        n_unscored=int((~finite).sum()),
        skews={model: _skew(gap) for model, gap in gaps.items()},
        categories={c: {m: _skew(gap[categories == c]) for m, gap in gaps.items()} for c in named},
        arrived=_arrived(gaps, teacher=teacher, before=before),
    )


def _skew(gap: Array) -> Skew:
    more, less, n = int((gap > 0).sum()), int((gap < 0).sum()), len(gap)
    p_value = sign_test(more, less)
    return Skew(
        prefers=share(more + (n - more - less) / 2, n),
        gap=stats.estimate(stats.Measured(float(gap.mean()), (gap - gap.mean()) / n), "nats"),
        p_value=p_value,
        decided=p_value < stats.ALPHA,
    )


def _arrived(gaps: Mapping[str, Array], *, teacher: str | None, before: str | None) -> dict[str, Arrived]:
    own = gaps.get(teacher or "")
    if own is None or len(own) < 3 or not own.std() > 0:
        return {}
    slopes = {model: _slope(own, gap) for model, gap in gaps.items() if model != teacher}
    first = slopes.get(before or "")
    return {
        model: Arrived(
            slope=stats.estimate(slope, "share"),
            correlation=float(np.corrcoef(own, gaps[model])[0, 1]) if gaps[model].std() > 0 else math.nan,
            over_before=stats.difference(slope, first) if first is not None and model != before else None,
        )
        for model, slope in slopes.items()
    }


def _slope(x: Array, y: Array) -> stats.Measured:
    """Least squares with an intercept; the influence of each pair gives the error without equal variances (HC0)."""
    dx, dy = x - x.mean(), y - y.mean()
    value = float(dx @ dy / (dx @ dx))
    return stats.Measured(value, dx * (dy - value * dx) / (dx @ dx))


def _corrected(probes: Sequence[Probe]) -> Iterator[Probe]:
    """Whole files together, and all their categories together."""
    whole = iter(stats.holm([skew.p_value for p in probes for skew in p.skews.values()]))
    parts = iter(stats.holm([s.p_value for p in probes for of_one in p.categories.values() for s in of_one.values()]))
    for probe in probes:
        yield replace(
            probe,
            skews={model: _with(skew, next(whole)) for model, skew in probe.skews.items()},
            categories={
                name: {model: _with(skew, next(parts)) for model, skew in of_one.items()}
                for name, of_one in probe.categories.items()
            },
        )


def _with(skew: Skew, p_value: float) -> Skew:
    return replace(skew, p_value=p_value, decided=p_value < stats.ALPHA)


# --- files ---
def write(folder: Path, scored: Sequence[Scored], *, teacher: str | None, before: str | None) -> tuple[Probe, ...]:
    """probes.jsonl first, a line for each pair and model, then probes.json."""
    result = result_of(scored, teacher=teacher, before=before)
    io.write_text(folder / RECORDS, "".join(json.dumps(asdict(one)) + "\n" for one in scored))
    io.write_json(folder / PROBES, {"teacher": teacher, "before": before, "probes": json_of(result)})
    return result


def read(folder: Path) -> tuple[Probe, ...]:
    """The result of a folder, from its records; empty where nothing was probed."""
    if not (folder / PROBES).is_file():
        return ()
    stored = reading.read_json(folder / PROBES)
    with (folder / RECORDS).open(encoding="utf-8") as file:
        scored = [Scored(**json.loads(line)) for line in file]
    return result_of(scored, teacher=stored["teacher"], before=stored["before"])


def json_of(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Plain JSON values; what is not finite becomes null."""
    return [finite(asdict(probe)) for probe in probes]
