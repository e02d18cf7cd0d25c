"""Conversations as they come: tool calls, ShareGPT's form and preference data, or the row's defect."""

import json

import pytest

from tutelage.data.example import Example, Message, Reject
from tutelage.data.sources import SourceSpec, read

CALL = {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
ASKED = [{"role": "user", "content": "q"}]


def one(row: object, **columns: str) -> Example | Reject:
    (item,) = read(SourceSpec(kind="examples", examples=[row], columns=columns, name="rows"))
    return item


def messages(row: object, **columns: str) -> list[tuple[str, str]]:
    found = one(row, **columns)
    assert isinstance(found, Example), found
    return [(m.role, m.content) for m in found.messages] or [("prompt", found.prompt), ("answer", found.answer)]


Q, A = ("user", "q"), ("assistant", "good")
ANSWER = [{"role": "assistant", "content": "good"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [("prompt", "q"), ("answer", "good")]),
        ({"prompt": ASKED, "chosen": ANSWER, "rejected": ANSWER}, [Q, A]),
        ({"prompt": ASKED, "chosen": "good"}, [Q, A]),
        ({"prompt": "q", "chosen": ANSWER}, [Q, A]),
        ({"prompt": "q", "chosen": [*ASKED, *ANSWER], "rejected": "bad"}, [Q, A]),  # chosen repeats the prompt
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good", "weight": None}]},
            [Q, A],
        ),
    ],
)
def test_what_is_learned_of_a_conversation_is_what_its_form_says(row, expected):
    assert messages(row) == expected


def test_a_conversation_alone_may_be_what_was_chosen():
    assert messages({"chosen": [*ASKED, *ANSWER], "rejected": []}, chosen="chosen") == [Q, A]


DEFECTS = [
    ({"prompt": "q", "chosen": ""}, "empty chosen"),
    ({"prompt": "q", "chosen": ASKED}, "chosen ends with a message of the user, not with an answer"),
    ({"prompt": "other", "chosen": [*ASKED, *ANSWER]}, "chosen begins with another question than prompt; leave "),
    ({"prompt": ["q"], "chosen": "good"}, "message 1 must be an object, this is a string"),
    (
        {"conversations": [{"from": "function_call", "value": "{}"}]},
        "message 1 is from 'function_call'; known: human, ",
    ),
    ({"conversations": [{"from": "gpt", "value": "a", "weight": 0}]}, "message 1 has weight; only from and value are"),
    ({"conversations": [{"from": "gpt", "value": " "}]}, "empty value of message 1"),
    (
        {"messages": [*ASKED, {"role": "tool", "content": "r"}]},
        "message 2 is of a tool, and no tool call stands before",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call of message 1 has no name; "),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
        "arguments of 'f' in message 1 must be JSON, or a text of it",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]},
        "arguments of 'f' in message 1 must be an object, this is a list",
    ),
    ({"messages": ASKED, "tools": [{"type": "function"}]}, "tool 1 has no name; expected "),
    ({"messages": ASKED, "tools": "{"}, "tools must be JSON, or a text of it"),
    ({"messages": [{"role": "assistant", "content": "a", "reasoning": "r"}]}, "message 1 has reasoning; only role, "),
]


@pytest.mark.parametrize(("row", "reason"), DEFECTS)
def test_a_wrong_shape_is_a_reject_that_says_what_is_wrong_where(row, reason):
    found = one(row)
    assert isinstance(found, Reject) and found.name == "example 0"
    assert found.reason.startswith(reason), found.reason


def test_tool_calls_are_kept_in_one_form_whether_they_come_as_objects_or_as_json_text():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    turns = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]},
             {"role": "tool", "tool_call_id": "c1", "content": "rain"}]  # fmt: skip
    plain = one({"messages": turns, "tools": tools})
    text = {**CALL, "function": {"name": "weather", "arguments": json.dumps({"city": "Köln"})}}
    turns[1] = {"role": "assistant", "content": "", "tool_calls": [text]}
    as_text = one({"messages": turns, "tools": json.dumps(tools)})
    assert isinstance(plain, Example) and isinstance(as_text, Example)
    assert plain.id == as_text.id and plain.messages == as_text.messages
    called = json.loads(plain.messages[1].more)["tool_calls"]
    assert called == [{"id": "c1", "type": "function", "function": CALL["function"]}]
    assert {"Köln", "city", "weather"} <= set(plain.structured)
    without = one({"messages": [*ASKED, {"role": "assistant", "content": "x"}]})
    assert isinstance(without, Example) and without.messages[1] == Message("assistant", "x")
