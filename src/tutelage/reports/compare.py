"""Several runs as one report: their students beside one another, on the same text and with the same teacher.

The raw records of the runs are put together and everything is computed from them as for one run, so that differences
between students of different runs are paired too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage import console, reading, roles
from tutelage.errors import ConfigError
from tutelage.evaluation import records
from tutelage.evaluation.transfer import HELD_OUT, Transfer
from tutelage.reports.listed import Listed
from tutelage.reports.numbers import count, seconds
from tutelage.reports.report import Report
from tutelage.reports.table import model_name
from tutelage.rundir import RunDirectory

_SAME_LOSS = 5e-3  # relative: a stored teacher, or another order of additions, moves a loss by less


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One run: its name in the comparison, and what must be alike."""

    name: str
    run: RunDirectory
    provenance: Mapping[str, Any]
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    costs: Mapping[str, Any]
    lines: tuple[dict[str, Any], ...]  # of records.jsonl: those with a model
    facts: tuple[dict[str, Any], ...]  # the others, which are of a set's rows
    head: Mapping[str, Any]

    def rows(self, set_name: str) -> list[tuple[int, int]]:
        """(row, scored and unscored tokens) of a set: of the teacher, or of the first model."""
        found = [line for line in self.lines if line["set"] == set_name]
        first = found[0]["model"] if found else ""
        return [(line["row"], line["n_tokens"] + line["n_unscored"]) for line in found if line["model"] == first]

    @property
    def sets(self) -> list[str]:
        """The names of the sets it was measured on."""
        return list(dict.fromkeys(line["set"] for line in self.lines))

    @property
    def teacher_loss(self) -> float | None:
        """The teacher's held-out loss in nats, None where no teacher was measured."""
        own = [s for s in self.lines if s["model"] == self.head["teacher"] and s["set"] == HELD_OUT]
        n_tokens = sum(line["n_tokens"] for line in own)
        return sum(line["nll_nats"] for line in own) / n_tokens if n_tokens else None


def compared(runs: Sequence[RunDirectory]) -> Report:
    """One report of several finished runs.

    Raises ConfigError[NOT_COMPARABLE] with every reason when their evaluation sets, tokenizers or teachers differ;
    warns with UNEQUAL_BUDGET when they were trained on different numbers of tokens.
    """
    parts = [_part(name, run) for name, run in zip(_names(runs), runs, strict=True)]
    if reasons := _reasons(parts):
        raise ConfigError(
            "NOT_COMPARABLE",
            f"these runs cannot share a table: {'; '.join(reasons)}; make a page of each: tutelage report {runs[0]}",
        )
    teacher = parts[0].head["teacher"] if all(part.teacher_loss is not None for part in parts) else None
    sets = [name for name in parts[0].sets if all(name in part.sets for part in parts)]
    head = json.dumps({**parts[0].head, "teacher": teacher})
    transfer = records.recompute([head, *_lines(parts, sets=sets)], costs=_costs(parts))
    return Report(
        run="",
        transfer=transfer,
        tables=[_runs_table(parts)],
        runs={part.name: str(part.run) for part in parts},
        cautions=_cautions(parts, sets=sets, teacher=teacher),
        said=_ranked(transfer),
    )


# --- names ---
def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """A name for each run: its folder's, with the one above where two are alike."""
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError("CONFIG", "the same run is named twice; name each run once")
    for depth in range(1, 1 + max(len(run.path.resolve().parts) for run in runs)):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            break
    taken = (*roles.RESERVED, roles.TEACHER)
    return [f"run {n}" if n in taken or n.startswith(roles.PREFIXES) else n for n in names]


def _renamed(model: str, part: _Part) -> str:
    """A model's name among those of all runs: the student of a run is called like the run."""
    students = roles.students({line["model"]: None for line in part.lines})
    for student in students:
        name = part.name if student == roles.STUDENT else f"{part.name}/{student}"
        if model == student:
            return name
        if model in (roles.before(student), roles.control(student)):
            return roles.before(name) if model == roles.before(student) else roles.control(name)
    return model


# --- what they are made of ---
def _part(name: str, run: RunDirectory) -> _Part:
    records.read(run.evaluation)  # a number that its records do not give is refused here too
    with (run.evaluation / records.RECORDS).open(encoding="utf-8") as file:
        head, *lines = map(json.loads, file)
    return _Part(
        name=name,
        run=run,
        provenance=reading.read_json(run.provenance_path),
        recipe=yaml.safe_load(run.recipe_path.read_text(encoding="utf-8")),
        summary=reading.read_json(run.finished_path),
        costs=reading.read_json(run.evaluation / records.TRANSFER).get("costs", {}),
        lines=tuple(line for line in lines if "model" in line),
        facts=tuple(line for line in lines if "model" not in line),
        head=head,
    )


def _lines(parts: Sequence[_Part], *, sets: Sequence[str]) -> Iterator[str]:
    """The records of all runs under their names in the comparison; the teacher's, and what is of the text, once."""
    yield from (json.dumps(line) for line in parts[0].facts if line.get("set") in sets)
    for name in sets:
        for part in parts:
            for line in part.lines:
                is_teacher = line["model"] == roles.TEACHER
                if line["set"] == name and not (is_teacher and part is not parts[0]):
                    renamed = _renamed(line["model"], part)
                    if not roles.is_before(renamed):  # what they were before stands in the page of each run
                        yield json.dumps({**line, "model": renamed})


def _costs(parts: Sequence[_Part]) -> dict[str, dict[str, Any]]:
    return {
        renamed: cost
        for part in reversed(parts)  # the teacher's of the first run
        for model, cost in part.costs.items()
        if not roles.is_before(renamed := _renamed(model, part))
    }


# --- whether they may be compared ---
def _reasons(parts: Sequence[_Part]) -> list[str]:
    """Why the runs cannot be compared, each with what every run has; none when they can."""
    reasons = _differing("tokenizer", {p.name: str(p.provenance.get("tokenizer"))[:8] for p in parts})
    reasons += _teachers(parts)
    if without := [part.name for part in parts if HELD_OUT not in part.sets]:
        reasons.append(f"held-out text ({', '.join(without)}: none)")
    for name in dict.fromkeys(name for part in parts for name in part.sets):
        having = [part for part in parts if name in part.sets]
        reasons += _texts(name, having)
    return reasons


def _differing(what: str, values: Mapping[str, str]) -> list[str]:
    if len(set(values.values())) == 1:
        return []
    return [f"{what} ({', '.join(f'{name}: {value}' for name, value in values.items())})"]


def _teachers(parts: Sequence[_Part]) -> list[str]:
    """The teachers differ when their weights do, or what they answered; a stored teacher is known by its answers."""
    known = [part for part in parts if part.teacher_loss is not None]
    live = {p.name: str(p.provenance.get("teacher")) for p in known}
    live = {name: value[:8] for name, value in live.items() if not value.startswith("cache ")}
    reasons = _differing("teacher", live) if live else []
    losses = {part.name: part.teacher_loss or 0.0 for part in known}
    if not reasons and losses and max(losses.values()) - min(losses.values()) > _SAME_LOSS * max(losses.values()):
        reasons = _differing("teacher’s held-out loss", {name: f"{loss:.3f}" for name, loss in losses.items()})
    return reasons


def _texts(set_name: str, parts: Sequence[_Part]) -> list[str]:
    """The text differs when its rows do; of held-out text the store that it was taken from, too."""
    shown = set_name.replace("_", "-")
    rows = {part.name: part.rows(set_name) for part in parts}
    said = {name: f"{len(r)} texts, {sum(n for _, n in r):,} tokens" for name, r in rows.items()}
    if len({tuple(r) for r in rows.values()}) > 1:
        return _differing(f"{shown} text", said) or [f"{shown} text (as many texts, others)"]
    if set_name != HELD_OUT:
        return []
    stores = {part.name: str(part.provenance.get("data", {}).get("held_out"))[:8] for part in parts}
    return _differing(f"{shown} data", stores)


# --- what it says ---
def _ranked(transfer: Transfer) -> list[str]:
    """Which student is best, and whether the next one is behind by more than noise."""
    result, said = transfer.sets[HELD_OUT], []
    for metric, label, best in (
        ("held_out_loss", "Held-out loss", "lowest"),
        ("kl_to_teacher", "Imitation", "closest"),
    ):
        values = {m: result.estimates.get(m, {}).get(metric) for m in roles.students(transfer.models)}
        ranked = sorted((found.value, model) for model, found in values.items() if found is not None)
        if len(ranked) < 2:
            continue
        (_, first), (_, second) = ranked[:2]
        d = result.difference(metric, first=first, second=second)
        each = ", ".join(f"{model_name(model)} {value:.3f}" for value, model in ranked)
        verdict = (
            f"{best} is {model_name(first)}, ahead of {model_name(second)} by {abs(d.value):.3f} ± {d.stderr:.3f} nats"
            if d is not None and d.is_sure
            else f"no difference between {model_name(first)} and {model_name(second)} beyond noise"
        )
        what = "KL to the teacher, nats: " if metric == "kl_to_teacher" else "nats: "
        said.append(f"{label}: {verdict} ({what}{each}).")
    return said


# --- what the reader must know ---
def _cautions(parts: Sequence[_Part], *, sets: Sequence[str], teacher: str | None) -> list[str]:
    said = []
    tokens = {part.name: int(part.summary.get("tokens", 0)) for part in parts}
    if len(set(tokens.values())) > 1:
        each = ", ".join(f"{name} {count(n)}" for name, n in tokens.items())
        console.warning("UNEQUAL_BUDGET", f"training tokens differ: {each}; the table is marked as not comparable")
        said.append(f"Not comparable at equal cost: the runs were trained on different numbers of tokens ({each}).")
    if not any(part.recipe.get("control") for part in parts):
        said.append(
            "No control: no run trained the same student without a teacher, so what teaching was worth is not known."
        )
    if teacher is None:
        without = ", ".join(part.name for part in parts if part.teacher_loss is None)
        said.append(f"No teacher measured: {without} had none on this text, so KL and agreement are left out.")
    if dropped := sorted({name for part in parts for name in part.sets} - set(sets)):
        names = ", ".join(name.replace("_", "-") for name in dropped)
        said.append(f"Left out: not every run was measured on {names} text.")
    return said


def _runs_table(parts: Sequence[_Part]) -> Listed:
    return Listed(
        title="The runs",
        note="Tokens and seconds are of the student’s training; a family trains all its students in that time.",
        head=["", "Folder", "Learned from", "Training tokens", "Training"],
        rows=[
            [
                part.name,
                str(part.run),
                _loss_of(part.recipe),
                f"{int(part.summary.get('tokens', 0)):,}",
                seconds(max(part.summary.get("training_s", {"": 0.0}).values())),
            ]
            for part in parts
        ],
    )


def _loss_of(recipe: Mapping[str, Any]) -> str:
    terms = recipe.get("loss") or ()
    return " + ".join(
        str(term.get("divergence") or term.get("features") or f"cross-entropy ({term.get('cross_entropy')})")
        for term in terms
    )


def path_of_comparison(runs: Sequence[RunDirectory]) -> Path:
    """Where a comparison is written unless somebody says where: beside the first run."""
    return runs[0].path.parent / "comparison"
