"""One request: what is asked, its key, and the body that goes out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEMPLATE_VERSION = 1  # raise it when the same prompt would be asked in other words: answers are then bought anew
PARAMETERS = ("temperature", "seed", "top_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Everything that the requests of one generation share."""

    model: str
    place: str  # whose model it is: the base_url, or "loopback"
    max_tokens: int
    temperature: float | None = None  # None: not sent
    seed: int | None = None  # sample n is asked with seed + n; None: not sent
    top_logprobs: int | None = None  # most likely tokens at each position of the answer; None: not asked for
    given: str | None = None  # how a server is asked to score the prompt itself; None: it writes
    body: Mapping[str, Any] = field(default_factory=dict)  # further fields, as the user gave them


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked: messages, or the beginning of a text."""

    source: str
    name: str  # where it stands, for people
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    text: str = ""
    reference: str = ""  # the right answer where the data have one; never sent
    teacher: str = ""  # who alone is asked; empty: every teacher

    @property
    def texts(self) -> tuple[str, ...]:
        """Every string that is sent."""
        return tuple(content for _, content in self.messages) or (self.text,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sample of one prompt."""

    prompt: Prompt
    sample: int
    sampling: Sampling
    key: str
    teacher: str = ""  # its name, where there are several

    @property
    def texts(self) -> tuple[str, ...]:
        """Every string that may count as prompt: also the further fields, which may hold tools or a schema."""
        body = self.sampling.body
        return (*self.prompt.texts, json.dumps(body)) if body else self.prompt.texts

    @property
    def path(self) -> str:
        """Which of the two interfaces is asked."""
        return "/chat/completions" if self.prompt.messages else "/completions"

    def as_body(self, *, limit_field: str = "max_tokens") -> bytes:
        """The JSON that is sent; `limit_field` is how this endpoint calls the limit."""
        fields = _asked(self.prompt, self.sampling, sample=self.sample)
        fields[limit_field] = fields.pop("max_tokens")
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def request_of(prompt: Prompt, sampling: Sampling, *, sample: int, teacher: str = "") -> Request:
    """The request with its key: the SHA-256 of everything that can change the answer, each field by its name."""
    canonical = {"place": sampling.place, "sample": sample, **_asked(prompt, sampling, sample=sample)}
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    key = hashlib.sha256(f"tutelage request {TEMPLATE_VERSION}\n{text}".encode()).hexdigest()
    return Request(prompt=prompt, sample=sample, sampling=sampling, key=key, teacher=teacher)


def _asked(prompt: Prompt, sampling: Sampling, *, sample: int) -> dict[str, Any]:
    fields: dict[str, Any] = {**sampling.body, "model": sampling.model, "max_tokens": sampling.max_tokens}
    if prompt.messages:
        fields["messages"] = [{"role": role, "content": content} for role, content in prompt.messages]
    else:
        fields["prompt"] = prompt.text
    if sampling.temperature is not None:
        fields["temperature"] = sampling.temperature
    if sampling.given == "echo":
        fields |= {"echo": True, "logprobs": sampling.top_logprobs}
    elif sampling.given is not None:
        fields["prompt_logprobs"] = sampling.top_logprobs
    elif sampling.top_logprobs is not None:
        asked = {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        fields |= asked if prompt.messages else {"logprobs": sampling.top_logprobs}
    if sampling.seed is not None:
        fields["seed"] = sampling.seed + sample
    return fields
