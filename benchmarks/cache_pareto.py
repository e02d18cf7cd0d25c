"""Bytes of a teacher cache against the error of the student's gradient: our codecs and what others store.

    python -m benchmarks.cache_pareto --prose FOLDER --prompts FILE.jsonl
    python -m benchmarks.cache_pareto --prose FOLDER --prompts FILE.jsonl --teacher PATH.gguf --budgets 8 16 32 64 200

For each teacher and kind of text every format gets the same rows and as many positions; budgets are fitted on other
rows of the same text.  Both columns are those of `tutelage.cache.error`, against the reference student.  Texts: prose
(the .txt files of a folder), documentation (Python's own), chat (answers that the teacher samples itself, on their own
positions alone).  `fall` follows the error of the mean over 100,000 positions of documentation: unbiased formats fall
as 1 / sqrt(n), biased ones end on a floor.

Every finished cell is kept in the result file; the same command goes on where it was stopped.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # results are JSON

import numpy as np
import torch

from benchmarks import measure, pareto_formats, pareto_rows
from benchmarks.pareto_formats import Kept
from benchmarks.pareto_rows import Row, Teacher
from tutelage import plugins
from tutelage.cache.codec import CODECS, Budget, Sample
from tutelage.cache.codecs import _row
from tutelage.cache.error import Accumulator, Probe, probe, unigram
from tutelage.home import home
from tutelage.types import CachedTargets

TEACHER = "package:smollm2-135m-instruct"
POSITIONS, FITTED_POSITIONS, FALL_POSITIONS = 20_480, 8192, 102_400  # fitted on as many as `tutelage label` asks for
BUDGETS = (8, 12, 16, 24, 32, 64, 100, 200, 300, 400)
THRESHOLD_ENDS = 100  # bytes: a larger budget changes nothing of it
CHECKED_ROWS = 4  # of top-k's derived targets against what its codec writes and reads
Cell = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One teacher on one kind of text."""

    fitted_on: Sample
    rows: Sample
    probe: Probe
    kept: Kept

    @classmethod
    def of(cls, rows: Iterator[Row], n_positions: int, *, n_fitted: int, teacher: Teacher) -> "Bench":
        fitted_on = pareto_rows.sample_of(pareto_rows.up_to(rows, n_fitted), teacher=teacher)
        sample = pareto_rows.sample_of(pareto_rows.up_to(rows, n_positions), teacher=teacher)
        return cls(
            fitted_on=fitted_on,
            rows=sample,
            probe=probe(sample.hidden_ND, head=teacher.head),
            kept=pareto_formats.kept_of(sample.hidden_ND, head=teacher.head, seed=0),
        )

    @property
    def bits(self) -> int:
        return _row.id_bits(self.rows.head.n_vocabulary)


# --- cells -----------------------------------------------------------------------------------------------------------


def cells(budgets: tuple[float, ...]) -> dict[str, Callable[[Bench], Cell | None]]:
    """What is measured, by name; None for a budget that a format cannot meet."""
    made: dict[str, Callable[[Bench], Cell | None]] = {}
    for budget in budgets:
        made[f"top-k and tail, {budget:g}"] = functools.partial(top_k, budget=budget, tail=True)
        made[f"top-k renormalised, {budget:g}"] = functools.partial(top_k, budget=budget, tail=False)
    for name in pareto_formats.NAMES:
        made[name] = functools.partial(other, name=name)
    made["hidden states, 8 bits"] = functools.partial(codec, name="hidden", budget=None)
    if "threshold" in plugins.names(CODECS):
        for budget in (budget for budget in budgets if budget <= THRESHOLD_ENDS):
            made[f"threshold, {budget:g}"] = functools.partial(codec, name="threshold", budget=budget)
    return made


def codec(bench: Bench, *, name: str, budget: float | None) -> Cell:
    """A codec as `tutelage label` uses it: fitted, encoded to bytes and decoded."""
    part, rows = plugins.load(CODECS, name), bench.rows
    fitted = part.fit(bench.fitted_on, budget=Budget(bytes_per_token=budget), temperature=1.0)
    shared = {"temperature": 1.0, "settings": fitted.settings, "tables": fitted.tables}
    started = time.perf_counter()
    encoded = part.encode(rows.hidden_ND, head=rows.head, positions=rows.positions, **shared)
    written = time.perf_counter()
    data = [np.frombuffer(row, np.uint8) for row in encoded.rows]
    targets = part.decode(data, positions=rows.positions, n_vocabulary=rows.head.n_vocabulary, **shared)
    read = time.perf_counter()
    return {
        **errors(targets, bench.probe),
        "bytes_per_token": sum(map(len, data)) / len(rows.positions),
        "witness_bytes_per_token": encoded.witness_bytes / len(rows.positions),
        "settings": dict(fitted.settings),
        "why": fitted.why,
        "encode_tok_per_s": len(rows.positions) / (written - started),
        "decode_tok_per_s": len(rows.positions) / (read - written),
    }


def top_k(bench: Bench, *, budget: float, tail: bool) -> Cell | None:
    """Codec `topk` at a budget: targets from the shared pass, checked against the codec on a few rows."""
    counts_R = bench.rows.positions.counts_R
    framing = 1 + 2 * tail + (_row.SEAL_BYTES + 1) * len(counts_R) / counts_R.sum()
    k = int((budget - framing) / (bench.bits / 8 + 2))
    if not 1 <= k <= pareto_formats.K:
        return None
    targets = pareto_formats.top_k(bench.kept, k, tail=tail)
    check_top_k(bench, targets.ids_NK, targets.logp_NK, k=k, tail=tail)
    n_bytes = sum(
        _row.packed_bytes(int(n) * k, bits=bench.bits) + int(n) * (2 * k + 2 * tail + 1) + _row.SEAL_BYTES
        for n in counts_R
    )
    return {**errors(targets, bench.probe), "bytes_per_token": n_bytes / int(counts_R.sum()), "settings": {"k": k}}


def check_top_k(bench: Bench, ids_NK: torch.Tensor, logp_NK: torch.Tensor, *, k: int, tail: bool) -> None:
    """Stop unless the codec reads what the shared pass says; ties between equal probabilities may change places."""
    part, positions = plugins.load(CODECS, "topk"), first_rows(bench.rows, CHECKED_ROWS).positions
    shared = {"temperature": 1.0, "settings": {"k": k, "tail": tail}, "tables": {}}
    hidden_ND, head = bench.rows.hidden_ND[: len(positions)], bench.rows.head
    encoded = part.encode(hidden_ND, head=head, positions=positions, **shared)
    data = [np.frombuffer(row, np.uint8) for row in encoded.rows]
    read = part.decode(data, positions=positions, n_vocabulary=head.n_vocabulary, **shared)
    torch.testing.assert_close(read.logp_NK, logp_NK[: len(positions)], rtol=2e-3, atol=2e-3)
    same = (read.ids_NK == ids_NK[: len(positions)]).float().mean().item()
    assert same > 0.999, f"top-{k}: only {same:.4f} of the ids are those of the codec"


def first_rows(sample: Sample, n_rows: int) -> Sample:
    counts_R = sample.positions.counts_R[:n_rows]
    n = int(counts_R.sum())
    whole = sample.positions
    positions = type(whole)(
        current_ids_N=whole.current_ids_N[:n],
        next_ids_N=whole.next_ids_N[:n],
        counts_R=counts_R,
        seeds_R=whole.seeds_R[:n_rows],
    )
    return Sample(hidden_ND=sample.hidden_ND[:n], head=sample.head, positions=positions)


def other(bench: Bench, *, name: str) -> Cell:
    """A format of others, priced as its description says."""
    stored = pareto_formats.stored(name, bench.kept, bits=bench.bits)
    return {**errors(stored.targets, bench.probe), "bytes_per_token": stored.bytes_per_token}


def errors(targets: CachedTargets, at: Probe) -> Cell:
    sums = Accumulator()
    sums.add(targets, probe=at)
    found = sums.result()
    figures = {"per_position": found.per_position, "batch": found.batch, "n": found.n, "kept_mass": found.kept_mass}
    return figures if found.kl_nats is None else {**figures, "kl_nats": found.kl_nats}


# --- the fall with n -------------------------------------------------------------------------------------------------


def fall(teacher: Teacher, n_positions: int) -> Cell:
    """The error of the mean at growing n: threshold at its default against 12 draws and top-64 with its tail."""
    rows = pareto_rows.text_rows(pareto_rows.documentation(), teacher=teacher)
    sample = pareto_rows.sample_of(pareto_rows.up_to(rows, FITTED_POSITIONS), teacher=teacher)
    q_V = unigram(sample.hidden_ND, head=teacher.head)
    part = plugins.load(CODECS, "threshold")
    fitted = part.fit(sample, budget=Budget(), temperature=1.0)
    shared = {"temperature": 1.0, "settings": fitted.settings, "tables": fitted.tables}
    sums = {name: Accumulator() for name in ("threshold", "12 draws", "top-64 and tail")}
    series: dict[str, list[Cell]] = {name: [] for name in sums}
    done, shown, n_bytes = 0, 1024, 0
    while done < n_positions:
        here = pareto_rows.sample_of(pareto_rows.up_to(rows, min(1024, n_positions - done)), teacher=teacher)
        at = probe(here.hidden_ND, head=teacher.head, student=q_V)
        encoded = part.encode(here.hidden_ND, head=teacher.head, positions=here.positions, **shared)
        data = [np.frombuffer(row, np.uint8) for row in encoded.rows]
        read = part.decode(data, positions=here.positions, n_vocabulary=teacher.head.n_vocabulary, **shared)
        kept = pareto_formats.kept_of(here.hidden_ND, head=teacher.head, seed=done)
        sums["threshold"].add(read, probe=at)
        sums["12 draws"].add(pareto_formats.draws(kept, 12, bits=16).targets, probe=at)
        sums["top-64 and tail"].add(pareto_formats.top_k(kept, 64, tail=True), probe=at)
        done, n_bytes = done + len(here.positions), n_bytes + sum(map(len, data))
        if done >= min(shown, n_positions):
            shown *= 2
            for name, sum_ in sums.items():
                found = sum_.result()
                series[name].append({"n": found.n, "batch": found.batch, "per_position": found.per_position})
            print(f"n {done}: " + ", ".join(f"{k} {v[-1]['batch']:.4f}" for k, v in series.items()), file=sys.stderr)
    return {"series": series, "threshold_bytes_per_token": n_bytes / done, "why": fitted.why}


# --- the run ---------------------------------------------------------------------------------------------------------


class Results:
    """The cells of the result file, written again after each."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        path = measure.RESULTS / f"{name}.json"
        self.name, self.environment = name, measure.environment(config)
        self.cells: dict[str, Cell] = json.loads(path.read_text())["cells"] if path.exists() else {}

    def keep(self, key: str, cell: Cell, *, seconds: float) -> None:
        self.cells[key] = {**cell, "seconds": seconds, "commit": self.environment["commit"]}
        measure.write(self.name, {"environment": self.environment, "cells": self.cells})
        shown = [f"{k} {cell[k]:.4g}" for k in ("bytes_per_token", "per_position", "batch", "kl_nats") if k in cell]
        print(f"{key}: {', '.join(shown) or 'done'} ({seconds:.0f} s)", file=sys.stderr)

    def has(self, key: str, *, n_positions: int) -> bool:
        return key in self.cells and self.cells[key].get("n", n_positions) == n_positions


def texts(arguments: argparse.Namespace) -> dict[str, Callable[[Teacher], Iterator[Row]]]:
    """The kinds of text that were asked for."""
    work = home() / "benchmarks"
    known: dict[str, Callable[[Teacher], Iterator[Row]]] = {
        "documentation": lambda t: pareto_rows.text_rows(pareto_rows.documentation(), teacher=t),
        "prose": lambda t: pareto_rows.text_rows(pareto_rows.prose(arguments.prose), teacher=t),
        "chat": lambda t: pareto_rows.chat_rows(arguments.prompts, teacher=t, work=work),
    }
    there = {"documentation": True, "prose": arguments.prose, "chat": arguments.prompts}
    return {kind: rows for kind, rows in known.items() if there[kind] and kind in arguments.texts}


def run(source: str, results: Results, *, arguments: argparse.Namespace) -> None:
    """Every cell of one teacher that is not there yet."""
    load = functools.cache(lambda: Teacher.load(source))
    name = pareto_rows.name_of(source)
    for kind, rows in texts(arguments).items():
        todo = {
            cell: act
            for cell, act in cells(tuple(arguments.budgets)).items()
            if not results.has(f"{name} / {kind} / {cell}", n_positions=arguments.positions)
        }
        if not todo:
            continue
        started = time.perf_counter()
        bench = Bench.of(rows(load()), arguments.positions, n_fitted=arguments.fitted, teacher=load())
        print(
            f"{name} / {kind}: {arguments.positions} positions in {time.perf_counter() - started:.0f} s",
            file=sys.stderr,
        )
        for cell, act in todo.items():
            started = time.perf_counter()
            found = act(bench)
            if found is not None:
                results.keep(f"{name} / {kind} / {cell}", found, seconds=time.perf_counter() - started)
    key = f"{name} / documentation / fall"
    if arguments.fall and "threshold" in plugins.names(CODECS) and key not in results.cells:
        started = time.perf_counter()
        results.keep(key, fall(load(), arguments.fall), seconds=time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", nargs="+", default=[TEACHER], help="folder, .gguf, hub id or package:NAME")
    parser.add_argument("--prose", type=Path, help="a folder of .txt files")
    parser.add_argument("--prompts", type=Path, help='JSON lines with "prompt", or with "passage" and "question"')
    parser.add_argument("--texts", nargs="+", default=["documentation", "prose", "chat"])
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--fitted", type=int, default=FITTED_POSITIONS, help="positions that budgets are fitted on")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), help="bytes a token")
    parser.add_argument("--fall", type=int, default=FALL_POSITIONS, help="positions of the fall with n; 0: none")
    parser.add_argument("--name", default="cache_pareto", help="of the result file")
    arguments = parser.parse_args()
    config = {"length": pareto_rows.LENGTH, "fitted_positions": arguments.fitted, "budgets": arguments.budgets}
    results = Results(arguments.name, config)
    for source in arguments.teacher:
        run(source, results, arguments=arguments)
        arguments.fall = 0  # one teacher is enough to see a law
    print(measure.RESULTS / f"{arguments.name}.json")


if __name__ == "__main__":
    main()
