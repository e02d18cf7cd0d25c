"""A run as a cell of a table at equal tokens, and the means of cells that differ in their seed alone."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any  # results are JSON

import tutelage

METRICS = ("kl_to_teacher", "held_out_loss", "top1_agreement", "ece")
VALUES = tuple(f"{metric}_{when}" for metric in METRICS for when in ("before", "after"))


def measured(run: tutelage.Run) -> dict[str, Any]:
    """Tokens, seconds, the metrics of the student before and after on held-out text, and standard errors after."""
    found = run.as_json()
    sets = found["evaluation"]["sets"]["held_out"]["estimates"]
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
