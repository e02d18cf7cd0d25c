"""Whether `tutelage generate` finds a real server's pace: answers a second beside the best fixed concurrency.

    python -m benchmarks.generate_server --gguf MODEL.gguf [--rounds 5] [--requests 24]
    python -m benchmarks.generate_server --url http://127.0.0.1:8080/v1

Without --url it starts llama.cpp's own server in a process of its own (4 slots, one thread; pip install
xllamacpp==2026.10.11549).  In each round the bare loop of `generate.py` asks the same prompts at each fixed
concurrency, and ours asks them with the number that it finds, in a random order; answers are greedy, so all contenders
are given the same work.  The share is the median over rounds of ours over the fixed concurrency with the best median.
Goes on where it stopped: rounds of the same settings and commit that are in the result file are kept.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # results are JSON

import httpx2

from benchmarks import measure
from benchmarks.generate import asking_alone, bare_loop, recipe, timed
from tutelage.generation.task import open_task
from tutelage.recipe import load_recipe

NAME, OURS = "generate_server", "ours"
SLOTS, READY_S = 4, 120.0
ASKED = {"max_tokens": 32, "temperature": 0.0}


def serve(gguf: str, port: int) -> None:
    """Runs the server until the process is ended."""
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.n_parallel, wanted.n_ctx, wanted.port = gguf, SLOTS, 1024 * SLOTS, port
    wanted.cpuparams.n_threads = 1
    server = xllamacpp.Server(wanted)  # lives as long as it is held
    while server:
        time.sleep(3600)


@contextlib.contextmanager
def serving(gguf: str) -> Iterator[str]:
    """The address of a server in a process of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.generate_server", "--gguf", gguf, "--serve", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + READY_S
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("the server did not start; is it there? pip install xllamacpp==2026.10.11549")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/models", trust_env=False, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def one_round(url: str, *, n: int, concurrencies: list[int], number: int) -> dict[str, Any]:
    """Answers a second of every contender."""
    order: list[int | str] = [*concurrencies, OURS]
    random.Random(number).shuffle(order)
    rates: dict[str, float] = {}
    for contender in order:
        with tempfile.TemporaryDirectory() as place:
            made = recipe(Path(place), url, n=n, **ASKED)
            if contender == OURS:
                seconds, _ = asking_alone(Path(place), url, n=n, **ASKED)
            else:
                bodies = [request.as_body() for request in open_task(load_recipe(made)).sound()]
                seconds, _ = timed(lambda b=bodies, c=contender: asyncio.run(bare_loop(url, b, concurrency=c)))  # type: ignore[misc]
        rates[str(contender)] = n / seconds
    return {"answers_per_s": rates, "load_average": os.getloadavg()}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and ours over the best fixed concurrency inside each round."""
    rates = {name: [row["answers_per_s"][name] for row in rounds] for name in rounds[0]["answers_per_s"]}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max((name for name in medians if name != OURS), key=lambda name: medians[name])
    shares = [ours / fixed for ours, fixed in zip(rates[OURS], rates[best], strict=True)]
    return {"medians": medians, "best_fixed": best, "share": statistics.median(shares), "shares": shares}


def kept(config: dict[str, Any], commit: str) -> list[dict[str, Any]]:
    """The rounds of the result file, if they were measured with these settings."""
    path = measure.RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"environment": {}}
    same = found["environment"].get("config") == config and found["environment"].get("commit") == commit
    return list(found["rounds"]) if same else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="the model of the server that is started")
    parser.add_argument("--url", help="base URL of a server that runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.gguf, arguments.serve)
    if not arguments.gguf and not arguments.url:
        parser.error("give --gguf or --url")
    model = Path(arguments.gguf).name if arguments.gguf else arguments.url
    config = {"model": model, "requests": arguments.requests, "concurrencies": arguments.concurrencies, "asked": ASKED}
    result: dict[str, Any] = {"environment": measure.environment(config)}
    rounds = kept(config, result["environment"]["commit"])
    with serving(arguments.gguf) if not arguments.url else contextlib.nullcontext(arguments.url) as url:
        one_round(url, n=4, concurrencies=arguments.concurrencies[:1], number=0)  # warms up
        while len(rounds) < arguments.rounds:
            own = {"n": arguments.requests, "concurrencies": arguments.concurrencies, "number": len(rounds)}
            rounds.append(one_round(url, **own))
            print(f"round {len(rounds)}: {json.dumps(rounds[-1])}", file=sys.stderr)
            measure.write(NAME, {**result, "rounds": rounds, "summary": summary(rounds)})
    return print(json.dumps({**summary(rounds), "load_average": os.getloadavg()}, indent=1))


if __name__ == "__main__":
    main()
