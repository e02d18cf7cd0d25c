"""Drops wrong answers: a number, an exact text, a choice, a pattern, or JSON of a given form."""

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from tutelage.errors import ConfigError
from tutelage.generation.select import Candidate, Judge, folded
from tutelage.generation.select._json_schema import mistake, refuse_unknown
from tutelage.recipe.generation import Verify

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+\u2212]?\.\d+")
_CHOSEN = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?\s*[:\s]*[*(\[\"']*([A-J])\b", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z'])\(?([A-J])\b(?!['\u2019])")
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


def build(settings: Verify) -> Judge:
    """One kind of verifier; ConfigError for a pattern or schema that is none."""
    if settings.regex is not None:
        return _matching(settings.regex)
    if settings.json_schema is not None:
        schema = settings.json_schema
        refuse_unknown(schema)
        return lambda candidate: _json_mistake(candidate.text, schema)
    if settings.exact:
        return _comparing(folded, "is not the reference")
    return _comparing(last_number, "wrong number") if settings.number else _comparing(choice, "wrong choice")


def _comparing(read: Callable[[str], object], wrong: str) -> Judge:
    def judge(candidate: Candidate) -> str:
        expected = read(candidate.reference)
        if expected is None or not candidate.reference.strip():
            return "no reference to compare with"
        found = read(candidate.text)
        if found is None:
            return f"no {wrong.removeprefix('wrong ')} in it"
        return "" if found == expected else wrong

    return judge


def last_number(text: str) -> Decimal | None:
    """The last number in a text: 1,234.50 is 1234.5, and a full stop behind it does not count."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None
    except InvalidOperation:
        return None


def choice(text: str) -> str | None:
    """The letter that a text chooses: after `answer`, `option` or `choice` if there is one, else the last alone."""
    found = _CHOSEN.findall(text) or _LETTER.findall(text)
    return found[-1].upper() if found else None


def _matching(pattern: str) -> Judge:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError("CONFIG", f"generate.select: regex {pattern!r} is none ({error})") from error
    return lambda candidate: "" if compiled.search(candidate.text) else "does not match"


def _json_mistake(text: str, schema: object) -> str:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return "is not JSON"
    return "does not fit the schema" if mistake(value, schema) else ""
