"""What the runs of a comparison scored, all against the same teacher, and what they took."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage import io, reading, roles
from tutelage.evaluation import records, transfer
from tutelage.evaluation.facts import SetFacts
from tutelage.evaluation.sums import SequenceScore
from tutelage.evaluation.transfer import Cost
from tutelage.models import load
from tutelage.planning.contest import Arm, Contest
from tutelage.recipe import load_recipe
from tutelage.reports.contest import Entry
from tutelage.rundir import RunDirectory
from tutelage.training.prepare import InMemory, prepare
from tutelage.verbs.evaluate import on_path, teacher_of

SPENT = "spent.json"  # seconds of what several runs share, by what was done, and how many positions were labelled
_MEASURED = "measured"


def quiet(tree: dict[str, Any]) -> dict[str, Any]:
    """The arm's recipe without what is measured for one run's page alone."""
    left_out = {
        "prompts": [],
        "overlap": False,
        "triggers": False,
        "writes": None,
        "probes": None,
        "task_prompts": None,
    }
    return {**tree, "evaluation": {**(tree.get("evaluation") or {}), **left_out}}


def spent_in(folder: Path) -> dict[str, float]:
    """Seconds so far by what was done: label, generate; "label n" are positions."""
    path = folder / SPENT
    return {str(k): float(v) for k, v in reading.read_json(path).items()} if path.is_file() else {}


def entry(arm: Arm, folder: Path, measuring: "Measuring", *, shared: Path) -> Entry:
    """A finished run as the report wants it; `shared` has what its teacher did for several runs."""
    run = RunDirectory(folder / arm.name)
    summary = reading.read_json(run.finished_path)
    return Entry(
        technique=arm.technique,
        seed=arm.seed,
        views=arm.views,
        tokens=arm.tokens,
        run=str(run),
        scores=_scores(measuring.place(arm), roles.STUDENT),
        training_s=float(summary["training_s"].get(roles.STUDENT, 0.0)),
        teacher_s=_teacher_first_s(arm, spent_in(shared)),
        flops=arm.flops.total,
        cost=Cost(**reading.read_json(run.evaluation / records.TRANSFER)["costs"][roles.STUDENT]),
    )


def _teacher_first_s(arm: Arm, spent: dict[str, float]) -> float:
    """Of the seconds in which the teacher labelled or wrote for all runs, those of what this run uses.

    Answers are used whole by every run.  A cache holds the rows of all seeds, and each run reads its own.
    """
    if arm.work.answer:
        return spent.get("generate", 0.0)
    if not arm.work.stored:
        return 0.0
    return spent.get("label", 0.0) * min(1.0, arm.work.stored / max(1.0, spent.get("label n", 0.0)))


def _lines(place: Path) -> list[dict[str, Any]]:
    with (place / records.RECORDS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _scores(place: Path, model: str) -> dict[str, list[SequenceScore]]:
    """By set, the raw scores of one model."""
    found: dict[str, list[SequenceScore]] = {}
    for line in _lines(place):
        if line.get("model") == model:
            name = line["set"]
            found.setdefault(name, []).append(
                records.score_of({k: v for k, v in line.items() if k not in ("set", "model")})
            )
    return found


def is_live(arm: Arm) -> bool:
    """Whether the arm's run measures against the recipe's own teacher: it is loaded, and does not learn."""
    teacher = arm.recipe.get("teacher") or {}
    return all(teacher.get(name) is None for name in ("cache", "train")) and teacher.get("model") is not None


class Measuring:
    """Where the scores against the recipe's own teacher lie; a run with another teacher is measured once more.

    A cache holds the teacher a little rounded, and a teacher that learned is another one.
    """

    def __init__(self, contest: Contest, folder: Path) -> None:
        self._contest, self._folder = contest, folder

    def place(self, arm: Arm) -> Path:
        """The folder of the arm's records."""
        own = RunDirectory(self._folder / arm.name).evaluation
        return own if is_live(arm) else self._again(arm)

    def teacher(self, arms: Sequence[Arm]) -> tuple[dict[str, list[SequenceScore]], Cost | None, dict[str, SetFacts]]:
        """The teacher's scores and cost, and what is known of the rows, from the first run that has them."""
        for arm in arms:
            place = self.place(arm)
            found = _scores(place, roles.TEACHER)
            if found:
                costs = reading.read_json(place / records.TRANSFER)["costs"].get(roles.TEACHER)
                return found, Cost(**costs) if costs else None, records.facts_in(_lines(place))
        return {}, None, records.facts_in(_lines(self.place(arms[0])))

    def _again(self, arm: Arm) -> Path:
        place = self._folder / _MEASURED / arm.name
        run = RunDirectory(self._folder / arm.name)
        if (place / records.TRANSFER).is_file():
            return place
        live = next((other for other in self._contest.arms if is_live(other)), None)
        if live is None:
            return run.evaluation
        prepared = prepare(load_recipe(quiet(live.recipe)), memory=InMemory())
        student = on_path(load.load_model(str(run.model(roles.STUDENT)), dtype="auto", device="cpu"), prepared)
        models = {**teacher_of(prepared), roles.STUDENT: student}
        sets = {name: make() for name, make in prepared.evaluation_sets.items()}
        batches = {name: [(item.batch, item.row_N) for item in items] for name, items in sets.items()}
        scores = transfer.evaluate_models(models, batches, teacher=roles.TEACHER, n_vocabulary=prepared.n_vocabulary)
        costs = {name: transfer.cost_of(model) for name, model in models.items()}
        io.make_directory(place)
        records.write(place, scores, transfer=transfer.transfer_of(scores, roles.TEACHER, costs=costs))
        return place
