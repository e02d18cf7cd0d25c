"""A run as a cell of a table at equal tokens, and the means of cells that differ in their seed alone.

A difference between two cells of one seed is paired by row: both were measured on the same held-out rows.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # results are JSON

import tutelage
from tutelage import plugins
from tutelage.evaluation import stats
from tutelage.evaluation.records import RECORDS, score_of
from tutelage.evaluation.score import SequenceScore
from tutelage.evaluation.transfer import HELD_OUT
from tutelage.evaluation.transfer import METRICS as PLUGINS

METRICS = ("kl_to_teacher", "held_out_loss", "top1_agreement", "ece")
VALUES = tuple(f"{metric}_{when}" for metric in METRICS for when in ("before", "after"))


def run_of(recipe: Mapping[str, Any], folder: Path) -> tutelage.Run:
    """The run in a folder: as it is where it has ended, else it goes on or begins."""
    return tutelage.train(recipe, run_dir=folder, resume=(folder / "finished.json").is_file())


def measured(run: tutelage.Run) -> dict[str, Any]:
    """Tokens, seconds, the metrics of the student before and after on held-out text, and standard errors after."""
    found = run.as_json()
    sets = found["evaluation"]["sets"][HELD_OUT]["estimates"]
    return {
        "tokens": found["tokens"],
        "training_s": found["training_s"]["student"],
        **{f"{metric}_{when}": sets[model][metric]["value"]
           for metric in METRICS for when, model in (("before", "student_before"), ("after", "student"))},
        "stderr": {metric: sets["student"][metric]["stderr"] for metric in METRICS},
    }  # fmt: skip


def means(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The seeds that are there, and means over them."""
    keys = ("training_s", *VALUES)
    return {"seeds": [one["seed"] for one in cells], **{k: statistics.mean(one[k] for one in cells) for k in keys}}


def scores_of(run: Path, model: str) -> list[SequenceScore]:
    """The raw scores of a model on the held-out rows."""
    scores = []
    for line in (run / "evaluation" / RECORDS).read_text().splitlines()[1:]:
        record = json.loads(line)
        if record.pop("set") == HELD_OUT and record.pop("model", None) == model:
            scores.append(score_of(record))
    return scores


def difference(metric: str, scores: Sequence[SequenceScore], others: Sequence[SequenceScore]) -> dict[str, Any]:
    """First minus second over the rows that both have."""
    measure = plugins.load(PLUGINS, metric).measure
    a, b = stats.paired(scores, others)
    found = stats.difference(measure(a), measure(b))
    return {"value": found.value, "stderr": found.stderr, "n": found.n, "decided": found.decided}


def minus_first(run: Path, first: Path) -> dict[str, dict[str, Any]]:
    """By metric, a run's student against that of the first run of its table."""
    own, other = scores_of(run, "student"), scores_of(first, "student")
    return {metric: difference(metric, own, other) for metric in ("kl_to_teacher", "held_out_loss")}
