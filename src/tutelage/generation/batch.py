"""The batch interface of a provider: a file of requests goes up, a job works on it for hours, files come down.

Calls are few and slow, so they are made one at a time, and a fault of the transport is tried again here.  What must not
happen twice is `create`: it is never tried again before the jobs of the account were looked through for its mark.
"""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from tutelage.errors import RemoteError
from tutelage.generation.client import QUOTA
from tutelage.generation.endpoint import Endpoint, forbidden
from tutelage.generation.pace import backoff_s, retry_after_s
from tutelage.generation.reply import problem_of

MARK = "tutelage"  # the field of a job's metadata that says whose it is
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_WAIT_S = 1.0
_TRIES = 6
_PAGES = 50  # of a hundred jobs, the newest first
_GONE = (404, 410)
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the provider says of one job."""

    id: str
    status: str
    mark: str
    files: tuple[str, ...]  # output and errors, as far as there are
    n_done: int
    problem: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED


class MaybeCreated(Exception):
    """The answer to `create` got lost: there may be a job."""


class FileGoneError(Exception):  # not for users: `BatchWork` settles what was in it and says so
    """The provider keeps a file no longer."""


class BatchClient:
    """The calls of the batch interface at one endpoint; used with `with`."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float, sleep: Callable[[float], None]) -> None:
        self._endpoint, self._sleep = endpoint, sleep
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "tutelage"}
        headers |= endpoint.headers
        if endpoint.secret.value:
            prefix = "Bearer " if endpoint.key_header == "authorization" else ""
            headers[endpoint.key_header] = prefix + endpoint.secret.value
        needs_tls = endpoint.base_url.startswith("https:")
        self._http = httpx2.Client(
            verify=True if needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            headers=headers,
            params=dict(endpoint.query),
            timeout=httpx2.Timeout(timeout_s),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> "BatchClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, lines: Sequence[bytes]) -> str:
        """The id of a file of requests; it costs nothing, so a lost answer is asked for again."""
        content = b"\n".join([*lines, b""])
        reply = self._call("POST", "/files", data={"purpose": "batch"}, files={"file": ("requests.jsonl", content)})
        return self._text(reply, "id")

    def create(self, file_id: str, *, path: str, mark: str) -> Job:
        """A job over a file; MaybeCreated when it is not known whether there is one now."""
        body = {
            "input_file_id": file_id,
            "endpoint": f"/v1{path}",
            "completion_window": "24h",
            "metadata": {MARK: mark},
        }
        return self._job(self._call("POST", "/batches", once=True, json=body))

    def find(self, mark: str) -> Job | None:
        """The job with that mark, if the provider has one."""
        after: dict[str, str] = {}
        for _ in range(_PAGES):
            page = self._call("GET", "/batches", params={"limit": "100", **after})
            jobs = page.get("data")
            for one in jobs if isinstance(jobs, list) else ():
                job = self._job(one)
                if job.mark == mark:
                    return job
                after = {"after": job.id}
            if not page.get("has_more") or not jobs:
                return None
        return None

    def look(self, job_id: str) -> Job:
        """How far a job is."""
        return self._job(self._call("GET", f"/batches/{job_id}"))

    @contextmanager
    def lines(self, file_id: str) -> Iterator[Iterator[bytes]]:
        """The lines of a file, as they come; the key, should it be in them, is not.

        FileGoneError when the provider has deleted the file.
        """
        url = f"{self._endpoint.base_url}/files/{file_id}/content"
        with self._http.stream("GET", url, extensions={"trace": self._trace}) as response:
            if response.status_code in _GONE:
                raise FileGoneError(str(response.status_code))
            if response.status_code != 200:
                raise self._refused(response.status_code, response.read())
            yield self._scrubbed(response)

    def _scrubbed(self, response: httpx2.Response) -> Iterator[bytes]:
        rest = b""
        for piece in response.iter_raw():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (self._endpoint.secret.scrubbed_bytes(line) for line in whole if line.strip())
        if rest.strip():
            yield self._endpoint.secret.scrubbed_bytes(rest)

    # --- one call ---
    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if error := forbidden(self._endpoint.host, event, info):
            info["return_value"].close()
            raise error

    def _call(self, method: str, path: str, *, once: bool = False, **content: Any) -> dict[str, Any]:
        began, why = time.monotonic(), ""
        for n in range(_TRIES):
            wait_s = backoff_s(n, first_s=FIRST_WAIT_S)
            try:
                url, watched = self._endpoint.base_url + path, {"trace": self._trace}
                response = self._http.request(method, url, extensions=watched, **content)
            except httpx2.TransportError as error:
                if once and not isinstance(error, _UNSENT):
                    raise MaybeCreated(type(error).__name__) from error
                why = type(error).__name__
            else:
                if response.status_code in (200, 201):
                    return self._content(response)
                why = str(response.status_code)
                if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                    raise self._refused(response.status_code, response.content)
                self._raise_for_quota(response.status_code, response.content)
                if once and response.status_code >= 500:
                    raise MaybeCreated(why)
                asked = retry_after_s(response.headers.get("retry-after"), milliseconds=None, now_s=time.time())
                wait_s = max(wait_s, asked or 0.0)
            if n + 1 < _TRIES:
                self._sleep(wait_s)
        after = f"after {_TRIES} tries in {time.monotonic() - began:.0f} s"
        raise RemoteError("API_UNREACHABLE", f"{self._endpoint.host}: {why} {after}")

    def _content(self, response: httpx2.Response) -> dict[str, Any]:
        data = self._endpoint.secret.scrubbed_bytes(response.content)
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            start = data[:40].decode("utf-8", "replace")
            raise RemoteError(
                "API_BODY", f"{self._endpoint.host} does not speak the batch interface (starts {start!r})"
            )
        return content

    def _text(self, content: Mapping[str, Any], name: str) -> str:
        if not isinstance(content.get(name), str) or not content[name]:
            raise RemoteError("API_BODY", f"{self._endpoint.host} does not speak the batch interface (no {name})")
        return str(content[name])

    def _job(self, content: object) -> Job:
        known: dict[str, Any] = content if isinstance(content, dict) else {}
        counts, metadata = known.get("request_counts"), known.get("metadata")
        files = [known.get("output_file_id"), known.get("error_file_id")]
        done = [counts.get(name) for name in ("completed", "failed")] if isinstance(counts, dict) else []
        errors = known.get("errors")
        return Job(
            id=self._text(known, "id"),
            status=self._text(known, "status"),
            mark=str(metadata.get(MARK, "")) if isinstance(metadata, dict) else "",
            files=tuple(name for name in files if isinstance(name, str) and name),
            n_done=sum(n for n in done if type(n) is int),
            problem=json.dumps(errors)[:200] if errors else "",
        )

    def _raise_for_quota(self, status: int, body: bytes) -> None:
        problem = problem_of(self._endpoint.secret.scrubbed_bytes(body))
        if status == 402 or any(word in problem.words for word in QUOTA):
            raise RemoteError("API_QUOTA", f"{self._endpoint.host} says credit is exhausted ({status})")

    def _refused(self, status: int, body: bytes) -> RemoteError:
        self._raise_for_quota(status, body)
        problem, host = problem_of(self._endpoint.secret.scrubbed_bytes(body)), self._endpoint.host
        said = f"{status}: {' '.join(f'{problem.code} {problem.message}'.split())[:160]}"
        if status in (401, 403):
            return RemoteError("API_AUTH", f"{host} refuses the key ({said}); check the variable")
        if 300 <= status < 400:
            return RemoteError("BASE_URL", f"{host} redirects ({status}), which is not followed; set base_url")
        if status in _GONE:
            return RemoteError("API_BATCH", f"{host} has no such batch job ({said}); set teacher.api.transport: direct")
        return RemoteError("API_REQUEST", f"{host} refuses the batch job ({said})")
