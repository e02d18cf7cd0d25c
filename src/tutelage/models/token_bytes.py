"""The bytes that each token of a vocabulary stands for, as endpoints give them; two ways of spelling them are known.

byte-level     each byte is one printable character (GPT-2's table); SmolLM2, Qwen, Llama 3, …
SentencePiece  a space is U+2581, a byte that no piece has is <0xHH>; Llama 2, Mistral, Gemma, …
"""

import json
import re
from functools import cache
from typing import Any

from tutelage.errors import ConfigError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Bytes by id, of every token that is no control token.

    Raises ConfigError[TOKENIZER_MISMATCH] for a tokenizer that spells its tokens in neither way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stored = json.loads(backend.to_str()) if backend is not None else {}
    kinds = _kinds(stored.get("decoder")) | _kinds(stored.get("pre_tokenizer"))
    if "ByteLevel" in kinds:
        spelled = _of_characters
    elif kinds & {"Metaspace", "ByteFallback", "Replace"}:
        spelled = _of_pieces
    else:
        raise ConfigError(
            "TOKENIZER_MISMATCH",
            "the student's tokenizer is neither byte-level nor SentencePiece, so the tokens of an endpoint cannot be "
            "compared with it; leave generate.top_logprobs out",
        )
    added = {token["id"]: token for token in stored.get("added_tokens") or []}
    found = {}
    for token, number in tokenizer.get_vocab().items():
        if number in added:
            if not added[number]["special"]:
                found[number] = token.encode()
        elif (data := spelled(token)) is not None:
            found[number] = data
    return found


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Id by text, of every control token."""
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in decoder.items() if token.special}


def _kinds(part: Any) -> set[str]:
    """The types named anywhere in a part of tokenizer.json."""
    if isinstance(part, list):
        return set().union(*map(_kinds, part))
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*map(_kinds, part.values()))


@cache
def _byte_level() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others follow from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _of_characters(token: str) -> bytes | None:
    table = _byte_level()
    return bytes(table[c] for c in token) if all(c in table for c in token) else None


def _of_pieces(token: str) -> bytes | None:
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode()
