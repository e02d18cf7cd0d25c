"""A scripted endpoint on 127.0.0.1: real sockets, every fault on request, and it counts what it would bill."""

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What the server does with one request."""

    status: int = 200
    body: bytes | None = None  # None: an answer that follows from the request alone
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "send"  # send, reset (no byte), hang (no byte, for long), drip (a byte now and then), cut (half)
    delay_s: float = 0.0
    billed: bool | None = None  # None: when the status is 200, or the answer got lost
    finish: str | None = "stop"
    text: str | None = None
    message: dict[str, Any] = field(default_factory=dict)  # more fields of the message
    usage: Any = "true"  # or the object itself

    @property
    def is_billed(self) -> bool:
        """Whether the provider charges for it."""
        return self.billed if self.billed is not None else self.status == 200


OK = Action()


def error(status: int, code: str = "", message: str = "", **headers: str) -> Action:
    """An error as providers send it."""
    body = json.dumps({"error": {"code": code, "message": message, "type": code}}).encode()
    return Action(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request that came in."""

    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    action: Action


Script = Callable[[int, Any], Action]


def answer_to(body: Any) -> str:
    """The deterministic answer: it follows from what is asked, the seed included."""
    asked = json.dumps({k: v for k, v in body.items() if "max" not in k}, sort_keys=True)
    number = int(hashlib.sha256(asked.encode()).hexdigest()[:6], 16)
    return f"The answer is {number}."


def tokens_of(body: Any) -> int:
    """Prompt tokens, about four bytes each."""
    texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
    return sum(len(t.encode()) for t in texts) // 4 + 1


class Endpoint:
    """`with Endpoint(script) as server`: it serves in a thread until the end of the block."""

    def __init__(self, script: Script = lambda n, body: OK, *, usd: tuple[float, float] = (1.0, 2.0)) -> None:
        self.script, self.usd = script, usd
        self.seen: list[Seen] = []
        self.most_at_once = self._at_once = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def n_billed(self) -> int:
        """Requests that the provider charges for."""
        return sum(seen.action.is_billed for seen in self.seen)

    @property
    def billed_usd(self) -> float:
        """What they cost at the prices of this server: dollars for a million tokens."""
        total = 0.0
        for seen in self.seen:
            if seen.action.is_billed:
                text = seen.action.text or answer_to(seen.body)
                total += tokens_of(seen.body) * self.usd[0] + len(text.split()) * self.usd[1]
        return total / 1e6

    def __enter__(self) -> "Endpoint":
        self._thread.start()
        self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _serve(self) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(main())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else {}
        action = self.script(len(self.seen), body)
        self.seen.append(Seen(path=first.split()[1], headers=headers, body=body, raw=raw, action=action))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._act(action, body, writer)
        finally:
            self._at_once -= 1

    async def _act(self, action: Action, body: Any, writer: asyncio.StreamWriter) -> bool:
        if action.delay_s:
            await asyncio.sleep(action.delay_s)
        if action.how == "hang":
            await asyncio.sleep(60)
        if action.how == "reset":
            writer.transport.abort()
            return False
        content = action.body if action.body is not None else self._answer(action, body)
        head = {**JSON, "content-length": str(len(content)), **action.headers}
        lines = [f"HTTP/1.1 {action.status} Whatever", *(f"{k}: {v}" for k, v in head.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        if action.how == "drip":
            for byte in content:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(content[: len(content) // 2] if action.how == "cut" else content)
        await writer.drain()
        return action.how == "send"

    def _answer(self, action: Action, body: Any) -> bytes:
        text = action.text if action.text is not None else answer_to(body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": action.finish}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text, **action.message}
        else:
            choice["text"] = text
        usage = {"prompt_tokens": tokens_of(body), "completion_tokens": len(text.split())}
        reply = {"id": "x", "object": "y", "model": "served-1", "choices": [choice]}
        if action.usage is not None:
            reply["usage"] = usage if action.usage == "true" else action.usage
        return json.dumps(reply).encode()
