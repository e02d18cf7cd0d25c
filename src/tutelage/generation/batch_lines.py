"""The lines of a batch job: requests as they go up, replies and refusals as they come down."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tutelage.generation import reply as replies
from tutelage.generation.client import QUOTA
from tutelage.generation.reply import problem_of, row_defect
from tutelage.generation.request import Request

GROUP = 256  # replies of one group of the journal
_ABOUT_ALL = {401: "API_AUTH", 402: "API_QUOTA", 403: "API_AUTH", 404: "API_MODEL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of an output or error file."""

    key: str
    status: int
    body: bytes

    @property
    def is_reply(self) -> bool:
        """Whether it says what became of its prompt: an answer, or a no that is known to be about that prompt."""
        return self.status == 200 or row_defect(self.body) is not None

    @property
    def is_refusal(self) -> bool:
        """Whether handing its request in again would give the same no."""
        return not self.is_reply and (replies.is_for_good(self.status) or self._says_quota)

    @property
    def code(self) -> str | None:
        """The error when the no is about the account or the model, whatever the prompt is."""
        return "API_QUOTA" if self._says_quota else _ABOUT_ALL.get(self.status)

    @property
    def said(self) -> str:
        """Status and message, short."""
        problem = problem_of(self.body)
        return f"{self.status}: {' '.join(f'{problem.code} {problem.message}'.split())[:160]}"

    @property
    def _says_quota(self) -> bool:
        return self.status != 200 and any(word in problem_of(self.body).words for word in QUOTA)


def line_of(request: Request, *, limit_field: str) -> bytes:
    """A request as it goes up, without the line feed."""
    head = {"custom_id": request.key, "method": "POST", "url": f"/v1{request.path}"}
    return json.dumps(head)[:-1].encode() + b',"body":' + request.as_body(limit_field=limit_field) + b"}"


def grouped(lines: Iterator[bytes]) -> Iterator[list[Line]]:
    """What came down, some lines at a time; what is no line of a job is passed over."""
    group: list[Line] = []
    for line in lines:
        if (found := read(line)) is not None:
            group.append(found)
        if len(group) == GROUP:
            yield group
            group = []
    yield group


def read(line: bytes) -> Line | None:
    """A line of a file; None for what is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("custom_id"), str):
        return None
    response, error = content.get("response"), content.get("error")
    if isinstance(response, dict):
        status = response.get("status_code")
        body = json.dumps(response.get("body"), ensure_ascii=False, separators=(",", ":"))
        status = status if type(status) is int else 0
    else:
        status, body = 0, json.dumps({"error": error})
    return Line(key=content["custom_id"], status=status, body=body.encode("utf-8", "surrogatepass"))
