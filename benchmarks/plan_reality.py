"""`tutelage plan` against what a run then takes: disk, memory and time of each technique.

    OMP_NUM_THREADS=1 python -m benchmarks.plan_reality --teacher FOLDER [--techniques soft,cached] [--tokens 4096]

A student of 6 of SmolLM2's 30 layers learns a few thousand tokens of this repository's own guide by each technique, as
`tutelage compare` would have it.  Everything is predicted first (short models are measured for at most 30 s); then each
verb runs in a process of its own.  Disk is what the teacher's shards take, memory the largest resident set of all of a
technique's processes, time the steps of the training and the calls of `label` and `generate`, loading included.

On a machine in use `--clock cpu` predicts and takes processor time, with one thread; of a training that is its share of
the whole process times the seconds of its steps.

Claimed, on a machine that does nothing else: disk within 5 %, memory within 15 %, time within 30 %.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # recipes and results are JSON

import tutelage
from benchmarks import measure
from tutelage.planning.contest import Arm, base_of, contest_of
from tutelage.planning.work import Place
from tutelage.recipe import load_recipe
from tutelage.verbs.beginnings import write_beginnings
from tutelage.verbs.contest_scores import quiet
from tutelage.verbs.plan import Planned

NAME = "plan_reality"
TECHNIQUES = ("control", "soft", "argmax", "cached", "co", "hard")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLAIMED = {"disk_bytes": 0.05, "memory_bytes": 0.15, "seconds": 0.30}
GUIDE = Path(__file__).parents[1] / "docs" / "guide"
LENGTH, PIECE, LAYERS = 256, 1000, 6


def recipe_of(folder: Path, *, teacher: str, tokens: int, precision: str) -> dict[str, Any]:
    """The recipe that all techniques change; its text is as many pieces of the guide as the tokens need."""
    whole = "\n".join(path.read_text(encoding="utf-8") for path in sorted(GUIDE.glob("*.md")))
    n_pieces = max(8, round(1.1 * tokens / (PIECE / 4)))  # about four characters a token
    pieces = [whole[i * PIECE : (i + 1) * PIECE] for i in range(min(n_pieces, len(whole) // PIECE))]
    text = folder / "guide.jsonl"
    text.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    return {
        "teacher": teacher,
        "student": {"layers": {"evenly": LAYERS}},
        "data": {"sources": [{"jsonl": str(text), "text": "text"}], "held_out": 0.1, "max_length": LENGTH},
        "loss": [{"forward_kl": 0.9}, {"ground_truth": 0.1}],
        "training": {
            "tokens": tokens, "batch_tokens": 4 * LENGTH, "precision": precision, "save_every": 0.5, "threads": 1,
        },
        "control": False,
        "evaluation": {"rows": 2, "prompts": []},
    }  # fmt: skip


def arms_of(recipe: dict[str, Any], folder: Path, planned: Planned, *, names: Sequence[str]) -> tuple[Arm, ...]:
    """One run of each technique, on the recipe's length."""
    base = load_recipe(recipe)
    place = Place(
        cache=str(folder / "cache"),
        answers=str(folder / "answers"),
        beginnings=write_beginnings(base, folder / "texts"),
    )
    contest = contest_of(
        base_of(base, start=None), planned.plan.facts, names=names, seeds=1, place=place, equal_compute=False
    )
    return contest.arms


def taken(arm: Arm, folder: Path, *, clock: str) -> dict[str, float]:
    """What a technique took, every verb in a process of its own."""
    recipe, tree = folder / f"{arm.technique}.json", quiet(arm.recipe)
    if arm.work.stored:  # as `tutelage label` has it: all rows, and not those of a comparison's run
        tree["cache"] = {**tree["cache"], "rows": None}
    recipe.write_text(json.dumps(tree), encoding="utf-8")
    verbs = (["label"] if arm.work.stored else ["generate"] if arm.work.answer else []) + ["train"]
    seconds, peak = 0.0, 0.0
    for verb in verbs:
        found_s, found_bytes = _child(verb, recipe, folder / f"run-{arm.technique}", clock=clock)
        seconds, peak = seconds + found_s, max(peak, found_bytes)
    shards = [p for p in (folder / "cache").rglob("*.safetensors") if p.parent.name != "start"]
    return {
        "seconds": seconds,
        "memory_bytes": peak,
        "disk_bytes": float(sum(p.stat().st_size for p in shards)) if arm.work.stored else 0.0,
    }


def _child(verb: str, recipe: Path, run: Path, *, clock: str) -> tuple[float, float]:
    """(seconds, largest resident bytes) of a verb in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan_reality", "--clock", clock]
    command += ["--child", verb, str(recipe), str(run)]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        out.seek(0)
        lines = out.read().decode().split()
    if status or not lines:
        raise SystemExit(f"{verb} of {recipe} ended with status {status}")
    return float(lines[-1]), used.ru_maxrss * 1024.0


def act(verb: str, recipe: Path, run: Path, *, clock: str) -> float:
    """One verb here; the seconds of its steps, or of the whole call."""
    began, used = time.perf_counter(), time.process_time()
    tree = json.loads(recipe.read_text(encoding="utf-8"))
    if verb == "train":
        tutelage.train(tree, run_dir=run, ask=False)
        seconds = max(json.loads((run / "finished.json").read_text())["training_s"].values())
    else:
        (tutelage.label if verb == "label" else tutelage.generate)(tree)
        seconds = time.perf_counter() - began
    share = (time.process_time() - used) / (time.perf_counter() - began)
    return float(seconds * (share if clock == "cpu" else 1.0))


def row_of(arm: Arm, planned: Planned, found: Mapping[str, float]) -> dict[str, Any]:
    """Predicted beside taken, and whether each is within what is claimed."""
    estimate = planned.plan.possible[arm.technique]
    assert estimate.memory is not None and estimate.work is not None and planned.plan.pace is not None
    predicted = {
        "seconds": planned.plan.pace.seconds(estimate.work if arm.work.stored else arm.work),
        "memory_bytes": estimate.memory.peak,
        "disk_bytes": float(estimate.disk_bytes or 0.0) if arm.work.stored else 0.0,
    }
    return {
        name: {
            "predicted": predicted[name],
            "taken": found[name],
            "error": predicted[name] / found[name] - 1.0 if found[name] else 0.0,
            "within": abs(predicted[name] - found[name]) <= CLAIMED[name] * found[name],
        }
        for name in CLAIMED
    } | {"parts": dict(estimate.memory.parts), "first": estimate.memory.first, "load_average": os.getloadavg()}


def main() -> None:
    """Predicts, runs, compares, writes `results/plan_reality.json`."""
    arguments = _arguments()
    if arguments.child:
        verb, recipe, run = arguments.child
        print(act(verb, Path(recipe), Path(run), clock=arguments.clock))
        return
    environment = measure.environment({**vars(arguments), "teacher": Path(arguments.teacher).name})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = recipe_of(folder, teacher=arguments.teacher, tokens=arguments.tokens, precision=arguments.precision)
        started = time.perf_counter()
        planned = tutelage.plan(recipe, clock=CLOCKS[arguments.clock])
        planning_s = time.perf_counter() - started
        rows = {}
        for arm in arms_of(recipe, folder, planned, names=arguments.techniques.split(",")):
            rows[arm.technique] = row_of(arm, planned, taken(arm, folder, clock=arguments.clock))
            print(arm.technique, json.dumps(rows[arm.technique]), file=sys.stderr)
            assert planned.plan.pace is not None
            result = {"planning_s": planning_s, "pace": planned.plan.pace.where, "claimed": CLAIMED, "techniques": rows}
            path = measure.write(NAME, {"environment": environment, **result})
    print(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", default="package:smollm2-135m-instruct", help="folder, .gguf, hub id, package:NAME"
    )
    parser.add_argument("--techniques", default=",".join(TECHNIQUES))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--child", nargs=3, metavar=("VERB", "RECIPE", "RUN"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
