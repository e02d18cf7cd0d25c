"""The log-probabilities in a raw reply, in the shapes that endpoints give them: tokens with their bytes, as they came.

chat, and llama.cpp's completions   logprobs.content: a list of {token, bytes, logprob, top_logprobs: [the same]}; some
                                    servers add the token's id
completions                         logprobs.tokens, token_logprobs and top_logprobs, a mapping of text to number

Nothing is tokenised here.  What an endpoint does not say stays unsaid: an id, bytes that are no text.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LOST = "\ufffd"  # in place of bytes that are no text: which ones cannot be told any more
_LEAST_LOGP = -9999.0  # what some endpoints write for a probability of 0


class Unusable(Exception):  # not for users: counted as the reason why a row has no soft labels
    """Why the log-probabilities of one reply cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A token with its log-probability in nats; `data` None where its bytes are not known."""

    text: str
    data: bytes | None
    token_id: int | None
    logp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One token that the endpoint wrote, and the most likely ones there, most likely first."""

    token: Choice
    top: tuple[Choice, ...]


def lacking(body: bytes, *, k: int) -> str:
    """What a reply lacks of the `k` most likely tokens that were asked for; empty when nothing."""
    found = _logprobs(body)
    content, top = found.get("content"), found.get("top_logprobs")
    if not content and not found.get("tokens"):
        return "no log-probabilities"
    first = content[0].get("top_logprobs") if content and isinstance(content[0], dict) else top[0] if top else None
    n = len(first) if isinstance(first, list | dict) else 0
    return f"{n} most likely tokens at a position" if n < k else ""


def written_of(body: bytes) -> tuple[Written, ...]:
    """Every token of the reply in its order; `Unusable` when it has none or they make no sense."""
    found = _logprobs(body)
    try:
        items = list(_of_content(found["content"]) if "content" in found else _of_lists(found) if found else ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable("its log-probabilities are not in a shape that is known") from error
    if not items:
        raise Unusable("it has no log-probabilities")
    return tuple(items)


def _logprobs(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)["choices"][0]["logprobs"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_content(content: list[dict[str, Any]]) -> Iterator[Written]:
    for item in content:
        top = sorted((_choice(other) for other in item["top_logprobs"]), key=lambda c: -c.logp)
        yield Written(token=_choice(item), top=tuple(top))


def _choice(item: Mapping[str, Any]) -> Choice:
    text, raw, number = str(item["token"]), item.get("bytes"), item.get("id")
    data = bytes(raw) if isinstance(raw, list) else _data_of(text)
    token_id = number if type(number) is int else None
    return Choice(text=text, data=data, token_id=token_id, logp=_number(item["logprob"]))


def _of_lists(found: Mapping[str, Any]) -> Iterator[Written]:
    for text, logp, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        own = Choice(text=text, data=_data_of(text), token_id=None, logp=_number(logp))
        others = [
            Choice(text=other, data=_data_of(other), token_id=None, logp=_number(number))
            for other, number in top.items()
        ]
        yield Written(token=own, top=tuple(sorted(others, key=lambda c: -c.logp)))


def _data_of(text: str) -> bytes | None:
    return None if _LOST in text else text.encode()


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # whatever JSON holds: ValueError and TypeError are caught above
    if math.isnan(number) or number > 1e-3:
        raise Unusable(f"a log-probability of it is {number:g}")
    return max(_LEAST_LOGP, min(number, 0.0))
