"""A contest of techniques as a report: one table a budget, differences paired by row and seed, a verdict in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage import roles
from tutelage.evaluation import pooling, stats
from tutelage.evaluation.facts import SetFacts
from tutelage.evaluation.pooling import Paired
from tutelage.evaluation.sums import SequenceScore
from tutelage.evaluation.transfer import HELD_OUT, Cost, Transfer, transfer_of
from tutelage.planning.contest import COMPUTE, TOKENS
from tutelage.planning.show import amount
from tutelage.reports.listed import DECIDED, Listed, marked
from tutelage.reports.numbers import estimate, seconds
from tutelage.reports.report import Report
from tutelage.types import Estimate

CONTROL = "control"
METRICS = {"held_out_loss": "nats", "kl_to_teacher": "nats", "ece": ""}
VIEWS = {TOKENS: "equal tokens", COMPUTE: "equal compute"}
_OVERCONFIDENT = 0.01  # a difference of calibration error that is worth a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One finished run: what it cost, and what its student scored on each set."""

    technique: str
    seed: int
    views: tuple[str, ...]
    tokens: int
    run: str
    scores: Mapping[str, Sequence[SequenceScore]]
    training_s: float
    teacher_s: float  # of labelling or writing, which the seeds share
    flops: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A technique against the control in one view; `sure` holds among all verdicts of the contest together."""

    view: str
    technique: str
    metric: str
    value: float
    stderr: float
    p: float
    by_seed: tuple[float, ...]
    sure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Contested:
    """What a contest found."""

    verdicts: tuple[Verdict, ...]
    report: Report
    entries: tuple[Entry, ...] = field(repr=False)

    def json(self) -> list[dict[str, Any]]:
        """The verdicts, for programs."""
        return [{name: getattr(v, name) for name in Verdict.__dataclass_fields__} for v in self.verdicts]


def contested(
    entries: Sequence[Entry],
    *,
    teacher: Mapping[str, Sequence[SequenceScore]],
    teacher_cost: Cost | None,
    facts: Mapping[str, SetFacts],
    refused: Mapping[tuple[str, str], str],
    made_by: str,
    verdicts: Sequence[Verdict] | None = None,
) -> Contested:
    """Everything from the runs' raw scores; `refused` says what took no part in a view ("": in none), and why.

    `verdicts` are those of `verdicts_of(entries)`, corrected among more comparisons than these; None: among these.
    """
    verdicts = corrected(verdicts_of(entries)) if verdicts is None else verdicts
    views = [view for view in VIEWS if any(view in entry.views for entry in entries)]
    transfer = together(_in_view(entries, views[0]), teacher=teacher, teacher_cost=teacher_cost, facts=facts)
    said = [sentence for view in views for sentence in _said(view, verdicts)]
    missing = [
        f"Not compared: {name}{f' at {VIEWS[view]}' if view else ''}: {reason}."
        for (name, view), reason in refused.items()
    ]
    few = sorted({len(found) for view in views for found in _by_technique(entries, view).values()})
    if not verdicts and any(entry.technique == CONTROL for entry in entries):
        missing.append("Control alone: no other technique ended that could be compared with it.")
    elif not verdicts:
        missing.append("No control: nothing here is compared with plain fine-tuning; add control to the techniques.")
    if few and few[0] < 2:
        missing.append(
            "One seed: what another seed would give is not known; the intervals are over held-out rows alone."
        )
    made = Report(
        run="",
        transfer=transfer,
        tables=[_table(view, entries, verdicts) for view in views],
        runs={f"{e.technique} seed {e.seed}{'' if TOKENS in e.views else ' equal compute'}": e.run for e in entries},
        cautions=missing,
        said=said,
        heading=_heading(entries, verdicts, view=views[0]),
        made_by=made_by,
    )
    return Contested(verdicts=tuple(verdicts), report=made, entries=tuple(entries))


# --- together ---
def _in_view(entries: Sequence[Entry], view: str) -> list[Entry]:
    return [entry for entry in entries if view in entry.views]


def _by_technique(entries: Sequence[Entry], view: str) -> dict[str, list[Entry]]:
    """Those of a view; the seeds of each in rising order."""
    found: dict[str, list[Entry]] = {}
    for entry in sorted(_in_view(entries, view), key=lambda e: e.seed):
        found.setdefault(entry.technique, []).append(entry)
    return found


def together(
    entries: Sequence[Entry],
    *,
    teacher: Mapping[str, Sequence[SequenceScore]],
    teacher_cost: Cost | None,
    facts: Mapping[str, SetFacts],
) -> Transfer:
    """All seeds of a technique as one model, beside the teacher."""
    by_technique: dict[str, list[Entry]] = {}
    for entry in entries:
        by_technique.setdefault(entry.technique, []).append(entry)
    sets = [name for name in entries[0].scores if all(name in entry.scores for entry in entries)]
    scores = {
        name: {
            **({roles.TEACHER: list(teacher[name])} if name in teacher else {}),
            **{t: pooling.pooled([e.scores[name] for e in found]) for t, found in by_technique.items()},
        }
        for name in sets
    }
    costs = {t: found[0].cost for t, found in by_technique.items()}
    costs |= {roles.TEACHER: teacher_cost} if teacher_cost is not None and teacher else {}
    made = transfer_of(scores, roles.TEACHER if teacher else None, costs=costs, facts=facts)
    if max(map(len, by_technique.values())) < 2:
        return made
    # Its differences are over rows alone: with several seeds only the verdicts say what is more than noise.
    unsure = {
        name: replace(
            result,
            compared=tuple(replace(c, difference=replace(c.difference, corrected=False)) for c in result.compared),
        )
        for name, result in made.sets.items()
    }
    return replace(made, sets=unsure)


def verdicts_of(entries: Sequence[Entry]) -> list[Verdict]:
    """Every technique against the control, seeds in pairs; none of them is sure before `corrected`."""
    found = []
    for view in VIEWS:
        by_technique = _by_technique(entries, view)
        if CONTROL not in by_technique:
            continue
        for technique, own in by_technique.items():
            for metric in METRICS if technique != CONTROL else ():
                paired = compare(metric, own, by_technique[CONTROL])
                if paired is not None:
                    found.append(
                        Verdict(view=view, technique=technique, metric=metric, value=paired.value, stderr=paired.stderr,
                                p=paired.p, by_seed=paired.by_seed)
                    )  # fmt: skip
    return found


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Which of them are sure among all of them together (Holm)."""
    adjusted = stats.holm([verdict.p for verdict in verdicts])
    return [replace(v, sure=p <= stats.ALPHA) for v, p in zip(verdicts, adjusted, strict=True)]


def compare(metric: str, own: Sequence[Entry], control: Sequence[Entry]) -> Paired | None:
    """On held-out text, over the seeds that both have."""
    seeds = sorted({e.seed for e in own} & {e.seed for e in control})
    first, second = ([e.scores[HELD_OUT] for e in side if e.seed in seeds] for side in (own, control))
    if not seeds or (metric == "kl_to_teacher" and any(s.kl_nats is None for run in (*first, *second) for s in run)):
        return None
    return pooling.compare(metric, first, second)


# --- in words ---
def _heading(entries: Sequence[Entry], verdicts: Sequence[Verdict], *, view: str) -> str:
    names = sorted({e.technique for e in entries}, key=lambda name: (name != CONTROL, name))
    best = [v for v in verdicts if v.view == view and v.metric == "held_out_loss" and v.sure and v.value < 0]
    others = [name for name in names if name != CONTROL]
    if not any(v.view == view for v in verdicts):
        return f"{', '.join(names)}, not compared with plain fine-tuning."
    if best:
        winner = min(best, key=lambda v: v.value)
        return f"At {VIEWS[view]}, {winner.technique} is furthest ahead of plain fine-tuning."
    return f"At {VIEWS[view]}, nothing of {', '.join(others)} is shown to beat plain fine-tuning."


def _said(view: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Loss against the control, best first; who is closest to the teacher; who became too sure of itself."""
    of_view = [v for v in verdicts if v.view == view]
    loss = sorted((v for v in of_view if v.metric == "held_out_loss"), key=lambda v: v.value)
    if not loss:
        return []
    sure = [f"{v.technique} {_by_how_much(v)}" for v in loss if v.sure]
    unsure = [f"{v.technique} ({v.value:+.3f} ± {v.stderr:.3f})".replace("-", "−") for v in loss if not v.sure]
    parts = sure + ([f"not shown to differ: {', '.join(unsure)}"] if unsure else [])
    label = f"At {VIEWS[view]}"
    said = [f"{label}, against plain fine-tuning: {'; '.join(parts)} (held-out loss, nats)."]
    kl = sorted((v for v in of_view if v.metric == "kl_to_teacher"), key=lambda v: v.value)
    if kl and kl[0].sure and kl[0].value < 0:
        said.append(f"Closest to the teacher at {VIEWS[view]}: {kl[0].technique}, its KL is "
                    f"{-kl[0].value:.3f} ± {kl[0].stderr:.3f} nats below the control’s.")  # fmt: skip
    for v in of_view:
        if v.metric == "ece" and v.sure and abs(v.value) > _OVERCONFIDENT:
            word = "worse" if v.value > 0 else "better"
            said.append(f"Calibration at {VIEWS[view]}: {v.technique} is {word} calibrated than the control "
                        f"(ECE {v.value:+.3f} ± {v.stderr:.3f}).".replace("-", "−"))  # fmt: skip
    return said


def _by_how_much(v: Verdict) -> str:
    verb = "beats it by" if v.value < 0 else "loses"
    return f"{verb} {abs(v.value):.3f} ± {v.stderr:.3f}"


def _table(view: str, entries: Sequence[Entry], verdicts: Sequence[Verdict]) -> Listed:
    by_technique = _by_technique(entries, view)
    order = sorted(by_technique, key=lambda t: (t != CONTROL, t))
    seeds = sorted({len(found) for found in by_technique.values()})
    return Listed(
        title=f"At {VIEWS[view]}, {'–'.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} "
        f"seed{'s' if seeds[-1] > 1 else ''} each",
        note=(
            "Loss on held-out text and KL to the teacher in nats; ± is one standard error, over rows and seeds. "
            f"Against the control: paired by row and seed; {DECIDED}: more than noise among all comparisons made here. "
            "Operations are counted by formula, the teacher's included. Train: seconds of one run; first: seconds in "
            "which the teacher labelled or wrote, once for all seeds."
        ),
        head=["", "Tokens", "Loss", "Against control", "KL", "ECE", "Operations", "Train", "First"],
        rows=[_row(t, by_technique[t], [v for v in verdicts if v.view == view and v.technique == t]) for t in order],
    )


def _row(technique: str, found: Sequence[Entry], verdicts: Sequence[Verdict]) -> list[str]:
    loss = next((v for v in verdicts if v.metric == "held_out_loss"), None)
    against = "" if loss is None else marked(f"{loss.value:+.3f} ± {loss.stderr:.3f}", loss.sure).replace("-", "−")
    mean_s = sum(entry.training_s for entry in found) / len(found)
    return [
        technique,
        f"{found[0].tokens:,}",
        _shown("held_out_loss", found),
        against,
        _shown("kl_to_teacher", found),
        _shown("ece", found, with_error=False),
        amount(found[0].flops),
        seconds(mean_s),
        seconds(found[0].teacher_s) if found[0].teacher_s else "–",
    ]


def _shown(metric: str, found: Sequence[Entry], *, with_error: bool = True) -> str:
    """Of all seeds together, with the error over rows and seeds."""
    runs = [entry.scores[HELD_OUT] for entry in found]
    if metric == "kl_to_teacher" and any(s.kl_nats is None for run in runs for s in run):
        return "–"
    value = pooling.estimate(metric, runs)
    if value is None:
        return "–"
    number, error = estimate(Estimate(value=value.value, stderr=value.stderr, n=1, unit=""), n_decimals=3)
    return f"{number} ± {error}" if with_error else number
