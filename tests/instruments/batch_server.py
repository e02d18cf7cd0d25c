"""A scripted provider of batch jobs on 127.0.0.1, in the OpenAI batch format: it works when a job is created."""

import email
import email.policy
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.instruments.endpoint import answer_to, tokens_of


def reply_of(body: Any, *, finish: str | None = "stop") -> dict[str, Any]:
    text = answer_to(body)
    said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    usage = {"prompt_tokens": tokens_of(body), "completion_tokens": len(text.split())}
    return {"id": "x", "model": "served-1", "choices": [{"index": 0, "finish_reason": finish, **said}], "usage": usage}


Line = Callable[[int, Any], tuple[int, Any] | None]  # number and body of a request -> status and body, or no line


def all_well(n: int, body: Any) -> tuple[int, Any] | None:
    return 200, reply_of(body)


@dataclass(kw_only=True)
class Plan:
    """What becomes of one job."""

    line: Line = all_well
    status: str = "completed"
    polls: int = 1  # before it has ended
    created: str = "told"  # told, lost (created, the connection breaks), late (500, listed after some looks)
    hidden_looks: int = 0  # how often the list lacks it
    gone: bool = False  # asked for, it is not there any more


@dataclass(kw_only=True)
class Provider:
    """`with Provider(plans) as server`: job n follows plan n, and what comes after them goes well."""

    plans: list[Plan] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    worked_on: Counter[str] = field(default_factory=Counter)  # custom_id -> how often it was answered, and billed
    calls: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    refusal: tuple[int, Any] | None = None  # what every upload gets
    deleted: dict[str, int] = field(default_factory=dict)  # file -> what a download of it gets
    cut_downloads: int = 0  # so many files break off in the middle
    _looks: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "Provider":
        provider = self

        class Handler(_Handler):
            server_state = provider

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def plan(self, job_id: str) -> Plan:
        number = int(job_id.removeprefix("batch-"))
        return self.plans[number] if number < len(self.plans) else Plan()

    # --- what it does ---
    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        job_id = f"batch-{len(self.jobs)}"
        plan = self.plan(job_id)
        good, bad = [], []
        for n, line in enumerate(self.files[body["input_file_id"]].splitlines()):
            request = json.loads(line)
            assert request["url"] == body["endpoint"] and request["method"] == "POST"
            made = plan.line(n, request["body"])
            if made is None:
                continue
            status, content = made
            self.worked_on[request["custom_id"]] += status == 200
            entry = {"id": f"r{n}", "custom_id": request["custom_id"], "error": None}
            (good if status == 200 else bad).append({**entry, "response": {"status_code": status, "body": content}})
        job = {"id": job_id, "metadata": body["metadata"], "status": "in_progress", "polls": plan.polls}
        for name, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):  # in another order
            job[name] = f"{job_id}-{name}" if lines else None
            self.files[f"{job_id}-{name}"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        job["request_counts"] = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
        self.jobs[job_id] = job
        return job

    def look(self, job_id: str) -> dict[str, Any] | None:
        job, plan = self.jobs[job_id], self.plan(job_id)
        if plan.gone:
            return None
        job["polls"] -= 1
        if job["polls"] <= 0:
            job["status"] = plan.status
        return self.shown(job)

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        hidden = {} if job["status"] != "in_progress" else {"output_file_id": None, "error_file_id": None}
        return {k: v for k, v in {**job, **hidden}.items() if k != "polls"}

    def listed(self, after: str) -> dict[str, Any]:
        for job_id in self.jobs:
            self._looks[job_id] += 1
        seen = [i for i in reversed(self.jobs) if self._looks[i] > self.plan(i).hidden_looks]
        rest = seen[seen.index(after) + 1 :] if after else seen
        return {"data": [self.shown(self.jobs[i]) for i in rest[:1]], "has_more": len(rest) > 1}  # a page has one


class _Handler(BaseHTTPRequestHandler):
    server_state: Provider

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _come_in(self) -> tuple[str, dict[str, list[str]], bytes]:
        parts = urlsplit(self.path)
        self.server_state.calls.append(f"{self.command} {parts.path.removeprefix('/v1')}")
        self.server_state.keys.add(self.headers.get("authorization", ""))
        length = int(self.headers.get("content-length", 0))
        return parts.path.removeprefix("/v1"), parse_qs(parts.query), self.rfile.read(length)

    def do_POST(self) -> None:
        state = self.server_state
        path, _, data = self._come_in()
        if path == "/files" and state.refusal is not None:
            return self._send(*state.refusal)
        if path == "/files":
            head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
            form = email.message_from_bytes(head + data, policy=email.policy.HTTP)
            parts = {
                p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in form.iter_parts()
            }
            assert parts["purpose"] == b"batch"
            file_id = f"file-{len(state.files)}"
            state.files[file_id] = parts["file"]
            return self._send(200, {"id": file_id})
        job = state.create(json.loads(data))
        created = state.plan(job["id"]).created
        if created == "lost":
            self.close_connection = True
            return None
        if created == "late":
            return self._send(500, {"error": {"message": "oops"}})
        return self._send(200, state.shown(job))

    def do_GET(self) -> None:
        state = self.server_state
        path, query, _ = self._come_in()
        if path == "/batches":
            return self._send(200, state.listed(query.get("after", [""])[0]))
        if path.startswith("/batches/"):
            job = state.look(path.rpartition("/")[2])
            return self._send(200, job) if job else self._send(404, {"error": {"message": "no such batch"}})
        if path.split("/")[2] in state.deleted:
            return self._send(state.deleted[path.split("/")[2]], {"error": {"message": "no such file"}})
        data = state.files[path.split("/")[2]]
        if state.cut_downloads:
            state.cut_downloads -= 1
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        return self._send(200, data)
