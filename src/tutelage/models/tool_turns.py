"""Tool calls in a rendered chat: whether the template writes them at all, and which characters are an assistant's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any  # messages and tools are JSON of the user's data

from tutelage.errors import IntegrityError
from tutelage.models.segments import Segment

_FIX = "set data.chat_template to one that knows tools, or leave these rows out"


def places_of_calls(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The messages that call tools."""
    return [n for n, message in enumerate(messages) if message.get("tool_calls")]


def require_named(text: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> None:
    """IntegrityError[TEMPLATE] unless every tool and every called function stands in the rendered text by its name."""
    for what, items in (
        ("tools", tools),
        ("tool calls", [call for n in places_of_calls(messages) for call in messages[n]["tool_calls"]]),
    ):
        names = [str((item.get("function") or item)["name"]) for item in items]
        missing = [name for name in names if name not in text]
        if missing:
            raise IntegrityError(
                "TEMPLATE", f"the chat template does not write {what} ({missing[0]!r} is lost); {_FIX}"
            )


def span_of_turn(text: str, before: str, *, number: int, end_of_turn: str, openers: Sequence[str]) -> tuple[int, int]:
    """Where message `number` begins and ends in the rendered chat, with the control token that ends it.

    `before` is what the template renders up to it, with what opens an answer: a model that calls a tool writes what
    follows, up to the first `end_of_turn` and never over a control token that opens a turn.  IntegrityError[TEMPLATE]
    when the rendered chat goes on otherwise.
    """
    end = text.find(end_of_turn, len(before)) if end_of_turn else -1
    turn = text[len(before) : end]
    if not text.startswith(before) or end < 0 or any(opener in turn for opener in openers):
        what = f"where the tool calls of message {number + 1} begin and end cannot be told in the rendered chat"
        raise IntegrityError("TEMPLATE", f"{what}; set data.chat_template to one with {{% generation %}} tags")
    return len(before), end + len(end_of_turn)


def cut(segments: Sequence[Segment], places: Sequence[int]) -> Iterator[tuple[int, Segment]]:
    """Each segment with where it begins, cut at these places of the text."""
    begin = 0
    for segment in segments:
        inside = sorted({p - begin for p in places if 0 < p - begin < len(segment.text)})
        for first, last in zip([0, *inside], [*inside, len(segment.text)], strict=True):
            yield begin + first, replace(segment, text=segment.text[first:last])
        begin += len(segment.text)
