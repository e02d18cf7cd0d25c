"""Drops wrong answers: a number, an exact text, a choice, a pattern, JSON of a given form, or a function's no."""

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from tutelage.errors import ConfigError
from tutelage.generation.function_process import TIMEOUT_S, FunctionProcess
from tutelage.generation.select import Candidate, Judge, Said, Step, Verdict, each, folded
from tutelage.generation.select._json_schema import mistake, refuse_unknown
from tutelage.recipe.generation import Verify

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+\u2212]?\.\d+")
_CHOSEN, _OPTION = (  # a small letter only where nothing follows it: "the answer is a number" chooses none
    re.compile(
        rf"(?i:{word})\s*(?i:is|:)?[:\s]*[*(\[\"']*(?P<letter>[A-J]\b(?!['\u2019])|[a-j](?=[*)\]\"'.]*\s*(?:\n|$)))"
    )
    for word in ("answer", "choice|option")
)
# Before the words of the option, "C. Vitamin D"; not where a later line begins so too, which goes through the options.
_LABEL = re.compile(r"\A\W*(?P<letter>[A-J])\**[.):]\**(?=\s|\Z)(?!.*\n\W*[A-J]\**[.):])", re.DOTALL)
_NO_WORD, _A, _I = (  # not "A thing that I know", unless no other letter stands alone
    re.compile(rf"(?<![A-Za-z'])\(?(?P<letter>{letter})\b(?!['\u2019])")
    for letter in (r"[B-HJ]|[AI](?!\s+[a-z])", "A", "I")
)
_READINGS = (_CHOSEN, _LABEL, _OPTION, _NO_WORD, _A, _I)
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


def build(settings: Verify) -> Judge | Step:
    """One kind of verifier; ConfigError for a pattern, schema or function that is none."""
    if settings.function is not None:
        return _by_function(settings.function, timeout_s=settings.timeout_s or TIMEOUT_S)
    if settings.regex is not None:
        return _matching(settings.regex)
    if settings.json_schema is not None:
        schema = settings.json_schema
        refuse_unknown(schema)
        return lambda candidate: _json_mistake(candidate.text, schema)
    if settings.exact:
        return _comparing(folded, "is not the reference")
    return _comparing(last_number, "wrong number") if settings.number else _comparing(choice, "wrong choice")


def _by_function(spec: str, *, timeout_s: float) -> Step:
    function = FunctionProcess(spec, timeout_s=timeout_s)

    def judge(candidate: Candidate) -> Said:
        said = called(function, candidate)
        if isinstance(said, float):
            return Verdict(why="function returned a number, not true or false", about=f"{said:g}")
        if isinstance(said, bool):
            return "" if said else "refused by the function"
        return said

    return Step(judge=each(judge), files={function.name: function.sha256}, close=function.close)


def called(function: FunctionProcess, candidate: Candidate) -> bool | float | Verdict:
    """What a function of the user's says of an answer to the last thing that was asked, or why it says nothing."""
    made = function(prompt=candidate.asked[-1], answer=candidate.text, reference=candidate.reference)
    return made.value if made.value is not None else Verdict(why=made.why, about=made.about)


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
    """The letter that a text chooses: after `answer`, else before an option's words, after `choice` or `option`, alone.

    The last such; A and I are taken for words where small letters follow and another letter stands alone.
    """
    found = next((found for reading in _READINGS if (found := list(reading.finditer(text)))), None)
    return found[-1]["letter"].upper() if found else None


def _matching(pattern: str) -> Judge:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError("CONFIG", f"generate.select: regex {pattern!r} is none ({error})") from error
    return lambda candidate: "" if compiled.search(candidate.text) else "does not match"


def is_json(text: str) -> bool:
    """Whether a text is JSON, also in a fence of Markdown."""
    return _json_in(text) is not None


def _json_in(text: str) -> tuple[object] | None:
    fenced = _FENCE.fullmatch(text)
    try:
        return (json.loads(fenced[1] if fenced else text),)
    except (ValueError, RecursionError):
        return None


def _json_mistake(text: str, schema: object) -> str:
    found = _json_in(text)
    if found is None:
        return "is not JSON"
    (value,) = found
    return "does not fit the schema" if mistake(value, schema) else ""
