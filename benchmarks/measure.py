"""Paired timing in one process, peak memory in a process of its own, and the JSON that a claim stands on."""

import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # results are JSON

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tutelage", "torch", "transformers", "numba", "trl", "liger-kernel", "accelerate", "datasets")


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call: `rounds` rounds after one to warm up, each in a random order of its own.

    On a machine in use `clock=time.process_time`, with one thread.

    Neighbours on the same cores then slow every contender alike; ratios are taken inside a round (`paired`).
    """
    order, draw = list(contenders), random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for name in order:
        contenders[name]()
    for number in range(rounds):
        draw.shuffle(order)
        for name in order:
            started = clock()
            contenders[name]()
            samples[name].append(clock() - started)
        print(f"round {number + 1}/{rounds}: " + _round_line(samples), file=sys.stderr)
    return samples


def _round_line(samples: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1] * 1000:.0f} ms" for name, values in samples.items())


def summary(samples: Mapping[str, list[float]], *, base: str, n_tokens: int) -> dict[str, dict[str, Any]]:
    """Median, spread (quartiles) and minimum of each contender, and its time over the base's, paired by round."""
    rows: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        ratios = [value / reference for value, reference in zip(values, samples[base], strict=True)]
        low, middle, high = statistics.quantiles(values, n=4)
        rows[name] = {
            "median_s": middle,
            "quartiles_s": [low, high],
            "minimum_s": min(values),
            "rate_tok_per_s": n_tokens / middle,
            f"time_over_{base}_median": statistics.median(ratios),
            f"time_over_{base}_quartiles": [q for i, q in enumerate(statistics.quantiles(ratios, n=4)) if i != 1],
            f"time_over_{base}_of_minima": min(values) / min(samples[base]),
            "samples_s": values,
        }
    return rows


def memory_above(prepare: Callable[[], None], act: Callable[[], None]) -> int:
    """Peak bytes while `act` runs, above what there is after `prepare`: of the GPU where one is used, else resident."""
    prepare()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        act()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: loading has a higher one of its own
    act()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory_in_new_process(module: str, name: str, arguments: Sequence[str]) -> int | str:
    """What `python -m module --memory name` prints, or the last line of its failure."""
    command = [sys.executable, "-m", module, *arguments, "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    return int(lines[-1]) if done.returncode == 0 else lines[-1]


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Commit, machine, load, versions and settings: what has to be equal for two results to be compared."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": _git("status", "--porcelain", "--", "src", "benchmarks").splitlines(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average_at_start": os.getloadavg(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in PACKAGES},
        "config": dict(config),
    }


def write(name: str, result: Mapping[str, Any]) -> Path:
    """`results/NAME.json`; a load above the number of threads is marked, since such a result is no claim."""
    load = os.getloadavg()[0]
    threads = torch.get_num_threads()
    before = result["environment"]["machine"]["load_average_at_start"][0]
    quiet = before < 0.5 and load < threads + 0.5
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**result, "load_average_at_end": load, "quiet_machine": quiet}, indent=1) + "\n")
    return path


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.processor()} ({' '.join(features)})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
