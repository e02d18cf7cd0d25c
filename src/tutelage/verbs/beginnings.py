"""What a teacher that writes is given to go on from: the training documents of a recipe, none that is held out."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage import io
from tutelage.data import sources as data_sources
from tutelage.data import split as splits
from tutelage.data.example import Example
from tutelage.planning.work import Beginnings
from tutelage.recipe import Recipe
from tutelage.training.corpus import source_spec

_TEXTS, _CHATS = "texts.jsonl", "chats.jsonl"


def write_beginnings(recipe: Recipe, folder: Path) -> tuple[Beginnings, ...]:
    """The training documents as files below `folder`, in an order that follows from their content alone.

    Of a document that differs from a held-out one in white space or case alone, none comes; nor do token ids.
    """
    ordered = sorted(_training(recipe), key=lambda e: hashlib.sha256(b"beginning" + e.document).digest())
    texts = [{"text": e.text or e.prompt + e.answer} for e in ordered if not _is_chat(e)]
    chats = [{"messages": _turns(e)} for e in ordered if _is_chat(e)]
    found = []
    io.make_directory(folder)
    for name, rows, column in ((_TEXTS, texts, "text"), (_CHATS, chats, "messages")):
        if rows:
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path = folder / name
            if not path.is_file() or path.read_text(encoding="utf-8") != content:
                io.write_text(path, content)
            source = {"jsonl": [str(path.absolute())], "columns": {column: column}}
            found.append(Beginnings(source=source, documents=len(rows)))
    return tuple(found)


def _training(recipe: Recipe) -> Iterator[Example]:
    """The documents of the recipe's sources that are not held out, each once."""
    held_out = recipe.data.held_out
    share = held_out.share if held_out is not None and held_out.sources is None else None
    own = {e.document for e in _examples(held_out.sources)} if held_out is not None and held_out.sources else set()
    seen: set[bytes] = set()
    for example in _examples(recipe.data.sources):
        document = example.document
        if document in seen or document in own or (share is not None and splits.is_held_out(document, share)):
            continue
        seen.add(document)
        yield example


def _examples(sources: Any) -> Iterator[Example]:
    for source in sources:
        for item in data_sources.read(source_spec(source)):
            if isinstance(item, Example) and not item.token_ids and not item.structured:  # nobody answers tool calls
                yield item


def _is_chat(example: Example) -> bool:
    return bool(example.messages or (example.prompt and not example.is_text))


def _turns(example: Example) -> list[dict[str, str]]:
    if example.messages:
        return [{"role": m.role, "content": m.content} for m in example.messages]
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
