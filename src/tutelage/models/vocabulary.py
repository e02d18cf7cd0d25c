"""Do two models count in the same tokens?  Compared by content, before any weight is loaded.

Ids below `real_vocabulary` are the tokens that exist; rows of a head beyond it are padding, and placeholder tokens that
a GGUF tokenizer invents for them ("[PAD49152]") do not count.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from tutelage import console
from tutelage.errors import IntegrityError
from tutelage.models.safety import Finding
from tutelage.models.template import chat_template, template_hash

_PLACEHOLDER = re.compile(r"\[PAD(\d+)\]")
_PARTS = ("normalizer", "pre_tokenizer", "added_tokens")  # with the model, what decides the ids of a text
_ADDED_FIELDS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over what decides the ids of a text: vocabulary, merges, added tokens, normalizer, pre-tokenizer.

    The content counts, not the file: a tokenizer that was saved again, padded or truncated has the same fingerprint.
    """
    content = json.dumps(_canonical(tokenizer), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def template_fingerprint(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template, None when there is none."""
    template = chat_template(tokenizer)
    return template_hash(template) if template is not None else None


def real_vocabulary(tokenizer: Any) -> int:
    """The number of ids that mean something: the largest id of a real token, plus one."""
    return max(_tokens_by_id(tokenizer), default=-1) + 1


def token_text(tokenizer: Any, token_id: int, *, after: int) -> str:
    """A token's text where it would stand: alone, SentencePiece tokenizers drop its leading space."""
    before, both = decoded(tokenizer, [after]), decoded(tokenizer, [after, token_id])
    return both[len(before) :] if both.startswith(before) else decoded(tokenizer, [token_id])


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text of some ids, control tokens included, nothing cleaned up."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def compare_tokenizers(teacher: Any, student: Any) -> None:
    """IntegrityError[TOKENIZER_MISMATCH] when an id means different tokens, or a text becomes different ids."""
    ours, theirs = _tokens_by_id(teacher), _tokens_by_id(student)
    if differing := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
        first, total = differing[0], max(len(ours), len(theirs))
        raise IntegrityError(
            "TOKENIZER_MISMATCH",
            f"{len(differing)} of {total} ids differ, first: {first} {ours.get(first)!r} vs {theirs.get(first)!r} "
            "(teacher vs student); use a student with the teacher's tokenizer, or hard labels",
        )
    left, right = _canonical(teacher), _canonical(student)
    if parts := sorted(part for part in left.keys() | right.keys() if left.get(part) != right.get(part)):
        raise IntegrityError(
            "TOKENIZER_MISMATCH",
            f"teacher and student have the same tokens and cut text differently ({', '.join(parts)} differ); "
            "use a student with the teacher's tokenizer",
        )


def compare_templates(teacher: Any, student: Any) -> None:
    """IntegrityError[TEMPLATE_MISMATCH] when both have a chat template and the two differ."""
    ours, theirs = chat_template(teacher), chat_template(student)
    if ours is None or theirs is None or ours == theirs:
        return
    left, right = ours.splitlines(), theirs.splitlines()
    n_shared = min(len(left), len(right))
    line = next((n for n in range(n_shared) if left[n] != right[n]), n_shared)
    shown = [lines[line][:80] if line < len(lines) else "(ends)" for lines in (left, right)]
    raise IntegrityError(
        "TEMPLATE_MISMATCH",
        f"template {template_hash(ours)[:8]} vs {template_hash(theirs)[:8]}, first differing line {line + 1}: "
        f"{shown[0]!r} vs {shown[1]!r}; set data.chat_template",
    )


def ends_finding(teacher: Any, student: Any) -> Finding | None:
    """The finding that teacher and student end on different tokens, or None."""
    ours, theirs = teacher.eos_token_id, student.eos_token_id
    if ours == theirs:
        return None
    return Finding(
        level="warning",
        code="EOS_MISMATCH",
        message=f"teacher ends on {ours} {teacher.eos_token!r}, student on {theirs} {student.eos_token!r}; "
        "the student will be saved with both as stop ids",
    )


def compare_ends(teacher: Any, student: Any) -> tuple[int, ...]:
    """The ids that the student has to stop on; warns with EOS_MISMATCH when there are two."""
    finding = ends_finding(teacher, student)
    if finding is not None:
        console.warning(finding.code, finding.message)
    ids = [tokenizer.eos_token_id for tokenizer in (teacher, student)]
    return tuple(dict.fromkeys(number for number in ids if number is not None))


def padded_rows(n_rows: int, n_vocabulary: int) -> Finding | None:
    """The finding that a head has more rows than the tokenizer has tokens (warning) or fewer (error), or None."""
    if n_rows == n_vocabulary:
        return None
    if n_rows < n_vocabulary:
        message = f"the head has {n_rows} rows, the tokenizer {n_vocabulary} tokens: wrong tokenizer for this model?"
        return Finding(level="error", code="VOCAB_PAD", message=message)
    message = f"{n_rows - n_vocabulary} of the head's {n_rows} rows are padding beyond the tokenizer's {n_vocabulary}"
    return Finding(level="warning", code="VOCAB_PAD", message=f"{message}; they never take part in a loss")


def _tokens_by_id(tokenizer: Any) -> dict[int, str]:
    """Every real token by its id, without the placeholders at the end."""
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    for number in sorted(tokens, reverse=True):
        match = _PLACEHOLDER.fullmatch(tokens[number])
        if match is None or int(match[1]) != number:
            break
        del tokens[number]
    return tokens


def _canonical(tokenizer: Any) -> dict[str, Any]:
    """What decides the ids of a text, in one form however the tokenizer was stored."""
    tokens = _tokens_by_id(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer: its class stands for its rules
        return {"class": type(tokenizer).__name__, "vocab": sorted(tokens.items())}
    stored = json.loads(backend.to_str())
    canonical: dict[str, Any] = {part: stored.get(part) for part in _PARTS}
    canonical["added_tokens"] = _added(stored.get("added_tokens") or [])
    model: Mapping[str, Any] = stored.get("model") or {}
    canonical["rules"] = {k: v for k, v in model.items() if v and k not in ("vocab", "merges", "dropout")}
    canonical["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or []]
    canonical["vocab"] = sorted(tokens.items())
    if isinstance(model.get("vocab"), list):  # unigram: the scores decide too
        canonical["scores"] = model["vocab"]
    return canonical


def _added(stored: list[dict[str, Any]]) -> list[list[Any]]:
    real = [token for token in stored if not _PLACEHOLDER.fullmatch(str(token.get("content")))]
    return sorted([token.get(name) for name in _ADDED_FIELDS] for token in real)
