"""Replies with log-probabilities, as endpoints give them, by the student's own tokenizer or by another one."""

import json
import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

END = "<|im_end|>"


def content_of(tokenizer: Any, text: str, *, k: int, ids: bool = False, end: bool = False) -> list[dict[str, Any]]:
    """One entry a token; `ids` and `end` (of the turn) as llama.cpp gives them."""
    numbers = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    numbers += [tokenizer.convert_tokens_to_ids(END)] if end else []
    return [_entry(tokenizer, number, k=k, ids=ids, n=n) for n, number in enumerate(numbers)]


def _entry(tokenizer: Any, own: int, *, k: int, ids: bool, n: int) -> dict[str, Any]:
    """The own token is the second most likely one."""
    draw = random.Random(f"{own} {n}")
    others = draw.sample([number for number in range(2, len(tokenizer)) if number != own], k - 1)
    shares = sorted((draw.random() + 0.1 for _ in range(k + 1)), reverse=True)
    numbers = [others[0], own, *others[1:]] if k > 1 else [own]
    top = [
        _named(tokenizer, number, math.log(share / sum(shares)), ids=ids)
        for number, share in zip(numbers, shares, strict=False)
    ]
    return {**next(t for t in top if t["_id"] == own), "top_logprobs": top}


def _named(tokenizer: Any, number: int, logp: float, *, ids: bool) -> dict[str, Any]:
    is_control = tokenizer.convert_ids_to_tokens(number).startswith("<|")
    data = b"" if is_control else data_of(tokenizer, number)
    named = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logp, "_id": number}
    return {**named, "id": number} if ids else named


def data_of(tokenizer: Any, number: int) -> bytes:
    """The bytes of a byte-level token, by the table of its own decoder."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    token = tokenizer.convert_ids_to_tokens(number)
    return bytes(ord(c) if ord(c) < 0x100 else hidden[ord(c) - 0x100] for c in token)


def body_of(text: str, content: list[dict[str, Any]], *, finish: str = "stop", chat: bool = True) -> bytes:
    """The whole reply."""
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, "finish_reason": finish, **said, "logprobs": {"content": content}}
    usage = {"prompt_tokens": 5, "completion_tokens": len(content)}
    return json.dumps({"model": "served-1", "choices": [choice], "usage": usage}).encode()


def answering(tokenizer: Any, text_of: Callable[[Any], str], *, k: int = 4, **how: Any) -> Callable[[int, Any], Any]:
    """A script for `Endpoint`."""
    from tests.instruments.endpoint import Action

    content_once = cache(lambda text: content_of(tokenizer, text, k=k, **how))

    def script(_: int, body: Any) -> Any:
        text = text_of(body)
        content = content_once(text)
        return Action(body=body_of(text, content, chat="messages" in body))

    return script
