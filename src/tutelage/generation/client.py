"""The HTTP client: one request, one outcome as a value.  No retry, redirect, proxy or cookie of its own.

Reply    a body to journal and read                    Retry   nothing usable came; may it have been paid?
Stop     the endpoint said a no that will not change
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tutelage.errors import ConfigError, RemoteError, TutelageError
from tutelage.generation.endpoint import Endpoint, forbidden, is_name
from tutelage.generation.pace import retry_after_s
from tutelage.generation.reply import Problem, problem_of, row_defect
from tutelage.generation.request import PARAMETERS, Request

MOST_BYTES = 32 << 20
_CONNECT_S = 15.0
QUOTA = ("insufficient_quota", "quota_exceeded", "billing", "insufficient balance", "credit balance", "payment")
_UNPAID = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.LocalProtocolError)
_DISTRUST = "CERTIFICATE_VERIFY_FAILED"
_NEWER = "max_completion_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A body that may have been paid for; status 200, or a refusal that is about this prompt alone."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """No reply.  `may_be_paid`: the request may have been worked on.  `wait_s`: what the endpoint asks for."""

    why: str
    detail: str = ""  # for people, once
    may_be_paid: bool
    overloaded: bool = False
    limited: bool = False  # a rate limit: not a fault, and not counted as one
    wait_s: float | None = None

    @property
    def told(self) -> str:
        """`why`, and what is behind it."""
        return f"{self.why} ({self.detail})" if self.detail else self.why


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Asking again would give the same no."""

    error: TutelageError


class Client:
    """Sends requests to one endpoint; used with `async with`."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float, limit_field: str | None) -> None:
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self.limit_field = limit_field or "max_tokens"
        self._may_switch = limit_field is None
        self._urls: dict[str, httpx2.URL] = {}
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "tutelage"}
        headers |= {"content-type": "application/json", **endpoint.headers}
        if endpoint.secret.value:
            prefix = "Bearer " if endpoint.key_header == "authorization" else ""
            headers[endpoint.key_header] = prefix + endpoint.secret.value
        # Reading the certificates of the system takes a tenth of a second; a context without any trusts nobody.
        needs_tls = endpoint.base_url.startswith("https:")
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._trusted = httpx2.create_ssl_context(trust_env=False) if needs_tls else nobody
        self._free: list[httpx2.AsyncHTTPTransport] = []  # open connections that no request is on, the last used last
        self._headers = httpx2.Headers(headers)
        timeouts = httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s), pool=None)
        self._extensions: dict[str, Any] = {"timeout": timeouts.as_dict()}
        if is_name(endpoint.host):
            self._extensions["trace"] = self._trace

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._free:
            await self._free.pop().aclose()

    async def send(self, request: Request) -> Reply | Retry | Stop:
        """One request and what became of it; the deadline counts from here to the last byte."""
        limit_field = self.limit_field
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, body = await self._exchange(request, limit_field)
        except TimeoutError:
            return Retry(why="timeout", may_be_paid=True, overloaded=True)
        except httpx2.TransportError as error:
            return self._failed(error)
        except ConfigError as error:  # from the trace: nothing was sent
            return Stop(error=error)
        except httpx2.InvalidURL:
            return Stop(error=ConfigError("BASE_URL", f"{self._endpoint.base_url!r} is no address"))
        if body is None:
            return Retry(why="too large", may_be_paid=True)
        body = self._endpoint.secret.scrubbed_bytes(body)
        return self._judged(status, headers, body, request=request, limit_field=limit_field)

    def _failed(self, error: httpx2.TransportError) -> Retry | Stop:
        """What no server has answered: tried again, unless it would fail again in the same way."""
        kind, said = type(error).__name__, " ".join(self._endpoint.secret.scrubbed(str(error)).split())[:160]
        if _DISTRUST in said:
            found = f"this machine does not trust the certificate of {self._at} ({said})"
            return self._stop("API_UNREACHABLE", f"{found}; install that of who signed it, or check base_url")
        if isinstance(error, httpx2.LocalProtocolError):
            return self._stop("API_REQUEST", f"the request to {self._at} cannot be sent ({said}); check teacher.api")
        overloaded = isinstance(error, httpx2.TimeoutException)
        if isinstance(error, httpx2.ConnectError) and "attempts failed" in said:
            said = f"nobody answers at {urlsplit(self._endpoint.base_url).netloc}; does the server run?"
        detail = said if isinstance(error, httpx2.ConnectError) else ""  # others show bytes of the reply
        return Retry(why=kind, detail=detail, may_be_paid=not isinstance(error, _UNPAID), overloaded=overloaded)

    async def _exchange(self, request: Request, limit_field: str) -> tuple[int, httpx2.Headers, bytes | None]:
        content = request.as_body(limit_field=limit_field)
        url = self._url_of(request.path)
        asked = httpx2.Request("POST", url, headers=self._headers, content=content, extensions=self._extensions)
        connection = self._free.pop() if self._free else self._connection()
        try:
            response = await connection.handle_async_request(asked)
            try:
                pieces, size = [], 0
                async for piece in response.aiter_raw():
                    size += len(piece)
                    if size > MOST_BYTES:
                        return response.status_code, response.headers, None
                    pieces.append(piece)
                return response.status_code, response.headers, b"".join(pieces)
            finally:
                await response.aclose()
        finally:
            self._free.append(connection)

    async def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if error := forbidden(self._endpoint.host, event, info):
            await info["return_value"].aclose()
            raise error

    def _connection(self) -> httpx2.AsyncHTTPTransport:
        """A transport with one connection: one with many looks at each of them for every request.

        No client around it: no redirect, no cookie, and a third less of a processor's time.
        """
        return httpx2.AsyncHTTPTransport(
            verify=self._trusted,
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
            trust_env=False,  # no proxy, no certificates that the environment brings along
        )

    def _url_of(self, path: str) -> httpx2.URL:
        """Read once: an address with its query costs as much to read as a short reply."""
        if path not in self._urls:
            url = httpx2.URL(self._endpoint.base_url + path)
            self._urls[path] = url.copy_merge_params(dict(self._endpoint.query)) if self._endpoint.query else url
        return self._urls[path]

    def _judged(
        self, status: int, headers: httpx2.Headers, body: bytes, *, request: Request, limit_field: str
    ) -> Reply | Retry | Stop:
        if status == 200:
            return Reply(status=200, body=body)
        problem = problem_of(body)
        asked = retry_after_s(headers.get("retry-after"), milliseconds=headers.get("retry-after-ms"), now_s=time.time())
        if status == 402 or any(word in problem.words for word in QUOTA):
            return self._stop("API_QUOTA", f"{self._at} says credit is exhausted ({status}{_said(problem)})")
        if 200 < status < 300:  # no answer of this interface, but perhaps work that was done
            return Retry(why=str(status), may_be_paid=True, wait_s=asked)
        if status == 429:
            return Retry(why="429", may_be_paid=False, overloaded=True, limited=True, wait_s=asked)
        if status in (503, 529):
            return Retry(why=str(status), may_be_paid=False, overloaded=True, wait_s=asked)
        if status >= 500 or status in (408, 409, 425):
            return Retry(why=str(status), may_be_paid=True, wait_s=asked)
        if status in (401, 403):
            return self._stop("API_AUTH", f"{self._at} refuses the key ({status}{_said(problem)}); check the variable")
        if 300 <= status < 400:
            target = _host_of(headers.get("location", ""))
            return self._stop("BASE_URL", f"{self._at} redirects to {target}, which is not followed; set base_url")
        if status in (400, 413, 422) and row_defect(body) is not None:
            return Reply(status=status, body=body)
        return self._refused(status, problem, request=request, limit_field=limit_field)

    def _refused(self, status: int, problem: Problem, *, request: Request, limit_field: str) -> Retry | Stop:
        words = problem.words
        if self._may_switch and limit_field == "max_tokens" and _NEWER in words:
            self.limit_field = _NEWER
            return Retry(why=_NEWER, may_be_paid=False, limited=True, wait_s=0.0)
        if status == 404:
            hint = "check teacher.api.model and base_url (it usually ends in /v1)"
            return self._stop(
                "API_MODEL", f"{self._at} knows no {request.sampling.model!r} (404{_said(problem)}); {hint}"
            )
        named = next((p for p in PARAMETERS if p in words), None)
        advice = f"; leave out generate.{named}" if named else ""
        return self._stop("API_REQUEST", f"{self._at} refuses the request ({status}{_said(problem)}){advice}")

    @property
    def _at(self) -> str:
        return self._endpoint.host

    def _stop(self, code: str, message: str) -> Stop:
        return Stop(error=RemoteError(code, self._endpoint.secret.scrubbed(message)))


def _host_of(location: str) -> str:
    """The host alone: the rest of an address may hold secrets."""
    try:
        return urlsplit(location).hostname or "another place"
    except ValueError:
        return "another place"


def _said(problem: Problem) -> str:
    """What the endpoint says, short; prompts may be in it, so the user's terminal is the only place it goes."""
    text = " ".join(f"{problem.code} {problem.message}".split())
    return f": {text[:160]}" if text else ""
