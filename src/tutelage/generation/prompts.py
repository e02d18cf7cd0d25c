"""From the sources of a recipe to what is asked: conversations up to their last question, or beginnings of texts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.data import sources
from tutelage.data.example import Example, Reject
from tutelage.data.sources import SourceSpec
from tutelage.errors import ConfigError
from tutelage.generation.request import Prompt
from tutelage.recipe import Generate, Source

Beginning = Callable[[str], str]  # a text -> its first tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How rows become prompts."""

    system: str | None
    interface: str
    beginning: Beginning  # of plain texts


def is_plain_text(source: Source) -> bool:
    """Whether its documents are continued, not answered."""
    return source.jsonl is None or (source.columns is not None and source.columns.text is not None)


def read_prompts(generate: Generate, asking: Asking) -> Iterator[Prompt | Reject]:
    """The prompts of all sources in the order of the recipe and the files."""
    for source in generate.prompts:
        plain = is_plain_text(source)
        for item in sources.read(_spec(source)):
            prompt = item if isinstance(item, Reject) else _prompt(item, asking, plain=plain)
            yield replace(prompt, teacher=source.teacher) if isinstance(prompt, Prompt) and source.teacher else prompt


def _spec(source: Source) -> SourceSpec:
    columns = source.columns.model_dump() if source.columns is not None else {}
    named = {name: str(value) for name, value in columns.items() if value is not None}
    if list(named) == ["prompt"]:
        named = {"text": named["prompt"]}  # a row without an answer is read as a text
    kind = next(name for name in ("text", "jsonl", "python_docs", "python_source") if getattr(source, name))
    patterns = source.text or source.jsonl or ()
    return SourceSpec(
        kind=kind,
        patterns=patterns,
        columns=named,
        separator=source.separator or "",
        limit=source.limit,
        name=source.name or (Path(patterns[0]).name if patterns else kind),  # rows must not tell of this machine
    )


def _prompt(example: Example, asking: Asking, *, plain: bool) -> Prompt | Reject:
    if plain:
        start = asking.beginning(example.text)
        if asking.interface == "chat":
            return Prompt(messages=_with_system((("user", start),), asking), source=example.source, name=example.name)
        return Prompt(text=start, source=example.source, name=example.name)
    if example.messages:
        turns = [(m.role, m.content) for m in example.messages]
        reference = turns.pop()[1] if turns[-1][0] == "assistant" else ""
        if not turns or turns[-1][0] != "user":
            return Reject(
                reason="no question: the last turn before the answer is not the user's",
                source=example.source,
                name=example.name,
            )
    else:
        turns, reference = [("user", example.prompt or example.text)], example.answer
        if asking.interface == "completions":
            return Prompt(text=turns[0][1], reference=reference, source=example.source, name=example.name)
    if asking.interface == "completions":
        raise ConfigError(
            "CONFIG", "generate.interface: completions has no conversations; use chat, or prompts of plain text"
        )
    if asking.system is not None and turns[0][0] == "system":
        return Reject(
            reason="has a system prompt of its own beside generate.system", source=example.source, name=example.name
        )
    return Prompt(
        messages=_with_system(tuple(turns), asking), reference=reference, source=example.source, name=example.name
    )


def _with_system(turns: tuple[tuple[str, str], ...], asking: Asking) -> tuple[tuple[str, str], ...]:
    return (("system", asking.system), *turns) if asking.system is not None else turns
