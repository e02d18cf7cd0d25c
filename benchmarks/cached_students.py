"""One student, taught live and from every kind of cache: what each costs in quality, on held-out text, by seed.

    python -m benchmarks.cached_students                      all cells; about 2 hours on two cores
    python -m benchmarks.cached_students --only live threshold-16 control --seeds 0

SmolLM2-135M-Instruct teaches 20 of its 30 layers on Python's documentation.  A cell is a way of teaching and a seed;
finished cells stand in results/cached_students.json and are not run again, so the same command goes on after a stop.
Every student starts from the same weights and is measured against the teacher itself, on the same held-out rows.  The
share of the gap that a way closes is (KL of the control - its KL) / (KL of the control - KL of live), seed by seed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tutelage
from benchmarks import measure
from benchmarks.drawn_teacher import DrawnTeacher
from tutelage.evaluation.transfer import HELD_OUT, evaluate_models, transfer_of
from tutelage.models import save
from tutelage.teachers.live import LiveTeacher
from tutelage.training.plan import n_steps_of, optimizer_settings, terms_of
from tutelage.training.prepare import InMemory, Prepared, prepare
from tutelage.training.trainer import one_model

TEACHER = "package:smollm2-135m-instruct"
LAYERS = 20
TOKENS = 114_688
DOCUMENTS, EPOCH_DOCUMENTS = 300, 25  # about 148k tokens to train on; of the epoch cells about 28k, read again
RESULT = measure.RESULTS / "cached_students.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of teaching: a cache section, or live, control, or a number of draws with replacement."""

    cache: Mapping[str, Any] | None = None
    control: bool = False
    drawn: int = 0
    epochs: int | None = None  # on the small corpus
    training: Mapping[str, Any] = field(default_factory=dict)


WAYS = {
    "live": Way(),
    "control": Way(control=True),
    "threshold-16": Way(cache={"codec": "threshold", "bytes_per_token": 16}),
    "threshold-32": Way(cache={"codec": "threshold", "bytes_per_token": 32}),
    "topk-16-tail": Way(cache={"codec": "topk", "k": 16}),
    "topk-16-renormalised": Way(cache={"codec": "topk", "k": 16, "tail": False}),
    "draws-12": Way(drawn=12),
    "hidden": Way(cache={"codec": "hidden"}),
    **{f"epochs-{n}-live": Way(epochs=n) for n in (1, 4, 10)},
    **{f"epochs-{n}-one-draw": Way(cache={"codec": "threshold", "draws": 1}, epochs=n) for n in (1, 4, 10)},
    **{f"epochs-{n}-ten-draws": Way(cache={"codec": "threshold", "draws": 10}, epochs=n) for n in (4, 10)},
}


def recipe_of(way: Way, *, seed: int, layers: Sequence[int] | int, caches: Path, precision: str) -> dict[str, Any]:
    """The recipe of one cell."""
    teacher: dict[str, Any] = {"model": TEACHER}
    written: dict[str, Any] = {}
    small = way.epochs is not None
    if way.cache is not None:
        name = "-".join(str(value).replace(".", "_") for value in way.cache.values()) + ("-small" if small else "")
        teacher["cache"] = str((caches / name).resolve())
        written["cache"] = dict(way.cache)
    source = {"python_docs": True, "limit": EPOCH_DOCUMENTS if small else DOCUMENTS}
    length = {"epochs": float(way.epochs)} if way.epochs is not None else {"tokens": TOKENS}
    return {
        **written,
        "teacher": teacher,
        "student": {"layers": layers if isinstance(layers, int) else list(layers)},
        "data": {"sources": [source], "held_out": 0.12, "max_length": 256},
        "loss": ["ground_truth" if way.control else "forward_kl"],
        "training": {
            **length, "batch_tokens": 2048, "learning_rate": 4e-4, "schedule": "wsd", "warmup": 0.1, "decay": 0.4,
            "seed": seed, "precision": precision, "log_every": 8,
        },
        "evaluation": {"rows": 60},
    }  # fmt: skip


def train(prepared: Prepared, way: Way, *, seed: int) -> tuple[Any, float, int]:
    """(trained student in the precision it was trained in, seconds, optimizer steps)."""
    training = prepared.recipe.training
    teacher: Any = prepared.teacher
    loss = prepared.recipe.loss
    assert loss is not None  # one student has one
    if way.drawn:
        assert isinstance(teacher, LiveTeacher)
        teacher = DrawnTeacher(teacher, n_draws=way.drawn, seed=seed)
    n_steps = n_steps_of(training, prepared.loader)
    trainer = one_model(
        prepared.start(), terms=terms_of(loss), teacher=teacher, microbatches=prepared.loader.step,
        compute=prepared.compute, optimizer=optimizer_settings(training, n_steps=n_steps),
        n_vocabulary=prepared.n_vocabulary, seed=seed,
    )  # fmt: skip
    started = time.perf_counter()
    for stats in trainer.steps():
        if stats.step % training.log_every == 0:
            print(f"  step {stats.step}/{n_steps}: {stats.losses}", flush=True)
    seconds = time.perf_counter() - started
    weights = {name: weight.detach() for name, weight in trainer.only.masters.state().items()}
    model = save.with_weights(prepared.students["student"], weights, dtype=prepared.compute.weight_dtype)
    return model.eval(), seconds, n_steps


def measured(prepared: Prepared, model: Any, teacher: Any) -> dict[str, Any]:
    """Estimates of the student, and the teacher's own, on the held-out rows."""
    sets = {HELD_OUT: [(item.batch, item.row_N) for item in prepared.evaluation_sets[HELD_OUT]()]}
    models = {"teacher": teacher, "student": model}
    transfer = transfer_of(
        evaluate_models(models, sets, teacher="teacher", n_vocabulary=prepared.n_vocabulary), "teacher"
    )
    estimates = transfer.json()["sets"][HELD_OUT]["estimates"]
    return {"student": estimates["student"], "teacher": estimates["teacher"]}


def cell(name: str, *, seed: int, state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Label if needed, train, measure."""
    way = WAYS[name]
    written = recipe_of(way, seed=seed, layers=state["layers"], caches=folder / "caches", precision=state["precision"])
    labelled: dict[str, Any] = {}
    if way.cache is not None:
        labelled = tutelage.label(written).as_json()
    prepared = prepare(tutelage.load_recipe(written), memory=InMemory())
    model, seconds, n_steps = train(prepared, way, seed=seed)
    whole = recipe_of(
        WAYS["live"], seed=0, layers=state["layers"], caches=folder / "caches", precision=state["precision"]
    )
    present = prepare(tutelage.load_recipe(whole), memory=InMemory())
    assert isinstance(present.teacher, LiveTeacher)
    return {
        "way": name,
        "seed": seed,
        "n_steps": n_steps,
        "n_tokens": n_steps * 2048,
        "training_s": seconds,
        "bytes_per_token": labelled.get("bytes_per_token"),
        "settings": labelled.get("settings"),
        **measured(prepared, model, present.teacher.model),
    }


def start(folder: Path) -> dict[str, Any]:
    """What all cells share, measured once: the layers that matter, and the precision that is fast here."""
    written = recipe_of(WAYS["live"], seed=0, layers=LAYERS, caches=folder / "caches", precision="auto")
    prepared = prepare(tutelage.load_recipe(written), memory=InMemory())
    chosen = prepared.layers["student"]
    assert chosen is not None
    precision = str(prepared.compute.weight_dtype).removeprefix("torch.")
    return {"layers": list(chosen.kept), "precision": precision, "cells": {}}


def conclusions(cells: Mapping[str, Any]) -> dict[str, Any]:
    """By way: KL, loss and ECE, means over seeds, and the share of the gap closed, seed by seed."""
    rows: dict[str, Any] = {}
    for name in WAYS:
        own = {c["seed"]: c for c in cells.values() if c["way"] == name}
        if not own:
            continue
        row: dict[str, Any] = {"seeds": sorted(own), "bytes_per_token": next(iter(own.values()))["bytes_per_token"]}
        for metric in ("kl_to_teacher", "held_out_loss", "ece", "top1_agreement"):
            row[metric] = statistics.mean(c["student"][metric]["value"] for c in own.values())
        gaps = {}
        for seed, one in own.items():
            control, live = cells.get(f"control/{seed}"), cells.get(f"live/{seed}")
            if control and live and not WAYS[name].epochs:
                kl = [c["student"]["kl_to_teacher"]["value"] for c in (control, one, live)]
                gaps[seed] = (kl[0] - kl[1]) / (kl[0] - kl[2])
        row["gap_closed"] = gaps
        rows[name] = row
    return rows


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/cached-students"))
    arguments = parser.parse_args()
    state = json.loads(RESULT.read_text()) if RESULT.is_file() else start(arguments.folder)
    for seed in arguments.seeds:
        for name in arguments.only:
            if f"{name}/{seed}" in state["cells"] or (WAYS[name].epochs and seed):
                continue
            print(f"{name}, seed {seed}", flush=True)
            state["cells"][f"{name}/{seed}"] = cell(name, seed=seed, state=state, folder=arguments.folder)
            state = {**state, "environment": measure.environment({"tokens": TOKENS, "layers": LAYERS})}
            state["conclusions"] = conclusions(state["cells"])
            measure.write("cached_students", state)
    for name, row in conclusions(state["cells"]).items():
        closed = ", ".join(f"{share:.1%}" for share in row["gap_closed"].values())
        print(
            f"{name:24} KL {row['kl_to_teacher']:.4f}  loss {row['held_out_loss']:.4f}  ECE {row['ece']:.4f}  {closed}"
        )


if __name__ == "__main__":
    main()
