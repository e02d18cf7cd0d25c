"""The settings of a sweep as one family: which technique at which setting is worth its size, and who beats whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.evaluation import pooling, stats
from tutelage.evaluation.facts import SetFacts
from tutelage.evaluation.sums import SequenceScore
from tutelage.evaluation.transfer import HELD_OUT, Cost
from tutelage.planning.contest import COMPUTE, TOKENS
from tutelage.reports import contest
from tutelage.reports.contest import CONTROL, VIEWS, Contested, Entry, Verdict
from tutelage.reports.listed import DECIDED, Listed, marked
from tutelage.reports.numbers import count, size
from tutelage.reports.report import Report

_LOSS, _KL = "held_out_loss", "kl_to_teacher"
ON_FRONT = "front"
_OWN_BUDGET = {TOKENS: "", COMPUTE: " Each setting has a budget of its own here: what its soft labels compute."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A technique at a setting in one view; `beaten_by` is no larger and has a lower loss, "" of a row on the front."""

    view: str
    setting: str
    technique: str
    parameters: int
    parameter_bytes: int
    tokens: int
    loss: float
    loss_stderr: float
    kl: float | None
    beaten_by: str = ""
    sure: bool = False  # that it is beaten by more than noise, among all comparisons of the sweep

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.setting} {self.technique}"

    def json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {name: getattr(self, name) for name in Row.__dataclass_fields__} | {"on_front": not self.beaten_by}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One setting's finished runs, and what `contested` needs beside them."""

    entries: Sequence[Entry]
    teacher: Mapping[str, Sequence[SequenceScore]]
    teacher_cost: Cost | None
    facts: Mapping[str, SetFacts]
    refused: Mapping[tuple[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a sweep found: each setting's own contest, the rows of every view, and all of it as a page."""

    settings: Mapping[str, Contested]
    rows: tuple[Row, ...]
    report: Report


def family(measured: Mapping[str, Measured], *, made_by: str, missing: Sequence[str] = ()) -> Family:
    """Everything from the raw scores, by setting; what is more than noise is so among all comparisons of the sweep.

    `missing` are sentences about settings that took no part.
    """
    views = [v for v in VIEWS if any(v in e.views for one in measured.values() for e in one.entries)]
    fields = {view: _Field(measured, view=view) for view in views}
    raw = {setting: contest.verdicts_of(one.entries) for setting, one in measured.items()}
    everything = [p for field in fields.values() for p in field.p.values()] + [v.p for f in raw.values() for v in f]
    limit = _largest_sure(everything)
    rows = [row for field in fields.values() for row in field.rows(limit=limit)]
    settings = {
        setting: contest.contested(
            one.entries,
            teacher=one.teacher,
            teacher_cost=one.teacher_cost,
            facts=one.facts,
            refused=one.refused,
            made_by=made_by,
            verdicts=[replace(v, sure=v.p <= limit) for v in raw[setting]],
        )
        for setting, one in measured.items()
    }
    report = _report(measured, settings, rows=rows, views=views, made_by=made_by)
    report = replace(report, cautions=[*missing, *report.cautions])
    return Family(settings=settings, rows=tuple(rows), report=report)


def _largest_sure(p_values: Sequence[float]) -> float:
    """The largest p-value that Holm's correction among all of them rejects; -1 where it rejects none."""
    adjusted = stats.holm(p_values)
    return max((p for p, holds in zip(p_values, adjusted, strict=True) if holds <= stats.ALPHA), default=-1.0)


class _Field:
    """All techniques at all settings in one view, and every pair of them where the second is no larger."""

    def __init__(self, measured: Mapping[str, Measured], *, view: str) -> None:
        self.view = view
        self.found: dict[tuple[str, str], list[Entry]] = {}
        for setting, one in measured.items():
            for entry in sorted(one.entries, key=lambda e: e.seed):
                if view in entry.views:
                    self.found.setdefault((setting, entry.technique), []).append(entry)
        self.loss = {key: _estimate(_LOSS, runs) for key, runs in self.found.items()}
        self.found = {key: runs for key, runs in self.found.items() if self.loss[key] is not None}
        self.p: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
        for key, runs in self.found.items():
            for other, its_runs in self.found.items():
                if other != key and _no_larger(its_runs[0].cost, runs[0].cost):
                    paired = contest.compare(_LOSS, runs, its_runs)
                    if paired is not None:
                        self.p[key, other] = paired.p

    def rows(self, *, limit: float) -> list[Row]:
        """From small to large, and of one size the best first; a p-value up to `limit` is more than noise."""
        made = [self._row(key, limit=limit) for key in self.found]
        return sorted(made, key=lambda row: (row.parameters, row.loss))

    def _row(self, key: tuple[str, str], *, limit: float) -> Row:
        runs, loss = self.found[key], self._loss(key)
        beating = [other for other in self.found if other != key and self._beats(other, key)]
        best = min(beating, key=lambda other: self._loss(other).value, default=None)
        kl = _estimate(_KL, runs)
        return Row(
            view=self.view,
            setting=key[0],
            technique=key[1],
            parameters=runs[0].cost.parameters,
            parameter_bytes=runs[0].cost.parameter_bytes,
            tokens=runs[0].tokens,
            loss=loss.value,
            loss_stderr=loss.stderr,
            kl=kl.value if kl is not None else None,
            beaten_by=" ".join(best) if best is not None else "",
            sure=best is not None and self.p.get((key, best), 1.0) <= limit,
        )

    def _loss(self, key: tuple[str, str]) -> pooling.Paired:
        found = self.loss[key]
        assert found is not None, "rows without a loss are left out"
        return found

    def _beats(self, other: tuple[str, str], key: tuple[str, str]) -> bool:
        """Whether another row is no larger and has a lower loss, or is smaller with the same."""
        theirs, own = self.found[other][0].cost, self.found[key][0].cost
        a, b = self._loss(other).value, self._loss(key).value
        return _no_larger(theirs, own) and (a < b or (a == b and not _no_larger(own, theirs)))


def _no_larger(a: Cost, b: Cost) -> bool:
    return a.parameters <= b.parameters and a.parameter_bytes <= b.parameter_bytes


def _estimate(metric: str, runs: Sequence[Entry]) -> pooling.Paired | None:
    scores = [entry.scores[HELD_OUT] for entry in runs]
    if metric == _KL and any(s.kl_nats is None for run in scores for s in run):
        return None
    return pooling.estimate(metric, scores)


# --- the page ---
def _report(
    measured: Mapping[str, Measured], settings: Mapping[str, Contested], *, rows: Sequence[Row],
    views: Sequence[str], made_by: str,
) -> Report:  # fmt: skip
    first = [row for row in rows if row.view == views[0]]
    shown = {(row.setting, row.technique) for row in first if not row.beaten_by or row.technique == CONTROL}
    entries = [
        replace(entry, technique=f"{setting} {entry.technique}")
        for setting, one in measured.items()
        for entry in one.entries
        if views[0] in entry.views and (setting, entry.technique) in shown
    ]
    one = next(iter(measured.values()))
    said = [_front_in_words(view, [row for row in rows if row.view == view]) for view in views]
    said += [f"{name}: {s[0].lower()}{s[1:]}" for name, found in settings.items() for s in found.report.said or ()]
    return Report(
        run="",
        transfer=contest.together(entries, teacher=one.teacher, teacher_cost=one.teacher_cost, facts=one.facts),
        tables=[
            *(_table(view, [row for row in rows if row.view == view], settings) for view in views),
            *(replace(t, title=f"{name}: {_lower(t.title)}") for name, f in settings.items() for t in f.report.tables),
        ],
        runs={f"{name} {run}": path for name, found in settings.items() for run, path in found.report.runs.items()},
        cautions=_cautions(settings),
        said=said,
        heading=_heading(first, views[0]),
        made_by=made_by,
    )


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _cautions(settings: Mapping[str, Contested]) -> list[str]:
    """Each once: what holds of every setting without its name."""
    found: dict[str, list[str]] = {}
    for name, contested in settings.items():
        for caution in contested.report.cautions:
            found.setdefault(caution, []).append(name)
    return [text if len(of) == len(settings) else f"{', '.join(of)}: {text}" for text, of in found.items()]


def _heading(rows: Sequence[Row], view: str) -> str:
    front = [row for row in rows if not row.beaten_by]
    return f"At {VIEWS[view]}, {len(front)} of {len(rows)} students are worth their size."


def _front_in_words(view: str, rows: Sequence[Row]) -> str:
    front = [f"{row.name} ({count(row.parameters)}, {row.loss:.3f} nats)" for row in rows if not row.beaten_by]
    return f"Front at {VIEWS[view]}, from small to large: {'; '.join(front)}."


def _table(view: str, rows: Sequence[Row], settings: Mapping[str, Contested]) -> Listed:
    return Listed(
        title=f"Size against quality at {VIEWS[view]}",
        note=(
            "Beaten by: the best one that is no larger in parameters and bytes and has a lower loss on held-out text "
            f"(nats; ± is one standard error, over rows and seeds); {DECIDED}: by more than noise, among all "
            "comparisons of the sweep. Own control: plain fine-tuning of the same student, paired by row and seed."
            f"{_OWN_BUDGET[view]}"
        ),
        head=["", "Parameters", "Size", "Tokens", "Loss", "Own control", "KL", "Beaten by"],
        rows=[_cells(row, _own(row, settings[row.setting].verdicts)) for row in rows],
    )


def _own(row: Row, verdicts: Sequence[Verdict]) -> Verdict | None:
    """The row against the control of its setting."""
    wanted = (row.view, row.technique, _LOSS)
    return next((v for v in verdicts if (v.view, v.technique, v.metric) == wanted), None)


def _cells(row: Row, own: Verdict | None) -> list[str]:
    against = "" if own is None else marked(f"{own.value:+.3f} ± {own.stderr:.3f}", own.sure).replace("-", "−")
    return [
        row.name,
        count(row.parameters),
        size(row.parameter_bytes),
        f"{row.tokens:,}",
        f"{row.loss:.3f} ± {row.loss_stderr:.3f}",
        against,
        f"{row.kl:.3f}" if row.kl is not None else "–",
        marked(row.beaten_by, row.sure) if row.beaten_by else ON_FRONT,
    ]
