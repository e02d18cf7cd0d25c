"""Conversations as rows hold them: messages, with tool calls or without, ShareGPT's form, and chosen answers."""

import json
from collections.abc import Mapping, Sequence

from tutelage.data.example import Message, RowDefectError
from tutelage.data.values import kind_of, sound, text_of, value_of

_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
_FIELDS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}  # beside role and content


def messages_of(value: object) -> tuple[Message, ...]:
    """The turns of a conversation; RowDefectError for what is none."""
    messages = tuple(_message(turn, number) for number, turn in enumerate(_turns(value, "messages"), start=1))
    calls = False
    for number, message in enumerate(messages, start=1):
        if message.role == "tool" and not calls:
            raise RowDefectError(f"message {number} is of a tool, and no tool call stands before it")
        calls = message.role == "tool" or bool(message.more)
    return messages


def of_sharegpt(value: object) -> tuple[Message, ...]:
    """The turns of `[{from: human, value: …}, {from: gpt, value: …}]`."""
    found = []
    for number, turn in enumerate(_turns(value, "conversations"), start=1):
        turn = _mapping(turn, number)
        said = text_of(value_of(turn, "from"), f"from of message {number}")
        if said not in _SHAREGPT_ROLES:
            raise RowDefectError(f"message {number} is from {said!r}; known: {', '.join(_SHAREGPT_ROLES)}")
        _refuse_more(turn, number, known=("from", "value"))
        role = _SHAREGPT_ROLES[said]
        found.append(Message(role, _content(value_of(turn, "value"), "value", number=number, role=role)))
    return tuple(found)


def preferred(asked: object, chosen: object) -> tuple[Message, ...]:
    """A prompt (None where `chosen` is the whole conversation) with the chosen answer, as turns."""
    if isinstance(chosen, str):
        if asked is None:
            raise RowDefectError("chosen is a text without a prompt; name the prompt's column too")
        before = messages_of(asked)
        return (*before, Message("assistant", text_of(chosen, "chosen")))
    turns = messages_of(chosen)
    if turns[-1].role != "assistant":
        raise RowDefectError(f"chosen ends with a message of the {turns[-1].role}, not with an answer")
    if asked is None:
        if len(turns) == 1:
            raise RowDefectError("chosen is an answer without a prompt; name the prompt's column too")
        return turns
    question = (Message("user", text_of(asked, "prompt")),) if isinstance(asked, str) else messages_of(asked)
    if turns[: len(question)] == question:  # chosen repeats the prompt
        return turns
    if turns[0].role != "assistant":
        raise RowDefectError(
            "chosen begins with another question than prompt; leave columns.prompt out to use it alone"
        )
    return (*question, *turns)


def tools_of(value: object) -> str:
    """JSON of a list of tools, given as one or as its JSON text; empty where there is none."""
    if isinstance(value, str) and value.strip():
        value = _read(value, "tools")
    if value is None or value == "" or value == []:
        return ""
    if not isinstance(value, list):
        raise RowDefectError(f"tools must be a list, this is {kind_of(value)}")
    for number, tool in enumerate(value, start=1):
        if not isinstance(tool, Mapping) or not isinstance(_function(tool).get("name"), str):
            raise RowDefectError(f"tool {number} has no name; expected {{type: function, function: {{name: …}}}}")
    return _written(value, "tools")


def _function(tool: Mapping[str, object]) -> Mapping[str, object]:
    """What a tool or a call is about, whether it stands under `function` or not."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _turns(value: object, column: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowDefectError(f"{column} must be a list of turns, this is {kind_of(value)}")
    return value


def _mapping(turn: object, number: int) -> Mapping[str, object]:
    if not isinstance(turn, Mapping):
        raise RowDefectError(f"message {number} must be an object, this is {kind_of(turn)}")
    return turn


def _message(turn: object, number: int) -> Message:
    if isinstance(turn, Message):
        turn = {"role": turn.role, "content": turn.content, **(json.loads(turn.more) if turn.more else {})}
    turn = _mapping(turn, number)
    role = text_of(value_of(turn, "role"), f"role of message {number}")
    known = _FIELDS.get(role, ())
    _refuse_more(turn, number, known=("role", "content", *known))
    more = {name: turn[name] for name in known if turn.get(name) not in (None, [], "")}
    if "tool_calls" in more:
        more["tool_calls"] = [_call(call, number) for call in _turns(more["tool_calls"], "tool_calls")]
    content = turn.get("content") if more else value_of(turn, "content")
    has_calls = "tool_calls" in more
    said = (
        "" if has_calls and content is None else _content(content, "content", number=number, role=role, calls=has_calls)
    )
    return Message(role, said, _written(more, f"message {number}") if more else "")


def _content(value: object, field: str, *, number: int, role: str, calls: bool = False) -> str:
    return text_of(value, f"{field} of message {number}", may_be_empty=calls or role != "assistant")


def _refuse_more(turn: Mapping[str, object], number: int, *, known: Sequence[str]) -> None:
    """Dropping other fields, reasoning say, would train on another conversation than the user's."""
    extra = sorted(str(key) for key, value in turn.items() if key not in known and value not in (None, []))
    if extra:
        said = f"{', '.join(known[:-1])} and {known[-1]}"
        raise RowDefectError(f"message {number} has {', '.join(extra)}; only {said} are supported")


def _call(call: object, number: int) -> dict[str, object]:
    """One tool call in the form that templates expect; arguments written as JSON text are read."""
    inner = _function(call) if isinstance(call, Mapping) else {}
    name, arguments = inner.get("name"), inner.get("arguments", {})
    if not isinstance(call, Mapping) or not isinstance(name, str) or not name:
        raise RowDefectError(f"a tool call of message {number} has no name; expected {{function: {{name, arguments}}}}")
    if isinstance(arguments, str):
        arguments = _read(arguments or "{}", f"arguments of {name!r} in message {number}")
    if not isinstance(arguments, Mapping):
        raise RowDefectError(
            f"arguments of {name!r} in message {number} must be an object, this is {kind_of(arguments)}"
        )
    number_of_call = {"id": call["id"]} if call.get("id") else {}
    return {**number_of_call, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _read(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowDefectError(f"{what} must be JSON, or a text of it; this text is none") from None


def _written(value: object, what: str) -> str:
    try:
        return sound(json.dumps(value, ensure_ascii=False), what)
    except (TypeError, ValueError):
        raise RowDefectError(f"{what} holds something that is not JSON") from None
