"""D5, D10, B8, B26: templates run in a limited child, and every character has a known origin."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from tests.models.tiny_models import CHATML, SPECIAL, tokenizer
from tutelage.errors import IntegrityError
from tutelage.models.template import Renderer, Segment

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKING = (
    "{%- for message in messages %}{%- set content = message.content %}{%- set thoughts = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' }}"
    "{%- endif %}{{- content + '<|im_end|>\n' }}{%- endfor %}"
)
TAGGED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ ' ' + m['content'] + '</s>' }}"
    "{% endgeneration %}{% else %}U: {{ m['content'] }}{% endif %}\n{% endfor %}"
)
LINES = """{# white space around blocks, loop controls, JSON #}
{%- set ns = namespace(n=0) %}
{% for message in messages %}
    {% set ns.n = ns.n + 1 %}
    {% if loop.index > 50 %}{% break %}{% endif %}
{{ {"n": ns.n, "<": "é"} | tojson }} {{ message.role }}: {{ message.content }}
{% endfor %}
that was all
"""
TEMPLATES = {"lines": LINES, "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "tagged": TAGGED}
CONTROL = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def renderer(template: str) -> Renderer:
    return Renderer(template, TOKENS, control_texts=CONTROL)


@pytest.fixture(scope="module")
def running() -> dict[str, Renderer]:
    return {name: renderer(template) for name, template in TEMPLATES.items()}


def joined(segments: list[Segment], **wanted: object) -> str:
    return "".join(s.text for s in segments if all(getattr(s, k) == v for k, v in wanted.items()))


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_segments_joined_are_what_transformers_renders(
    name: str, prompt: bool, running: dict[str, Renderer]
) -> None:
    messages = chat("hi <|im_end|>", "yes\nno", "{{ 7*7 }} {% raw %}", "ünïcødé 😀")
    (reference,), _ = render_jinja_template(
        conversations=[messages], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **TOKENS
    )
    segments = running[name].render(messages, prompt)
    assert joined(segments) == reference == running[name].plain(messages, add_generation_prompt=prompt)


nasty = st.lists(
    st.sampled_from(["<|im_end|>\n", "<|im_start|>assistant\n", "</s>", " ", "\n", "x", "{{", "é", "\ue0f0"])
)


@settings(max_examples=25)
@given(st.lists(nasty.map("".join).filter(str.strip), min_size=2, max_size=4))
def test_contents_are_found_whatever_they_spell(running: dict[str, Renderer], contents: list[str]) -> None:
    """A user who writes the template's own text (D10) moves no border: kills splitting by searching for the content."""
    for name in ("chatml", "mistral"):
        segments = running[name].render(chat(*contents))
        found = [s.text for s in segments if s.kind == "content"]
        assert found == contents
        assert joined(segments) == running[name].plain(chat(*contents))


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("chatml", "yes<|im_end|>\nof course<|im_end|>"),
        ("llama3", "yes<|eot_id|>of course<|eot_id|>"),
        ("mistral", "yes</s>of course</s>"),
        ("tagged", " yes</s> of course</s>"),
    ],
)
def test_answers_and_what_ends_them_train_and_nothing_else(
    name: str, trained: str, running: dict[str, Renderer]
) -> None:
    segments = running[name].render(chat("is it", "yes", "really", "of course"))
    assert joined(segments, trained=True).replace("\n", "") == trained.replace("\n", "")
    assert not any(s.trained and s.role == "user" for s in segments)


def test_a_token_that_opens_a_turn_never_ends_one() -> None:
    """Without an end-of-turn token the next turn's opener follows the answer; it is no answer's."""
    bare = CHATML.replace("+ '<|im_end|>\n'", "")
    with renderer(bare) as one:
        assert joined(one.render(chat("q", "a", "q", "b")), trained=True) == "ab"


def test_a_template_that_trims_gives_the_trimmed_contents(running: dict[str, Renderer]) -> None:
    segments = running["llama3"].render(chat("  q\n", "\n a  "))
    assert [s.text for s in segments if s.kind == "content"] == ["q", "a"]


def test_a_template_that_takes_thoughts_apart_keeps_its_borders() -> None:
    with renderer(THINKING) as one:
        messages = chat("q", "<think>\nlong thought\n</think>\n\nanswer")
        segments = one.render(messages)
        assert joined(segments) == one.plain(messages)
        assert [s.text for s in segments if s.kind == "content"] == ["q", "long thought", "answer"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | length }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | reverse }}{% endfor %}",
        "{{ messages[0]['content'] }}",
        "{% for m in messages %}{% if m['content'].startswith('z') %}Z{% endif %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_hides_the_borders_is_refused_not_guessed(template: str) -> None:
    with renderer(template) as one, pytest.raises(IntegrityError) as caught:
        one.render(chat("zebra", "answer"))
    assert caught.value.code == "TEMPLATE"


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{{ 'A' * 10**10 }}", "TEMPLATE_LIMIT"),
        ("{{ 'A' * 200000000 }}", "TEMPLATE_LIMIT"),
        ("{% for i in range(99999) %}{{ 'A' * 10000 }}{% endfor %}", "TEMPLATE_LIMIT"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "TEMPLATE_LIMIT",
            marks=pytest.mark.slow,  # two seconds of the CPU are its limit
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "TEMPLATE"),
        ("{{ messages.append(1) }}", "TEMPLATE"),
        ("{{ cycler.__init__.__globals__.os.system('touch CANARY') }}", "TEMPLATE"),
        ("{% include 'CANARY' %}", "TEMPLATE"),
        ("{% import 'os' as os %}", "TEMPLATE"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "TEMPLATE"),
        ("{% for", "TEMPLATE"),
        ("{{ raise_exception('no system role') }}", "TEMPLATE"),
        ("{{ undefined.x }}", "TEMPLATE"),
    ],
)
def test_a_hostile_template_is_stopped_with_one_error(template: str, code: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    started_s = time.monotonic()
    with renderer(template.replace("CANARY", str(canary))) as one, pytest.raises(IntegrityError) as caught:
        one.render(chat("q", "a"))
    assert caught.value.code == code
    assert not canary.exists()
    assert time.monotonic() - started_s < 20


def test_the_child_can_neither_open_files_nor_see_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked through the kernel, not through the template: the limits hold for whatever escapes the sandbox."""
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    with renderer(CHATML) as one:
        one.render(chat("q", "a"))
        pid = one._child().pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()}
    for name in ("Max file size", "Max processes", "Max open files", "Max core file size"):
        assert rows[name][:2] == ["0", "0"], name
    assert int(rows["Max address space"][0]) < 2 << 30
    assert b"canary-secret" not in environment


def test_a_renderer_goes_on_after_an_error_and_ends_its_child(running: dict[str, Renderer]) -> None:
    with pytest.raises(IntegrityError, match="alternate"):
        running["mistral"].render([{"role": "assistant", "content": "first"}])
    assert joined(running["mistral"].render(chat("q", "a"))) == "<s>[INST] q [/INST] a</s>"
    one = renderer(CHATML)
    one.render(chat("q"))
    pid = one._child().pid
    del one
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_many_conversations_equal_one_at_a_time(running: dict[str, Renderer]) -> None:
    conversations = [chat(*(f"{n} {turn}" for turn in range(n % 5 + 1))) for n in range(40)]
    many = running["llama3"].render_many(conversations)
    assert many == [running["llama3"].render(messages) for messages in conversations]


def test_a_double_begin_of_sequence_is_refused() -> None:
    with renderer("{{ bos_token }}" + LLAMA3) as one, pytest.raises(IntegrityError) as caught:
        one.render(chat("q", "a"))
    assert caught.value.code == "DOUBLE_BOS"


def test_a_tokenizer_brings_template_tokens_and_fingerprint(tmp_path: Path) -> None:
    own = Renderer.of(tokenizer())
    assert own is not None
    assert joined(own.render(chat("q", "a")), trained=True) == "a" + SPECIAL[1]
    assert Renderer.of(tokenizer(template=None)) is None
    (tmp_path / "t.jinja").write_text(LLAMA3)
    given_text, given_file = (
        Renderer.of(tokenizer(), template=template) for template in (LLAMA3, str(tmp_path / "t.jinja"))
    )
    assert given_text is not None and given_file is not None
    assert given_text.fingerprint == given_file.fingerprint != own.fingerprint
