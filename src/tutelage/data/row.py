"""What one row of a source is: the example in it, or why it is none."""

from collections.abc import Mapping

from tutelage.data import conversation
from tutelage.data.example import Example, RowDefectError
from tutelage.data.values import found_in, items_of, kind_of, text_of, value_of

COLUMNS = (
    "text", "prompt", "answer", "messages", "conversations", "chosen", "tools", "token_ids", "loss_mask",
)  # fmt: skip
_USUAL = (
    ("messages", "tools"), ("messages",), ("conversations",), ("prompt", "chosen"), ("prompt", "answer"),
    ("token_ids", "loss_mask"), ("token_ids",), ("text",),
)  # fmt: skip


def example_of_row(row: object, columns: Mapping[str, str], *, source: str, name: str) -> Example:
    """The example in one row of JSON (or a plain string); RowDefectError when it is none.

    `columns` maps the names of COLUMNS to those that the rows use.  Empty: the row's own keys decide, in the order
    messages (with tools), conversations, prompt with chosen, prompt with answer, token_ids, text.
    """
    if isinstance(row, str):
        return Example(source=source, name=name, text=text_of(row, "text"))
    if not isinstance(row, Mapping):
        raise RowDefectError(f"a row must be an object, this is {kind_of(row)}")
    named = dict(columns) or _columns_found(row)
    values = {field: value_of(row, column) for field, column in named.items()}
    tools = conversation.tools_of(values.get("tools"))
    if "messages" in values:
        messages = conversation.messages_of(values["messages"])
        return Example(source=source, name=name, messages=messages, tools=tools)
    if "conversations" in values:
        return Example(
            source=source, name=name, messages=conversation.of_sharegpt(values["conversations"]), tools=tools
        )
    if "chosen" in values:
        return _preferred(values, source=source, name=name)
    if "answer" in values or "prompt" in values:
        prompt = text_of(values.get("prompt", ""), named.get("prompt", "prompt"), may_be_empty=True)
        return Example(source=source, name=name, prompt=prompt, answer=text_of(values.get("answer", ""), "answer"))
    if "token_ids" in values:
        token_ids = _token_ids(values["token_ids"])
        mask = _mask(values["loss_mask"], len(token_ids)) if "loss_mask" in values else (True,) * len(token_ids)
        return Example(source=source, name=name, token_ids=token_ids, loss_mask=mask)
    return Example(source=source, name=name, text=text_of(values["text"], named["text"]))


def _preferred(values: Mapping[str, object], *, source: str, name: str) -> Example:
    """The chosen answer to a prompt; what was rejected is not read."""
    asked, chosen = values.get("prompt"), values["chosen"]
    if isinstance(asked, str) and isinstance(chosen, str):
        return Example(source=source, name=name, prompt=text_of(asked, "prompt"), answer=text_of(chosen, "chosen"))
    return Example(source=source, name=name, messages=conversation.preferred(asked, chosen))


def _columns_found(row: Mapping[str, object]) -> dict[str, str]:
    """The columns that a row shows by their usual names."""
    for wanted in _USUAL:
        if all(column in row for column in wanted):
            return {column: column for column in wanted}
    raise RowDefectError(f"no column text, messages, or prompt and answer; found: {found_in(row)}")


def _token_ids(value: object) -> tuple[int, ...]:
    items = items_of(value, "token_ids")
    if not all(type(item) is int and item >= 0 for item in items):
        raise RowDefectError("token_ids must be whole numbers from 0")
    if len(items) < 2:
        raise RowDefectError("fewer than 2 token_ids")
    return tuple(item for item in items if isinstance(item, int))


def _mask(value: object, length: int) -> tuple[bool, ...]:
    items = items_of(value, "loss_mask")
    if len(items) != length:
        raise RowDefectError(f"loss_mask has {len(items)} entries, token_ids {length}")
    if not all(type(item) in (bool, int) and item in (0, 1) for item in items):
        raise RowDefectError("loss_mask must be true and false, or 1 and 0")
    return tuple(bool(item) for item in items)
