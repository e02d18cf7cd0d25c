"""What `tutelage generate` costs beside a bare loop of the same HTTP library, and what it keeps in memory a prompt.

    python -m benchmarks.generate [--rounds 7] [--requests 2000] [--prompts 10000 100000]

rate     N requests to a server of this file on loopback, in a process of its own, that answers at once: the bare loop
         (one client, 8 or 64 workers, JSON read; the faster one counts) and ours (the whole of asking: budget, records
         made durable before and after each request, pace) one after the other in each round.  `wall` and `process`
         (processor time of this process, all its threads) are the bare loop's time over ours inside a round.
memory   peak bytes that Python holds while it opens a journal of so many answers, surveys the prompts and writes the
         set (`generate --no-ask`, which reads everything that asking keeps), each size in a process of its own, by
         tracemalloc: resident bytes would count the journal's pages, which the system takes back at will.  The slope
         between two sizes is bytes a prompt.
Against a real server: `generate_server.py`.

A journal is made durable by fsync, so the disk decides too: the folder is given by --folder (default: a temporary one).
"""

import argparse
import asyncio
import contextlib
import io as streams
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any  # recipes and results are JSON

import httpx2

import tutelage
from benchmarks import measure
from tutelage.generation import sending
from tutelage.generation.journal import Journal
from tutelage.generation.task import open_task
from tutelage.recipe import load_recipe

CONCURRENCY = 64
BARE = (8, 64)  # workers of the bare loop: its pool is slower with more connections, so the better one counts
_REPLY = {
    "id": "x",
    "object": "chat.completion",
    "model": "served-1",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The answer is 42. " * 8}}
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 40},
}
BODY = json.dumps(_REPLY).encode()


class _Protocol(asyncio.Protocol):
    """Answers every request of a connection with the same bytes, at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._data = transport, b""
        self._reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            n = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + n:
                return
            self._data = self._data[end + 4 + n :]
            self._transport.write(self._reply + BODY)  # type: ignore[attr-defined]  # a TCP transport


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def serving() -> Any:
    """The address of a server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.generate", "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait(10)


def recipe(folder: Path, url: str, *, n: int, **generate: Any) -> dict[str, Any]:
    """`n` prompts of about 60 bytes."""
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"What is {i} and {i}? Say it in one sentence."}) + "\n" for i in range(n))
    )
    asked: dict[str, Any] = {"prompts": str(path), "max_requests": 10 * n, "max_tokens": 64, **generate}
    api = {"base_url": url, "model": "m", "concurrency": CONCURRENCY, "terms": "none", "timeout_s": 600}
    return {
        "teacher": {"api": api, "answers": str(folder / "answers")},
        "student": "somewhere/a-student",
        "loss": "cross_entropy",
        "training": {"steps": 1},
        "generate": asked,
    }


async def bare_loop(url: str, bodies: list[bytes], *, concurrency: int) -> None:
    """The same requests with nothing around them."""
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx2.AsyncClient(
        limits=limits, timeout=600, trust_env=False, headers={"content-type": "application/json"}
    ) as client:
        left = iter(bodies)

        async def worker() -> None:
            for body in left:
                (await client.post(f"{url}/chat/completions", content=body)).json()

        await asyncio.gather(*(worker() for _ in range(concurrency)))


# --- rate ---
def timed(act: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, process = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - process


def asking_alone(folder: Path, url: str, *, n: int, **generate: Any) -> tuple[float, float]:
    """Seconds of the asking of one call: what comes before and after is the same for any endpoint."""
    found: list[tuple[float, float]] = []
    original = sending._to_its_end

    def measured(begin: Any) -> Any:
        result: list[Any] = []
        found.append(timed(lambda: result.append(original(begin))))
        return result[0]

    sending._to_its_end = measured  # the one seam between the program and this clock
    try:
        with contextlib.redirect_stderr(streams.StringIO()):
            tutelage.generate(recipe(folder, url, n=n, **generate))
    finally:
        sending._to_its_end = original
    return found[0]


def rate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pairs of the bare loop and ours, alternating which is first."""
    n, rows = arguments.requests, list[dict[str, Any]]()
    with serving() as url, tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        task = open_task(load_recipe(recipe(Path(place), url, n=n)))
        bodies = [request.as_body() for request in task.sound()]
        asyncio.run(bare_loop(url, bodies[: n // 4], concurrency=CONCURRENCY))
        for number in range(arguments.rounds):
            own = Path(place) / str(number)
            own.mkdir()
            ours = asking_alone(own, url, n=n) if number % 2 else None
            bare = {c: timed(lambda c=c: asyncio.run(bare_loop(url, bodies, concurrency=c))) for c in BARE}  # type: ignore[misc]
            ours = ours or asking_alone(own, url, n=n)
            rows.append({"bare_s": bare, "ours_s": ours})
            shown = ", ".join(f"bare {c} {n / wall:.0f}" for c, (wall, _) in bare.items())
            print(f"round {number + 1}: {shown}, ours {n / ours[0]:.0f} requests/s", file=sys.stderr)
    result: dict[str, Any] = {"requests": n, "most_at_once": CONCURRENCY, "rounds_wall_and_process_s": rows}
    for place_of, name in enumerate(("wall", "process")):
        for c in BARE:
            shares = [row["bare_s"][c][place_of] / row["ours_s"][place_of] for row in rows]
            result[f"share_of_bare_{c}_{name}"] = {"median": statistics.median(shares), "rounds": shares}
        result[f"share_of_bare_{name}_median"] = min(result[f"share_of_bare_{c}_{name}"]["median"] for c in BARE)
    result["ours_requests_per_s_median"] = statistics.median(n / row["ours_s"][0] for row in rows)
    return result


# --- memory ---
def answered(folder: Path, n: int) -> dict[str, Any]:
    """A journal in which `n` prompts have their answer, as asking leaves it."""
    made = recipe(folder, "http://127.0.0.1:1/v1", n=n)
    task = open_task(load_recipe(made))
    journal, body = Journal(task.folder, lambda _: None), BODY.decode()
    group: list[tuple[str, Any]] = []
    for number, request in enumerate(task.sound()):
        key = {"id": number, "key": request.key}
        group.append(("reserved", {**key, "amount": 0}))
        group.append(("answered", {**key, "at": "2026-01-01T00:00:00+00:00", "status": 200, "body": body}))
        group.append(("parsed", {**key, "paid": 0, "outcome": "answer", "final": True, "spent": True}))
        if len(group) >= 3_000:
            journal.commit(group)
            group = []
    journal.commit(group)
    journal.close()
    return made


def memory_of(arguments: argparse.Namespace) -> int:
    """In a process of its own: see `measure.memory_in_new_process`."""
    made = json.loads((Path(arguments.folder) / "recipe.json").read_text())
    tracemalloc.start()
    with contextlib.redirect_stderr(streams.StringIO()):
        tutelage.generate(made, ask=False)
    return tracemalloc.get_traced_memory()[1]


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes at each size and the slope between them."""
    found: dict[int, Any] = {}
    for n in arguments.prompts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            (Path(place) / "recipe.json").write_text(json.dumps(answered(Path(place), n)))
            found[n] = measure.memory_in_new_process("benchmarks.generate", "own", ["--folder", place])
        print(f"{n} prompts: {found[n]} bytes", file=sys.stderr)
    few, many = min(found), max(found)
    slope = (found[many] - found[few]) / (many - few) if many > few else None
    return {"peak_bytes": found, "bytes_a_prompt": slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("rate", "memory"), default=["rate", "memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", help="where journals are written")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return asyncio.run(_serve())
    if arguments.memory:
        return print(memory_of(arguments))
    config = {name: value for name, value in vars(arguments).items() if name not in ("serve", "memory", "folder")}
    result: dict[str, Any] = {"environment": measure.environment(config)}
    for name, act in (("rate", rate), ("memory", memory)):
        if name not in arguments.only:
            continue
        found = act(arguments)
        print(json.dumps({name: found, "load_average": os.getloadavg()}, indent=1))
        print(measure.write("generate" if name == "rate" else f"generate_{name}", {**result, name: found}))


if __name__ == "__main__":
    main()
