"""What a raw reply says: one typed outcome for everything that a server can send, and never an exception.

outcome         what it is                                             asked again?
answer          a whole answer                                         no
scored          the log-probabilities of a given text                  no
truncated       cut by max_tokens                                      no: it would be paid and cut again
refused         a refusal or a content filter                          no
empty           no text, or only white space                           no
reasoning_only  reasoning without an answer                            no
tool_call       a call of a tool instead of an answer                  no
no_choice       an empty list of choices                               no
bad_text        characters that no file can hold                       no
too_long        the prompt does not fit the model (status 400)         no
rejected        another no to this one request (batch jobs alone)      no
incomplete      no finish_reason: the stream may have been cut         yes, as often as errors are retried
error           an error in a body with status 200                     yes
bad_body        not the JSON of this interface                         yes, then the run stops
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from tutelage.generation.budget import Usage

RETRIED = ("incomplete", "error", "bad_body")
LATER = (408, 409, 425, 429)  # a no of these may be a yes the next time, and so may one from 500 on
_THINK = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)(.*)", re.DOTALL)
_FILTERED = ("content_filter", "safety", "refusal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply, read."""

    outcome: str
    text: str = ""
    reasoning: str = ""
    model: str = ""
    finish_reason: str = ""
    usage: Usage | None = None

    @property
    def is_final(self) -> bool:
        """Whether its request is never sent again."""
        return self.outcome not in RETRIED


def parse(body: bytes, *, status: int = 200, finish_reason_optional: bool = False, scored: bool = False) -> Reply:
    """The reply in a body; `finish_reason_optional` for servers that never give one, `scored` where text was given."""
    if status != 200:
        return Reply(outcome=row_defect(body) or ("rejected" if is_for_good(status) else "error"))
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return Reply(outcome="bad_body")
    if not isinstance(content, dict):
        return Reply(outcome="bad_body")
    model, choices = content.get("model"), content.get("choices")
    known = Reply(
        outcome="bad_body", usage=Usage.of(content.get("usage")), model=model if isinstance(model, str) else ""
    )
    if content.get("error") is not None and not choices:
        return replace(known, outcome="error")
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        return known
    if not choices:
        return replace(known, outcome="no_choice")
    if scored:
        return replace(known, outcome="scored", finish_reason="length")
    return _of_choice(choices[0], known, finish_reason_optional=finish_reason_optional)


def is_for_good(status: int) -> bool:
    """Whether a request with this status gets the same no again."""
    return 400 <= status < 500 and status not in LATER


def _of_choice(choice: dict[str, Any], known: Reply, *, finish_reason_optional: bool) -> Reply:
    message = choice.get("message", {"content": choice.get("text")})
    if not isinstance(message, dict):
        return known
    content, finish = _content(message), choice.get("finish_reason")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    text, inner = split_reasoning(content or "")
    reasoning = reasoning if isinstance(reasoning, str) else inner
    outcome = _outcome(message, text, finish=finish, reasoning=reasoning, optional=finish_reason_optional)
    if not _is_storable(text + reasoning):
        return replace(known, outcome="bad_text")
    finish = finish if isinstance(finish, str) else ""
    return replace(known, outcome=outcome, text=text, reasoning=reasoning, finish_reason=finish)


def _outcome(message: dict[str, Any], text: str, *, finish: object, reasoning: str, optional: bool) -> str:
    if message.get("refusal") or finish in _FILTERED:
        return "refused"
    if finish == "length":
        return "truncated"
    if not finish and not optional:
        return "incomplete"
    if text.strip():
        return "answer"
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_call"
    return "reasoning_only" if reasoning.strip() else "empty"


def _content(message: dict[str, Any]) -> str | None:
    """The text; also of a content in parts, as some servers send it."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def split_reasoning(content: str) -> tuple[str, str]:
    """(answer, reasoning) of a text that begins with a block of reasoning, or whose prompt has begun one."""
    if found := _THINK.fullmatch(content):
        return found[3].lstrip("\n"), found[2].strip("\n")
    before, end, after = content.partition("</think>")
    if end and "<think>" not in content:
        return after.lstrip("\n"), before.strip("\n")
    return content, ""


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


# --- errors ---
@dataclass(frozen=True, slots=True)
class Problem:
    """The error object of a body, as far as it says."""

    code: str
    parameter: str
    message: str

    @property
    def words(self) -> str:
        """Everything, in lower case, to look for words in."""
        return f"{self.code} {self.parameter} {self.message}".lower()


def problem_of(body: bytes) -> Problem:
    """The error in a body of any status; its texts shortened, empty where there are none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return Problem("", "", body[:60].decode("utf-8", "replace"))
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return Problem("", "", str(error)[:200])
    code = " ".join(str(error[name]) for name in ("code", "type") if error.get(name))
    message = error.get("message") or error.get("detail") or ""
    return Problem(code[:100], str(error.get("param") or "")[:60], str(message)[:200])


def row_defect(body: bytes) -> str | None:
    """The outcome when an error is about this prompt alone, and others may go well."""
    words = problem_of(body).words
    if "content_filter" in words or "content management policy" in words or "content_policy" in words:
        return "refused"
    if "context_length" in words or "context length" in words or "context window" in words or "too long" in words:
        return "too_long"
    return "too_long" if "maximum context" in words or "context size" in words else None
