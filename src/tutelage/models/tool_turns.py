"""Tool calls in a rendered chat: whether the template writes them at all, and which characters are an assistant's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any  # messages and tools are JSON of the user's data

from tutelage.errors import IntegrityError
from tutelage.models.segments import Segment

_HIDDEN = "\0"  # for each character that somebody wrote: what it spells is no control token
_FIX = "set data.chat_template to one that knows tools, or leave these rows out"


def places_of_calls(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The messages that call tools."""
    return [n for n, message in enumerate(messages) if message.get("tool_calls")]


def require_written(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    *,
    render: Callable[[Sequence[Mapping[str, Any]], Sequence[Any]], str],
) -> None:
    """IntegrityError[TEMPLATE] unless the template writes every tool and every call.

    Asked with names that stand nowhere else: that of a tool may be a word of the conversation.
    """
    marked_tools = [_named(tool, f"qxtool{n}qx") for n, tool in enumerate(tools)]
    marked, calls = list(messages), list[tuple[str, Any]]()
    for n in places_of_calls(messages):
        own = [(f"qxcall{len(calls) + k}qx", call) for k, call in enumerate(messages[n]["tool_calls"])]
        marked[n] = {**messages[n], "tool_calls": [_named(call, mark) for mark, call in own]}
        calls += own
    text = render(marked, marked_tools)
    wanted = [("tools", f"qxtool{n}qx", tool) for n, tool in enumerate(tools)]
    for what, mark, item in (*wanted, *(("tool calls", mark, call) for mark, call in calls)):
        if mark not in text:
            name = (item.get("function") or item)["name"]
            raise IntegrityError("TEMPLATE", f"the chat template does not write {what} ({name!r} is lost); {_FIX}")


def _named(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tool or a call of another name."""
    if item.get("function"):
        return {**item, "function": {**item["function"], "name": name}}
    return {**item, "name": name}


def span_of_turn(
    segments: Sequence[Segment], before: str, *, number: int, end_of_turn: str, openers: Sequence[str]
) -> tuple[int, int]:
    """Where message `number` begins and ends in the rendered chat, with the control token that ends it.

    `before` is what the template renders up to it, with what opens an answer: a model that calls tools writes what
    follows, up to the first `end_of_turn` of the template and never over a control token that opens a turn.
    IntegrityError[TEMPLATE] when the rendered chat goes on otherwise.
    """
    text = "".join(segment.text for segment in segments)
    syntax = "".join(s.text if s.kind == "template" else _HIDDEN * len(s.text) for s in segments)
    end = syntax.find(end_of_turn, len(before)) if end_of_turn else -1
    turn = syntax[len(before) : end]
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
