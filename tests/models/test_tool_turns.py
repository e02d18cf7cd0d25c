"""Tool calls in a chat: an assistant's characters train, and a template that drops them is refused."""

from dataclasses import replace

import pytest

from tests.models.test_template import TAGGED, renderer
from tests.models.tiny_models import CHATML
from tutelage.errors import IntegrityError
from tutelage.models.segments import Segment

QWEN = """{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' }}
{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'assistant' and message.tool_calls %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
    {%- for call in message.tool_calls %}{%- set call = call.function %}
      {{- '\n<tool_call>\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}
      {{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
  {%- elif message.role == 'tool' %}
    {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
    {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
    {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\n' }}{%- endif %}
  {%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}]


def call(city: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


MESSAGES = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [call("Köln"), call("Bonn")]},
    {"role": "tool", "content": "yes"},
    {"role": "tool", "content": "no"},
    {"role": "assistant", "content": "", "tool_calls": [call("Aachen")]},
    {"role": "tool", "content": "snow"},
    {"role": "assistant", "content": "Rain in Köln."},
    {"role": "user", "content": "Thanks"},
]


def trained(segments: list[Segment]) -> list[str]:
    runs: list[Segment] = []
    for segment in segments:
        if runs and runs[-1].trained == segment.trained:
            runs[-1] = replace(runs[-1], text=runs[-1].text + segment.text)
        else:
            runs.append(segment)
    return [run.text for run in runs if run.trained]


def written(city: str) -> str:
    return f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


def test_a_turn_that_calls_tools_is_trained_from_where_the_model_begins_to_the_token_that_ends_it():
    with renderer(QWEN) as chats:
        segments = chats.render_many([MESSAGES], tools=[TOOLS])[0]
        assert "".join(s.text for s in segments) == chats.plain(MESSAGES, tools=TOOLS)
    assert trained(segments) == [
        "I look.\n" + written("Köln") + "\n" + written("Bonn") + "<|im_end|>",
        written("Aachen") + "<|im_end|>",
        "Rain in Köln.<|im_end|>",
    ]
    assert [s.text for s in segments if s.kind == "content"] == [m["content"] for m in MESSAGES if m["content"]]


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<|im_start|>", "<|im_end|>\n<|im_start|>user\n"])
def test_a_content_that_spells_control_tokens_hides_no_call_behind_it(spelled):
    said = f"I look {spelled} now."
    messages = [MESSAGES[0], {**MESSAGES[1], "content": said}]
    with renderer(QWEN) as chats:
        segments = chats.render_many([messages], tools=[TOOLS])[0]
    assert trained(segments) == [f"{said}\n{written('Köln')}\n{written('Bonn')}<|im_end|>"]


def test_without_tools_nothing_is_rendered_or_trained_otherwise():
    plain = [m for m in MESSAGES if m["role"] == "user" or "Rain in" in str(m["content"])]
    with renderer(QWEN) as chats:
        assert chats.render_many([plain], tools=[[]]) == [chats.render(plain)]


@pytest.mark.parametrize(
    ("template", "messages", "tools", "message"),
    [
        (CHATML, MESSAGES[:2], [], "does not write tool calls ('weather' is lost)"),
        (CHATML, MESSAGES[:1], TOOLS, "does not write tools ('weather' is lost)"),
        (CHATML, [{"role": "user", "content": "the weather?"}, MESSAGES[1]], [], "does not write tool calls"),
        (QWEN.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant: '"), MESSAGES, TOOLS, "cannot be told"),
        (
            QWEN.replace("{{- '<|im_end|>\n' }}\n  {%- elif", "{{- '\n' }}\n  {%- elif"),
            MESSAGES,
            TOOLS,
            "cannot be told",
        ),
    ],
)
def test_a_template_that_drops_tools_or_hides_where_a_call_ends_is_refused(template, messages, tools, message):
    with renderer(template) as chats, pytest.raises(IntegrityError) as caught:
        chats.render_many([messages], tools=[tools])
    assert caught.value.code == "TEMPLATE" and message in caught.value.message


def test_tags_of_the_template_say_what_is_trained_of_a_call_too():
    tagged = TAGGED.replace(
        "m['content'] + '</s>'", "(m.tool_calls | tojson if m.tool_calls else m['content']) + '</s>'"
    )
    with renderer(tagged) as chats:
        segments = chats.render_many([[MESSAGES[0], MESSAGES[4]]], tools=[[]])[0]
    (text,) = trained(segments)
    assert text.startswith(' [{"type": "function"') and text.endswith("</s>")
