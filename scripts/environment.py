"""Makes `.venv`, or with the argument `bench` `.bench-venv`, once: a finished environment carries a stamp.

The stamp is a hash of what went in (the declared dependencies, constraints.txt, this file, the Python, the folder): a
changed pin, a newer Python or a moved clone makes it again, and an interrupted installation is never taken for a
finished one.  A lock on constraints.txt lets two makes at once share one environment: the second waits.

TORCH_INDEX=URL names one more package index for torch, for networks whose usual index has only the CUDA build.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
BUILD = ("hatchling", "editables")  # pinned like the rest, so that the build of the package itself resolves nothing
PIP = (
    "-m",
    "pip",
    "--disable-pip-version-check",
    "--no-input",
    "-qq",
    "install",
    "--no-compile",
    "-c",
    "constraints.txt",
)
RIVALS = "benchmarks/requirements-rivals.txt"
SUPPORT = "benchmarks/requirements-rivals-support.txt"
SUPPORT_PINS = "benchmarks/constraints.txt"
OWN_WORDS = "pip's own words stand above. Is the network up? Run make again"
WAIT_S = 30  # a line of progress at least this often


def main(arguments: list[str]) -> int:
    """Exit status 0 when the environment is ready."""
    if arguments not in ([], ["bench"]):
        return _fail(f"unknown argument {arguments[0]}; known: bench")
    bench = arguments == ["bench"]
    venv = ROOT / (".bench-venv" if bench else ".venv")
    try:
        import fcntl
    except ImportError:
        return _fail("native Windows is not supported; inside WSL (untested) the same commands should work")
    with (ROOT / "constraints.txt").open("r+") as lock:
        os.set_inheritable(lock.fileno(), True)  # a pip that outlives a killed make keeps the next one waiting
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another make is preparing an environment; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return 0 if _is_ready(venv) else _make(venv, bench=bench)


def stamp_key(venv: Path) -> str:
    """Hash of everything that decides what is inside the environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    metadata = {k: v for k, v in project["project"].items() if k not in {"description", "keywords", "readme"}}
    inputs = [
        json.dumps([project["build-system"], metadata], sort_keys=True),
        (ROOT / "constraints.txt").read_text(),
        Path(__file__).read_text(),
        *((ROOT / name).read_text() for name in (RIVALS, SUPPORT, SUPPORT_PINS) if venv.name == ".bench-venv"),
        f"{sys.version} {sys.base_prefix} {venv}",
    ]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()


def _is_ready(venv: Path) -> bool:
    stamp = venv / "ready"
    return stamp.is_file() and stamp.read_text() == stamp_key(venv) and (venv / "bin/python").exists()


def _make(venv: Path, *, bench: bool) -> int:
    if venv.exists():
        _say(f"removing a {venv.name} that is unfinished or out of date")
        shutil.rmtree(venv)
    started_s = time.monotonic()
    version = ".".join(map(str, sys.version_info[:3]))
    if not _run(
        f"1/3  a fresh environment in {venv.name} (Python {version})", [sys.executable, "-m", "venv", str(venv)]
    ):
        return _fail("venv failed; its own words stand above. Debian, Ubuntu: sudo apt-get install python3-venv")
    python = str(venv / "bin" / "python")
    if not _install_torch(python):
        return _fail(f"{TORCH} could not be installed; {OWN_WORDS}")
    everything = [python, *PIP, "--no-build-isolation", "-e", ".[dev]"]
    if not _run("3/3  transformers, matplotlib, … and tutelage itself (about 60 packages, 100 MB)", everything):
        return _fail(f"the packages could not be installed; {OWN_WORDS}")
    if bench:
        support = [python, *PIP, "-c", SUPPORT_PINS, "-r", SUPPORT]
        rivals = [python, *PIP, "--no-deps", "-r", RIVALS]
        if not (_run("and what the rivals need (120 MB)", support) and _run("and the rivals", rivals)):
            return _fail(f"the rivals could not be installed; {OWN_WORDS}")
    aside = venv / "ready.partial"
    aside.write_text(stamp_key(venv))
    aside.replace(venv / "ready")
    _say(f"ready after {time.monotonic() - started_s:.0f} s; the next make starts at once")
    return 0


def _install_torch(python: str) -> bool:
    """True when torch is in: on Linux the CPU build where an index has it, else what the index calls the default."""
    more = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    if sys.platform == "linux":
        cpu = [python, *PIP, *more, *BUILD, f"{TORCH}+cpu"]
        with tempfile.TemporaryFile("w+") as output:
            if _run(f"2/3  {TORCH}, the CPU build (about 200 MB)", cpu, output=output):
                return True
            output.seek(0)
            words = output.read()
        if "No matching distribution" not in words:
            print(words, file=sys.stderr)
            return False
        _say(
            "note: the package index has no CPU build of torch, so its default is taken: with CUDA, several GB. To "
            "avoid it stop here and run: make TORCH_INDEX=URL demo, with the CPU address of PyTorch's installation page"
        )
    return _run(f"2/3  {TORCH}, the index's default build", [python, *PIP, *more, *BUILD, TORCH])


def _run(what: str, command: list[str], *, output: IO[str] | None = None) -> bool:
    """True when the command succeeded; says what goes on before, and every half minute."""
    _say(what)
    started_s = time.monotonic()
    hidden = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=output, close_fds=False
    )
    try:
        while True:
            try:
                return process.wait(timeout=WAIT_S) == 0
            except subprocess.TimeoutExpired:
                _say(f"     … {time.monotonic() - started_s:.0f} s")
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit(130) from None


def _say(line: str) -> None:
    print(f"environment: {line}", file=sys.stderr, flush=True)


def _fail(line: str) -> int:
    print(f"error[ENVIRONMENT]: {line}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
