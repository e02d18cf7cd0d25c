"""The log-probabilities in a raw reply, in the shapes that endpoints give them: tokens with their bytes, as they came.

chat, and llama.cpp's completions   logprobs.content: a list of {token, bytes, logprob, top_logprobs: [the same]}; some
                                    servers add the token's id
completions                         logprobs.tokens, token_logprobs and top_logprobs, a mapping of text to number; with
                                    echo of the prompt's tokens too, the first of which has none
vLLM's prompt_logprobs              prompt_logprobs of the choice: a mapping of id to {logprob, decoded_token} a token

Nothing is tokenised here.  What an endpoint does not say stays unsaid: an id, bytes that are no text.  Tokens that are
parts of a character are spelt alike where an endpoint writes U+FFFD for their bytes, so in a mapping several are one.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ID, _BYTES = re.compile(r"token_id:(\d+)"), re.compile(r"bytes:(\\x[0-9a-f]{2})+")
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

    @property
    def is_lost(self) -> bool:
        """Whether it cannot be told which token it is: others may be spelt alike, and took or gave it its number."""
        return self.data is None and self.token_id is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One token that the endpoint wrote, and the most likely ones there, most likely first."""

    token: Choice
    top: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One token of a text that was given, and the most likely ones there; none where nothing stands before it."""

    token: Choice | None  # None: it is the one among `top` with the id of the row's token
    top: tuple[Choice, ...]


def lacking(body: bytes, *, k: int, given: str | None = None, text: str = "") -> str:
    """What a reply lacks of the `k` most likely tokens that were asked for; empty when nothing.

    `given` is how the server was asked to score a `text`, None where it wrote.
    """
    if given is not None:
        return _lacking_given(body, k=k, given=given, text=text)
    found = _logprobs(body)
    content, top = found.get("content"), found.get("top_logprobs")
    if not content and not found.get("tokens"):
        return "no log-probabilities"
    first = content[0].get("top_logprobs") if content and isinstance(content[0], dict) else top[0] if top else None
    n = len(first) if isinstance(first, list | dict) else 0
    spelt_alike = isinstance(first, dict) and any(_LOST in text for text in first)
    return f"{n} most likely tokens at a position" if n < k and not spelt_alike else ""


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


def given_of(body: bytes, *, given: str) -> tuple[Given, ...]:
    """Every token of a text that was scored, and with echo the one that was written behind it; `Unusable` as above."""
    choice, found = _first_choice(body), _logprobs(body)
    try:
        if given == "echo":
            return tuple(_of_echo(found)) if "tokens" in found else ()
        listed = choice.get("prompt_logprobs") or ()
        return tuple(Given(token=None, top=_of_ids(one) if one else ()) for one in listed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable("its log-probabilities are not in a shape that is known") from error


def _lacking_given(body: bytes, *, k: int, given: str, text: str) -> str:
    none = "no log-probabilities of the given text"
    if given == "echo" and not str(_first_choice(body).get("text", "")).startswith(text):
        return f"{none} (it ignores echo)"
    try:
        scored = [one for one in given_of(body, given=given)[1:] if one.top]
    except Unusable as why:
        return f"{none} that can be read ({why})"
    told = [len(one.top) for one in scored if not any(choice.is_lost for choice in one.top)]
    least = min(told, default=k if scored else 0)  # tokens that are spelt alike are one entry of a mapping
    if not scored and given != "echo":
        return f"{none} (it ignores prompt_logprobs)"
    return f"{least} most likely tokens at a position" if least < k else ""


def _of_echo(found: Mapping[str, Any]) -> Iterator[Given]:
    for text, logp, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        own = _spelt(str(text), 0.0 if logp is None else _number(logp))
        others = (_spelt(other, _number(number)) for other, number in (top or {}).items())
        yield Given(token=own, top=tuple(sorted(others, key=lambda c: -c.logp)))


def _of_ids(one: Mapping[str, Any]) -> tuple[Choice, ...]:
    """vLLM's entries: the token's id -> its number and its text."""
    found = []
    for number, item in one.items():
        text = str(item.get("decoded_token") or "")
        data = _data_of(text) if item.get("decoded_token") is not None else None
        found.append(Choice(text=text, data=data, token_id=int(number), logp=_number(item["logprob"])))
    return tuple(sorted(found, key=lambda c: -c.logp))


def _spelt(text: str, logp: float) -> Choice:
    """A token in a list of texts: some servers write ids (token_id:17), some bytes that are no text (bytes:\\xe2)."""
    if found := _ID.fullmatch(text):
        return Choice(text=text, data=None, token_id=int(found[1]), logp=logp)
    data = bytes.fromhex(text[6:].replace("\\x", "")) if _BYTES.fullmatch(text) else _data_of(text)
    return Choice(text=text, data=data, token_id=None, logp=logp)


def _first_choice(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _logprobs(body: bytes) -> dict[str, Any]:
    found = _first_choice(body).get("logprobs")
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
