"""Applies each mutant to a copy of src and runs its oracle there: `python -m tests.mutants.runner OUT.json [ID …]`.

Importing torch and transformers takes seconds, so this process imports them once (never tutelage) and forks: a child
puts its copy of src first on sys.path and runs pytest in itself.  OUT.json: {id: {"exit": pytest's status, "output",
"seconds"}}; "unchanged" is the run of one oracle of each folder of tests on src itself, which must pass: all of them
run there in the rest of the suite.  It comes first, by itself: the others copy what it compiled, and so does the suite.
Mutants of compiled loops run as plain Python; "unchanged, plain" is the run of all their oracles in this way.
"""

import compileall
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.register import MUTANTS

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: what its threads hold does not survive a fork
ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tutelage"
UNCHANGED, UNCHANGED_PLAIN = "unchanged", "unchanged, plain"
TIMEOUT_S = 240.0  # of one mutant (some are compiled anew)
WARM = (
    *("hypothesis", "hypothesis.strategies", "jinja2", "numba", "numpy", "pydantic", "pytest", "rich.console"),
    *("rich.progress", "rich.table", "safetensors.torch", "tokenizers", "torch"),
    *("httpx2", "regex", "torch._dynamo", "transformers", "yaml", "transformers.models.llama.modeling_llama"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.gemma2.modeling_gemma2"),
)
_HALF_WRITTEN = shutil.ignore_patterns("*.tmp.*", "*.pyc.*")  # by another process of the suite
PYTEST = ("-x", "--tb=short", "-p", "no:cacheprovider")


def patched(mutant: Mutant) -> str:
    """The text of the mutant's file with its one line changed; ValueError unless it is clear which line is meant."""
    lines = (SOURCE / mutant.file).read_text().splitlines(keepends=True)
    start = _only(lines, mutant, lambda line: line.startswith(mutant.after)) if mutant.after else 0
    if mutant.after:
        at = next((i for i in range(start, len(lines)) if lines[i].strip() == mutant.old), -1)
        if at < 0:
            raise ValueError(f"{mutant.id}: not in {mutant.file} below '{mutant.after}': {mutant.old}")
    else:
        at = _only(lines, mutant, lambda line: line == mutant.old)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at] = f"{indent}{mutant.new}\n"
    return "".join(lines)


def _only(lines: list[str], mutant: Mutant, fits: Callable[[str], bool]) -> int:
    found = [i for i, line in enumerate(lines) if fits(line.strip())]
    if len(found) != 1:
        raise ValueError(f"{mutant.id}: {len(found)} lines of {mutant.file} fit: {mutant.after or mutant.old}")
    return found[0]


def copy_of_source(folder: Path, mutant: Mutant | None, *, of: Path = SOURCE) -> Path:
    """`folder`/src with a copy of the package, mutated if a mutant is given; compiled files come along.

    Files are linked, not copied: whoever writes one (Python, numba, this) puts a new file in its place.
    """
    package = folder / "src" / "tutelage"
    shutil.copytree(of, package, ignore=_HALF_WRITTEN, copy_function=shutil.copy2 if mutant is None else os.link)
    if mutant is not None:
        target = package / mutant.file
        text = patched(mutant)
        for stale in (target, *target.parent.glob(f"__pycache__/{target.stem}.*")):
            stale.unlink()
        target.write_text(text)
    return package.parent


def oracle_in_child(source: Path, oracles: list[str], output: Path, *, plain: bool = False) -> int:
    """Forks; the child runs pytest on `oracles` with the package from `source` and exits with its status."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)  # for the commands that a test starts
    os.environ["TUTELAGE_TESTS_NO_SHRINK"] = "1"
    if plain:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        importlib.import_module("numba").config.DISABLE_JIT = True
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # it would warn that it cannot rewrite what is imported already
    import pytest

    code = 3
    try:
        code = int(
            pytest.main(["-x", "-p", "no:cacheprovider", "--tb=line", f"--basetemp={output.parent}/t", *oracles])
        )
        at = sys.modules["tutelage"].__file__ or ""
        assert at.startswith(str(source)), f"the oracle ran on {at}, not on the copy"
    except BaseException as error:
        print(f"runner: {error!r}", flush=True)
        code = 3
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(mutants: list[Mutant], *, n_processes: int) -> dict[str, dict[str, object]]:
    """The result of each mutant's oracle, and of all oracles on the unchanged package."""
    _warm()
    assert not any(name.partition(".")[0] == "tutelage" for name in sys.modules), "tutelage must be fresh in the child"
    gc.collect()
    gc.freeze()  # pytest collects garbage ten times at its end: half a child's time if it has to look at all of torch
    of_each_room = {oracle.partition("::")[0].rpartition("/")[0]: oracle for m in mutants for oracle in m.oracles}
    plain = {oracle for m in mutants if m.plain for oracle in m.oracles}
    with tempfile.TemporaryDirectory(prefix="tutelage-mutants-") as folder:
        first = _unchanged(Path(folder, UNCHANGED), sorted(of_each_room.values()), plain=False)
        second = _unchanged(Path(folder, UNCHANGED_PLAIN), sorted(plain), plain=True)
        source = copy_of_source(Path(folder, UNCHANGED), None)  # with what has been compiled by now, by whomever
        compileall.compile_dir(source, quiet=1)  # once for all children, even where Python writes no bytecode
        results = _run_mutants(mutants, Path(folder), source / "tutelage", n_processes=n_processes)
        return {UNCHANGED: first, UNCHANGED_PLAIN: second} | results


def _warm() -> None:
    """Imports what children need, and does once what libraries do at their first use and keep."""
    for name in WARM:
        importlib.import_module(name)
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    figure = Figure(layout="tight")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], label="fonts are looked for")
    axes.legend()
    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        figure.savefig(f"{folder}/figure.svg")
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **shapes)).save_pretrained(f"{folder}/model")
        LlamaForCausalLM.from_pretrained(f"{folder}/model")


def _unchanged(place: Path, oracles: list[str], *, plain: bool) -> dict[str, object]:
    place.mkdir()
    started = time.monotonic()
    if not oracles:
        return {"exit": 0, "output": "nothing to run", "seconds": 0.0}
    pid = oracle_in_child(SOURCE.parent, oracles, place / "output", plain=plain)
    return _result(place, os.waitpid(pid, 0)[1], started)


def _run_mutants(
    mutants: list[Mutant], folder: Path, package: Path, *, n_processes: int
) -> dict[str, dict[str, object]]:
    """The result of each mutant's oracle, on copies of `package`."""
    jobs, results = list(mutants), dict[str, dict[str, object]]()
    running: dict[int, tuple[Path, float]] = {}
    while jobs or running:
        while jobs and len(running) < n_processes:
            mutant = jobs.pop(0)
            place = folder / mutant.id
            source = copy_of_source(place, mutant, of=package)
            pid = oracle_in_child(source, list(mutant.oracles), place / "output", plain=mutant.plain)
            running[pid] = (place, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            _stop_the_late(running)
            time.sleep(0.02)
            continue
        place, started = running.pop(pid)
        results[place.name] = _result(place, status, started)
        shutil.rmtree(place)
    return results


def _result(place: Path, status: int, started: float) -> dict[str, object]:
    output = (place / "output").read_text(errors="replace")
    return {"exit": os.waitstatus_to_exitcode(status), "output": output, "seconds": time.monotonic() - started}


def _stop_the_late(running: dict[int, tuple[Path, float]]) -> None:
    for pid, (_, started) in running.items():
        if time.monotonic() > started + TIMEOUT_S:
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Runs the mutants named on the command line, or all, and writes the results."""
    out, *ids = sys.argv[1:]
    chosen = [m for m in MUTANTS if not ids or m.id in ids]
    results = run(chosen, n_processes=min(2, os.cpu_count() or 1))
    Path(out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
