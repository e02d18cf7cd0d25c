"""Soft labels alone, and with terms that compare layers beside them: the same student, start and tokens.

    python -m benchmarks.features                       all losses, one seed; hours on two cores
    python -m benchmarks.features --only soft hidden --seeds 0 1 2 --tokens 1_000_000
    python -m benchmarks.features --smoke               two steps each: does everything run?

SmolLM2-135M-Instruct teaches on Python's documentation; the student has 20 of its 30 layers, at even distances, so
that every cell begins with the same weights (`width`: 432 channels as well, so that hidden states need projections).  A
cell is a loss and a seed, a run of `tutelage train` in a folder of its own: finished ones are found again, one that was
stopped goes on.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # recipes and results are JSON

from benchmarks import cells as table
from benchmarks import measure

TEACHER = "package:smollm2-135m-instruct"
DEPTH: dict[str, Any] = {"layers": {"evenly": 20}}
NARROW: dict[str, Any] = {**DEPTH, "width": {"hidden": 432}}
RELATIONS: dict[str, Any] = {"features": "attention_relations", "weight": 0.1}


def hidden(weight: float, **more: Any) -> dict[str, Any]:
    """The term that compares hidden states."""
    return {"features": "hidden_states", "weight": weight, **more}


LOSSES: dict[str, tuple[dict[str, Any], list[Any]]] = {  # student, terms beside forward_kl
    "soft": (DEPTH, []),
    "hidden": (DEPTH, [hidden(0.1)]),
    "hidden-1": (DEPTH, [hidden(1.0)]),
    "hidden-mse": (DEPTH, [hidden(0.1, distance="mse")]),
    "hidden-last": (DEPTH, [hidden(0.1, layers={19: 29})]),
    "relations": (DEPTH, [RELATIONS]),
    "relations-0.01": (DEPTH, [{**RELATIONS, "weight": 0.01}]),
    "both": (DEPTH, [hidden(0.1), RELATIONS]),
    "narrow-soft": (NARROW, []),
    "narrow-hidden": (NARROW, [hidden(0.1)]),
    "narrow-relations": (NARROW, [RELATIONS]),
}


def recipe_of(name: str, *, seed: int, tokens: int, teacher: str, documents: int, rows: int) -> dict[str, Any]:
    """The recipe of one cell."""
    student, more = LOSSES[name]
    return {
        "teacher": {"model": teacher},
        "student": dict(student),
        "data": {"sources": [{"python_docs": True, "limit": documents}], "held_out": 0.12, "max_length": 256},
        "loss": ["forward_kl", *more],
        "training": {
            "tokens": tokens, "batch_tokens": min(2048, tokens), "learning_rate": 4e-4, "schedule": "wsd",
            "warmup": 0.1, "decay": 0.4, "seed": seed, "log_every": 8,
        },
        "evaluation": {"rows": rows, "overlap": False, "triggers": False},
    }  # fmt: skip


def cell(name: str, recipe: Mapping[str, Any], folder: Path, first: Path) -> dict[str, Any]:
    """Train, or take up what is there, and read what was measured; `first` is the run to compare with.

    It is the first loss that was named of those with the same student.
    """
    run = table.run_of(recipe, folder)
    last = [row for row in run.metrics if "student/total" in row][-1]
    return {
        "name": name,
        "loss": recipe["loss"],
        "student": recipe["student"],
        "seed": recipe["training"]["seed"],
        **table.measured(run),
        "minus_first": table.minus_first(run.path, first),
        "last_step": {key: value for key, value in last.items() if key.startswith("student/")},
    }  # fmt: skip


def conclusions(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By loss, means over the seeds that are there."""
    rows: dict[str, dict[str, Any]] = {}
    for name in LOSSES:
        own = [one for one in cells if one["name"] == name]
        if own:
            rows[name] = table.means(own)
    return rows


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=114_688)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--folder", type=Path, default=Path("runs/features"))
    parser.add_argument("--smoke", action="store_true", help="two steps of 256 tokens; writes no result")
    arguments = parser.parse_args()
    tokens = 512 if arguments.smoke else arguments.tokens
    cells = []
    for seed in arguments.seeds:
        for name in arguments.only:
            recipe = recipe_of(
                name, seed=seed, tokens=tokens, teacher=arguments.teacher, documents=4 if arguments.smoke else 300,
                rows=1 if arguments.smoke else 60,
            )  # fmt: skip
            if arguments.smoke:
                recipe["training"]["batch_tokens"] = 256
            alike = next(other for other in arguments.only if LOSSES[other][0] == LOSSES[name][0])
            run, first = (arguments.folder / f"{one}-{tokens}-{seed}" for one in (name, alike))
            cells.append(cell(name, recipe, run, first))
            result = {"cells": cells, "conclusions": conclusions(cells)}
            if not arguments.smoke:
                measure.write("features", {**result, "environment": measure.environment({"tokens": tokens})})
    for name, row in conclusions(cells).items():
        print(
            f"{name:18} {row['training_s']:7.0f} s  KL {row['kl_to_teacher_before']:.3f} -> "
            f"{row['kl_to_teacher_after']:.3f}  loss {row['held_out_loss_before']:.3f} -> "
            f"{row['held_out_loss_after']:.3f}"
        )


if __name__ == "__main__":
    main()
