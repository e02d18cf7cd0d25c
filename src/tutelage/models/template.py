"""A chat template turns a conversation into text, and we must know which characters are whose.

Contents are encoded with special-token matching off, so that `<|im_end|>` inside a user's text stays text; and with
`train_on: answers` only the assistants' characters train.  Both need the borders between template and contents.  They
are found by rendering twice, once plain and once with unguessable marks around the contents: when the marked text
without its marks is the plain text, the marks are the borders.  A template that treats the marked contents differently
is refused, never guessed at.

Templates come with models and are hostile until proven otherwise: they run in a child process (see _template_child).
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from tutelage.errors import IntegrityError
from tutelage.models import tool_turns
from tutelage.models.segments import Segment

CPU_S, MEMORY_BYTES, MOST_CHARACTERS = 2.0, 64 << 20, 16_000_000
_ANSWER_S = 30.0  # by the clock: only a stopped or swapping machine gets there before the CPU limit
_ANSWER = "an answer"
_METHOD = 1  # rises when the same template would be cut into other segments
_BATCH = 16  # conversations a request: one limit for all of them, and few round trips
_CHILD = Path(__file__).with_name("_template_child.py")
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "TZ")
_THOUGHTS = re.compile(r"(\s*</?think(?:ing)?>\s*)")
Message: TypeAlias = Mapping[str, Any]  # role and content; other fields are the template's business
Wrap: TypeAlias = Literal["whole", "stripped", "between_thoughts"]


def template_hash(template: str) -> str:
    """SHA-256 of a chat template: what `doctor` shows and a run pins."""
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


class Renderer:
    """One template in one child process, for as many conversations as come; close it or use it in `with`.

    `special_tokens` are the variables a template may name (bos_token, eos_token, …); `control_texts` the spellings of
    every control token of the tokenizer: one that directly follows an answer ends the turn and is trained with it.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, str], *, control_texts: Iterable[str] = ()) -> None:
        self.template = template
        self._variables = dict(special_tokens)
        control = {text for text in (*special_tokens.values(), *control_texts) if text}
        self._ends_turn = re.compile(r"\s*(" + "|".join(map(re.escape, sorted(control, key=len)[::-1])) + ")")
        if not control:
            self._ends_turn = re.compile(r"(?!)")
        self.fingerprint = template_hash(
            json.dumps([_METHOD, template, sorted(self._variables.items()), sorted(control)])
        )
        self._key = secrets.token_hex(8)
        self._marks = re.compile(f"\ue0f0{self._key}([cgCG])(\\d*)\ue0f1")
        self._running: subprocess.Popen[bytes] | None = None
        self._openers: str | None = None
        self._buffer = b""

    @classmethod
    def of(cls, tokenizer: Any, *, template: str | None = None) -> "Renderer | None":
        """The renderer of a Hugging Face tokenizer's chat template, or of `template` (text or file) with its tokens.

        None when there is neither.  No process is started before the first conversation.
        """
        text = _text(template) if template is not None else chat_template(tokenizer)
        if text is None:
            return None
        named = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        decoder = tokenizer.added_tokens_decoder
        return cls(text, named, control_texts=[token.content for token in decoder.values() if token.special])

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[Segment]:
        """The conversation as segments whose texts, joined, are exactly what the template renders."""
        return self.render_many([messages], add_generation_prompt=add_generation_prompt)[0]

    def render_many(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[Any]] = (),
        add_generation_prompt: bool = False,
    ) -> list[list[Segment]]:
        """`render` of each, with its own `tools` where some are given; far fewer round trips than one call each."""
        rendered: list[list[Segment]] = []
        tools = tools or [[]] * len(conversations)
        for start in range(0, len(conversations), _BATCH):
            end = start + _BATCH
            rendered += self._render_batch(conversations[start:end], tools[start:end], add_generation_prompt)
        return rendered

    def plain(
        self, messages: Sequence[Message], *, tools: Sequence[Any] = (), add_generation_prompt: bool = False
    ) -> str:
        """What the template renders, as one text."""
        variables = self._request(messages, messages, tools, prompt=add_generation_prompt, generation=False)
        return self._ask({"render": [[variables]]})["texts"][0][0]  # type: ignore[no-any-return]  # JSON of our child

    def close(self) -> None:
        """End the child process; a later conversation would start another."""
        if self._running is not None:
            _end(self._running)
            self._running, self._buffer = None, b""

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- borders -----------------------------------------------------------------------------------------------------

    def _render_batch(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[Sequence[Any]], prompt: bool
    ) -> list[list[Segment]]:
        done: dict[int, list[Segment]] = {}
        wraps: tuple[Wrap, ...] = ("whole", "stripped", "between_thoughts")
        for wrap in wraps:
            open_ones = [index for index in range(len(conversations)) if index not in done]
            if not open_ones:
                break
            requests = []
            for index in open_ones:
                messages = conversations[index]
                marked = [self._marked(message, n, wrap) for n, message in enumerate(messages)]
                requests.append(
                    [
                        self._request(messages, messages, tools[index], prompt=prompt, generation=False),
                        self._request(marked, messages, tools[index], prompt=prompt, generation=True),
                    ]
                )
            texts = self._ask({"render": requests})["texts"]
            for index, (plain, marked_text) in zip(open_ones, texts, strict=True):
                self._refuse_double_bos(plain)
                segments = self._segments(plain, marked_text, conversations[index])
                if segments is not None:
                    done[index] = segments
        if len(done) < len(conversations):
            raise IntegrityError(
                "TEMPLATE",
                "the chat template changes the messages' contents in a way that hides where they begin and end; "
                "set data.chat_template to a plainer one, or data.sources to plain text",
            )
        return [self._with_tools(done[n], conversations[n], tools[n]) for n in range(len(conversations))]

    def _with_tools(self, segments: list[Segment], messages: Sequence[Message], tools: Sequence[Any]) -> list[Segment]:
        """The same with every tool call trained; IntegrityError[TEMPLATE] where the template leaves tools out."""
        calls = tool_turns.places_of_calls(messages)
        if not calls and not tools:
            return segments
        tool_turns.require_written(messages, tools, render=lambda some, named: self.plain(some, tools=named))
        if "endgeneration" in self.template:  # its own tags say what is trained
            return segments
        for n in calls:
            before = self.plain(messages[:n], tools=tools, add_generation_prompt=True)
            begin, end = tool_turns.span_of_turn(
                segments,
                before,
                number=n,
                end_of_turn=self._end_of_turn(),
                openers=self._ends_turn.findall(self._text_that_opens_an_answer()),
            )
            segments = [
                replace(segment, trained=True, role="assistant") if begin <= place < end else segment
                for place, segment in tool_turns.cut(segments, (begin, end))
            ]
        return segments

    def _end_of_turn(self) -> str:
        """The control token behind an answer, by rendering one; empty where there is none."""
        text = self.plain([{"role": "user", "content": "x"}, {"role": "assistant", "content": _ANSWER}])
        found = self._ends_turn.match(text.rpartition(_ANSWER)[2])
        return found[1] if found is not None else ""

    def _refuse_double_bos(self, text: str) -> None:
        bos = self._variables.get("bos_token", "")
        if bos and text.startswith(bos * 2):
            raise IntegrityError(
                "DOUBLE_BOS",
                f"the chat template renders {bos} twice at the start; set data.chat_template to one that doesn't",
            )

    def _request(
        self,
        messages: Sequence[Message],
        originals: Sequence[Message],
        tools: Sequence[Any],
        *,
        prompt: bool,
        generation: bool,
    ) -> dict[str, Any]:
        marks = {"generation_open": self._mark("g"), "generation_close": self._mark("G")} if generation else {}
        if any(self._key in json.dumps(it, ensure_ascii=False) for it in (*map(dict, originals), list(tools))):
            raise IntegrityError("TEMPLATE", "a message contains this process's secret marks; run again")
        fields = {"tools": list(tools) or None, "documents": None, "add_generation_prompt": prompt}
        return {**self._variables, **fields, **marks, "messages": [dict(message) for message in messages]}

    def _mark(self, letter: str, number: int | str = "") -> str:
        return f"\ue0f0{self._key}{letter}{number}\ue0f1"

    def _marked(self, message: Message, number: int, wrap: Wrap) -> Message:
        """The message with marks around its content: all of it, without its outer white space, or around thoughts."""
        content = message.get("content")
        if not isinstance(content, str) or not content:
            return message
        before, after = self._mark("c", number), self._mark("C", number)
        if wrap == "whole":
            return {**message, "content": before + content + after}
        if wrap == "stripped":
            return {**message, "content": before + content.strip() + after}
        parts = _THOUGHTS.split(content.strip())  # odd places: the tags with the white space around them
        inside = [part if not part or index % 2 else before + part + after for index, part in enumerate(parts)]
        return {**message, "content": "".join(inside)}

    def _segments(self, plain: str, marked: str, messages: Sequence[Message]) -> list[Segment] | None:
        """The segments of `marked`, or None when its marks are no faithful borders of `plain`."""
        if self._marks.sub("", marked) != plain:
            return None
        pieces: list[tuple[str, int | None, bool]] = []
        owner: int | None = None
        seen: set[int] = set()
        generated = tagged = False
        position = 0
        for mark in [*self._marks.finditer(marked), None]:
            text = marked[position : mark.start() if mark else len(marked)]
            if text:
                pieces.append((text, owner, generated))
            if mark is None:
                break
            letter, position = mark[1], mark.end()
            if letter in "gG":
                generated, tagged = letter == "g", True
            elif (letter == "c") == (owner is not None):
                return None  # a content inside a content: the marks were torn
            else:
                owner = int(mark[2]) if letter == "c" else None
                seen.add(int(mark[2]))
        wanted = {n for n, message in enumerate(messages) if str(message.get("content") or "").strip()}
        if owner is not None or wanted - seen:
            return None
        segments = [_segment(text, owner, messages, generated=on) for text, owner, on in pieces]
        return segments if tagged else self._with_turn_ends(segments)

    def _with_turn_ends(self, segments: list[Segment]) -> list[Segment]:
        """Without generation tags: answers train, and the control token right behind an answer, which ends the turn."""
        result: list[Segment] = []
        for segment in segments:
            if segment.kind == "content":
                result.append(replace(segment, trained=segment.role == "assistant"))
                continue
            end = self._ends_turn.match(segment.text) if result and result[-1].trained else None
            if end is None or end[1] in self._text_that_opens_an_answer():
                result.append(segment)
                continue
            result.append(replace(segment, text=segment.text[: end.end()], role="assistant", trained=True))
            if rest := segment.text[end.end() :]:
                result.append(replace(segment, text=rest))
        return result

    def _text_that_opens_an_answer(self) -> str:
        """What `add_generation_prompt` adds: control tokens in it open a turn and so never end one."""
        if self._openers is None:
            question = [{"role": "user", "content": "x"}]
            try:
                without, with_prompt = self.plain(question), self.plain(question, add_generation_prompt=True)
            except IntegrityError as error:
                if error.code == "TEMPLATE_LIMIT":
                    raise
                without = with_prompt = ""  # a template that refuses a single question has no prompt to learn from
            self._openers = with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""
        return self._openers

    # --- the child ---------------------------------------------------------------------------------------------------

    def _child(self) -> "subprocess.Popen[bytes]":
        """The running child, started and given the template when there is none."""
        if self._running is None:
            self._running = _start()
            weakref.finalize(self, _end, self._running)
            try:
                self._ask({"compile": self.template})
            except IntegrityError:
                self.close()
                raise
        return self._running

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        child = self._child()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        except OSError as error:
            raise _over_limit() from error
        reply = self._answer(child)
        if "limit" in reply:
            raise _over_limit()
        if "error" in reply:
            raise IntegrityError(
                "TEMPLATE", f"the chat template failed ({reply['error']}); check the messages, or data.chat_template"
            )
        return reply

    def _answer(self, child: "subprocess.Popen[bytes]") -> dict[str, Any]:
        assert child.stdout is not None
        deadline = time.monotonic() + _ANSWER_S
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer[-1 << 16 :]:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    child.kill()
                    raise _over_limit()
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:  # the kernel ended it
                    raise _over_limit()
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]  # our child writes objects


def _segment(text: str, owner: int | None, messages: Sequence[Message], *, generated: bool) -> Segment:
    if owner is None:
        return Segment(text=text, kind="template", trained=generated)
    return Segment(text=text, kind="content", role=str(messages[owner].get("role", "")), trained=generated)


def _over_limit() -> IntegrityError:
    return IntegrityError(
        "TEMPLATE_LIMIT",
        f"the chat template exceeded {CPU_S:g} s, {MEMORY_BYTES >> 20} MB or {MOST_CHARACTERS:,} characters; "
        "refuse this model, or set data.chat_template",
    )


def chat_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template; of several named ones the default."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return str(template) if template else None


def _text(template: str) -> str:
    """A template given as itself or as the path of a file."""
    if "{" in template or "\n" in template or not Path(template).is_file():
        return template
    return Path(template).read_text(encoding="utf-8")


def _start() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", str(_CHILD), str(CPU_S), str(MEMORY_BYTES), str(MOST_CHARACTERS)]
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kill and collect the child; its pipes may already be broken."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
