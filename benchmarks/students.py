"""Students made of one teacher in several ways, each of about the same size: where each begins, and where it ends.

    python -m benchmarks.students                       all ways, one seed; hours on two cores
    python -m benchmarks.students --only depth width --seeds 0 1 2 --tokens 1_000_000
    python -m benchmarks.students --smoke               two steps each: does everything run?

SmolLM2-135M-Instruct teaches on Python's documentation.  A cell is a way and a seed, a run of `tutelage train` in a
folder of its own: finished ones are found again, one that was stopped goes on.  At equal tokens, on the same held-out
rows.  `depth` keeps the layers that the output misses most.  It, `depth-evenly` and `width` have 99.1 M parameters,
`channels` and `both` within 1 % of that.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # recipes and results are JSON

import tutelage
from benchmarks import cells as table
from benchmarks import measure

TEACHER = "package:smollm2-135m-instruct"
WAYS: dict[str, dict[str, Any]] = {
    "depth": {"layers": 20},
    "depth-evenly": {"layers": {"evenly": 20}},
    "width": {"width": {"mlp": 1024, "heads": 6}},
    "channels": {"width": {"hidden": 432}},
    "both": {"layers": 24, "width": {"mlp": 1184}},
    "depth-partly-random": {"layers": 20, "init": {"random": 0.3}},
    "depth-lora": {"layers": 20, "lora": {"rank": 16}},
    "width-lora": {"width": {"mlp": 1024, "heads": 6}, "lora": {"rank": 16}},
    "depth-dora": {"layers": 20, "lora": {"rank": 16, "dora": True}},
}
LEARNING_RATE, OF_ADAPTERS = 4e-4, 2e-3
LENGTH = 256


def recipe_of(way: str, *, seed: int, tokens: int, teacher: str, documents: int, rows: int) -> dict[str, Any]:
    """The recipe of one cell."""
    rate = OF_ADAPTERS if "lora" in WAYS[way] else LEARNING_RATE
    return {
        "teacher": {"model": teacher},
        "student": dict(WAYS[way]),
        "data": {"sources": [{"python_docs": True, "limit": documents}], "held_out": 0.12, "max_length": LENGTH},
        "loss": ["forward_kl"],
        "training": {
            "tokens": tokens, "batch_tokens": min(2048, tokens), "learning_rate": rate, "schedule": "wsd",
            "warmup": 0.1, "decay": 0.4, "seed": seed, "log_every": 8,
        },
        "evaluation": {"rows": rows, "overlap": False, "triggers": False},
    }  # fmt: skip


def cell(way: str, recipe: Mapping[str, Any], folder: Path, first: Path) -> dict[str, Any]:
    """Train, or take up what is there, and read what was measured; `first` is the run to compare with."""
    run = table.run_of(recipe, folder)
    size = tutelage.plan(recipe).plan.facts.students["student"]
    return {
        "way": way,
        "student": WAYS[way],
        "seed": recipe["training"]["seed"],
        "parameters": size.parameters,
        "learned": size.learned if size.learned is not None else size.parameters,
        "training_flops_per_token": size.training_flops(context=LENGTH),
        **table.measured(run),
        "minus_first": table.minus_first(run.path, first),
    }  # fmt: skip


def conclusions(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By way: sizes, and means over the seeds that are there."""
    rows: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        own = [one for one in cells if one["way"] == way]
        if own:
            sizes = {key: own[0][key] for key in ("parameters", "learned", "training_flops_per_token")}
            rows[way] = {**sizes, **table.means(own)}
    return rows


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=114_688)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--folder", type=Path, default=Path("runs/students"))
    parser.add_argument("--smoke", action="store_true", help="two steps of 256 tokens; writes no result")
    arguments = parser.parse_args()
    tokens = 512 if arguments.smoke else arguments.tokens
    cells = []
    for seed in arguments.seeds:
        for way in arguments.only:
            recipe = recipe_of(
                way, seed=seed, tokens=tokens, teacher=arguments.teacher, documents=4 if arguments.smoke else 300,
                rows=1 if arguments.smoke else 60,
            )  # fmt: skip
            if arguments.smoke:
                recipe["training"]["batch_tokens"] = 256
            run, first = (arguments.folder / f"{one}-{tokens}-{seed}" for one in (way, arguments.only[0]))
            cells.append(cell(way, recipe, run, first))
            result = {"cells": cells, "conclusions": conclusions(cells)}
            if not arguments.smoke:
                measure.write("students", {**result, "environment": measure.environment({"tokens": tokens})})
    for way, row in conclusions(cells).items():
        print(
            f"{way:20} {row['parameters'] / 1e6:6.1f} M ({row['learned'] / 1e6:.1f} M learn)  KL "
            f"{row['kl_to_teacher_before']:.3f} -> {row['kl_to_teacher_after']:.3f}  loss "
            f"{row['held_out_loss_before']:.3f} -> {row['held_out_loss_after']:.3f}"
        )


if __name__ == "__main__":
    main()
