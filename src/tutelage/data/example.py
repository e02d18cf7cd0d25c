"""One document as a source yields it, before it is tokenised; and what is wrong with a row that cannot be one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: str = ""  # JSON of its other fields: the tool calls of an answer, which call a tool answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One document: a text, or a prompt with its answer, or messages, or token ids with the mask of trained ones."""

    source: str
    name: str  # where it stands, for people: file and line, or the documented object
    text: str = ""
    prompt: str = ""
    answer: str = ""
    messages: tuple[Message, ...] = ()
    tools: str = ""  # JSON of the list of tools that the conversation may call
    token_ids: tuple[int, ...] = ()
    loss_mask: tuple[bool, ...] = ()
    group: str = ""  # what several examples share, such as a prompt: the held-out split keeps them on one side
    is_text: bool = False  # prompt and answer are one running text: no chat template is put around them
    is_cut: bool = False  # the answer was cut: its end is not learned as an end

    @property
    def id(self) -> str:
        """SHA-256 of the content (not of its name or source), in hex."""
        turns = [[m.role, m.content, *([m.more] if m.more else [])] for m in self.messages]
        content: list[object] = [self.text, self.prompt, self.answer, turns, self.token_ids, self.loss_mask]
        content += [self.tools] if self.tools else []
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def contents(self) -> tuple[str, ...]:
        """Every string that users wrote, in order."""
        strings = (self.text, self.prompt, self.answer, *(m.content for m in self.messages), *self.structured)
        return tuple(s for s in strings if s)

    @property
    def structured(self) -> tuple[str, ...]:
        """The strings in tool calls and tools, names of fields too: a template decides how they are written."""
        parts = (self.tools, *(m.more for m in self.messages))
        return tuple(s for part in parts if part for s in _strings_in(json.loads(part)))

    @property
    def document(self) -> bytes:
        """32 bytes that are equal for documents which differ in nothing but white space and case, or share a group.

        The held-out split goes by it, so that a copy of a document is on the same side as the document.
        """
        if self.group:
            return hashlib.sha256(b"group" + self.group.encode()).digest()
        if self.token_ids:
            return hashlib.sha256(b"ids" + json.dumps(self.token_ids).encode()).digest()
        words = " ".join(" ".join(self.contents).split()).casefold()
        return hashlib.sha256(b"text" + words.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that cannot be trained on, and why; a line of reject.jsonl."""

    source: str
    name: str
    reason: str


class RowDefectError(ValueError):
    """Why one row is no example; always caught and counted as a Reject."""


def _strings_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else ():
        yield from _strings_in(inner)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _strings_in(inner)
