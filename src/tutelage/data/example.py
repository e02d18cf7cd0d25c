"""One document as a source yields it, before it is tokenised; and what is wrong with a row that cannot be one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLUMNS = ("text", "prompt", "answer", "messages", "token_ids", "loss_mask")
N_NAMED_COLUMNS = 12  # of a row that lacks one: enough to see the mistake, short enough for one line


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One document: a text, or a prompt with its answer, or messages, or token ids with the mask of trained ones."""

    source: str
    name: str  # where it stands, for people: file and line, or the documented object
    text: str = ""
    prompt: str = ""
    answer: str = ""
    messages: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] = ()
    loss_mask: tuple[bool, ...] = ()
    group: str = ""  # what several examples share, such as a prompt: the held-out split keeps them on one side
    is_text: bool = False  # prompt and answer are one running text: no chat template is put around them
    is_cut: bool = False  # the answer was cut: its end is not learned as an end

    @property
    def id(self) -> str:
        """SHA-256 of the content (not of its name or source), in hex."""
        turns = [[m.role, m.content] for m in self.messages]
        content = [self.text, self.prompt, self.answer, turns, self.token_ids, self.loss_mask]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def contents(self) -> tuple[str, ...]:
        """Every string that users wrote, in order."""
        strings = (self.text, self.prompt, self.answer, *(m.content for m in self.messages))
        return tuple(s for s in strings if s)

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


def example_of_row(row: object, columns: Mapping[str, str], *, source: str, name: str) -> Example:
    """The example in one row of JSON (or a plain string); RowDefectError when it is none.

    `columns` maps text, prompt, answer, messages, token_ids and loss_mask to the names that the rows use.  Empty:
    the row's own keys decide, in the order messages, prompt with answer, token_ids, text.
    """
    if isinstance(row, str):
        return Example(source=source, name=name, text=_text(row, "text"))
    if not isinstance(row, Mapping):
        raise RowDefectError(f"a row must be an object, this is {_kind(row)}")
    named = dict(columns) or _columns_found(row)
    values = {field: _value(row, column) for field, column in named.items()}
    if "messages" in values:
        return Example(source=source, name=name, messages=_messages(values["messages"]))
    if "answer" in values or "prompt" in values:
        prompt = _text(values.get("prompt", ""), named.get("prompt", "prompt"), may_be_empty=True)
        return Example(source=source, name=name, prompt=prompt, answer=_text(values.get("answer", ""), "answer"))
    if "token_ids" in values:
        token_ids = _token_ids(values["token_ids"])
        mask = _mask(values["loss_mask"], len(token_ids)) if "loss_mask" in values else (True,) * len(token_ids)
        return Example(source=source, name=name, token_ids=token_ids, loss_mask=mask)
    return Example(source=source, name=name, text=_text(values["text"], named["text"]))


def _columns_found(row: Mapping[str, object]) -> dict[str, str]:
    """The columns that a row shows by their usual names."""
    for wanted in (("messages",), ("prompt", "answer"), ("token_ids", "loss_mask"), ("token_ids",), ("text",)):
        if all(column in row for column in wanted):
            return {column: column for column in wanted}
    raise RowDefectError(f"no column text, messages, or prompt and answer; found: {_found(row)}")


def _value(row: Mapping[str, object], column: str) -> object:
    if column not in row:
        raise RowDefectError(f"no column '{column}'; found: {_found(row)}")
    return row[column]


def _found(row: Mapping[str, object]) -> str:
    names = [str(name) for name in row]
    shown = ", ".join(name[:40] for name in names[:N_NAMED_COLUMNS]) or "none"
    return shown + (", …" if len(names) > N_NAMED_COLUMNS else "")


def _text(value: object, column: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RowDefectError(f"{column} must be a string, this is {_kind(value)}")
    if not may_be_empty and not value.strip():
        raise RowDefectError(f"empty {column}")
    return sound(value, column)


def sound(text: str, column: str) -> str:
    """The text; RowDefectError where no tokenizer and no file could take it."""
    if "\x00" in text:
        raise RowDefectError(f"NUL character in {column}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowDefectError(f"lone surrogate in {column}") from None
    return text


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowDefectError(f"messages must be a list of turns, this is {_kind(value)}")
    return tuple(_message(turn, number) for number, turn in enumerate(value, start=1))


def _message(turn: object, number: int) -> Message:
    if isinstance(turn, Message):
        turn = {"role": turn.role, "content": turn.content}
    if not isinstance(turn, Mapping):
        raise RowDefectError(f"message {number} must be an object, this is {_kind(turn)}")
    role = _text(_value(turn, "role"), f"role of message {number}")
    extra = sorted(str(key) for key, value in turn.items() if key not in ("role", "content") and value is not None)
    if extra:  # dropping tool calls or reasoning would train on another conversation than the user's
        raise RowDefectError(f"message {number} has {', '.join(extra)}; only role and content are supported")
    content = _text(_value(turn, "content"), f"content of message {number}", may_be_empty=role != "assistant")
    return Message(role, content)


def _token_ids(value: object) -> tuple[int, ...]:
    items = _items(value, "token_ids")
    if not all(type(item) is int and item >= 0 for item in items):
        raise RowDefectError("token_ids must be whole numbers from 0")
    if len(items) < 2:
        raise RowDefectError("fewer than 2 token_ids")
    return tuple(item for item in items if isinstance(item, int))


def _mask(value: object, length: int) -> tuple[bool, ...]:
    items = _items(value, "loss_mask")
    if len(items) != length:
        raise RowDefectError(f"loss_mask has {len(items)} entries, token_ids {length}")
    if not all(type(item) in (bool, int) and item in (0, 1) for item in items):
        raise RowDefectError("loss_mask must be true and false, or 1 and 0")
    return tuple(bool(item) for item in items)


def _items(value: object, column: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowDefectError(f"{column} must be a list, this is {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """A JSON word for a value's type, for messages that must not show the value."""
    if value is None:
        return "null"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), f"a {type(value).__name__}")
