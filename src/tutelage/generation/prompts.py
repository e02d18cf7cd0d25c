"""From the sources of a recipe to what is asked: conversations up to their last question, or beginnings of texts."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.data import files, sources
from tutelage.data.example import Example, Reject, RowDefectError
from tutelage.data.row import example_of_row
from tutelage.data.sources import SourceSpec
from tutelage.errors import ConfigError
from tutelage.generation.request import Prompt
from tutelage.generation.templates import Lacking, LacksColumnError, rendered, text_in
from tutelage.recipe import Generate, PromptSource, Source
from tutelage.recipe.column_text import ColumnText, parse

Beginning = Callable[[str], str]  # a text -> its first tokens
Pieces = Callable[[str], list[str]]  # a text -> all of it, in pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How rows become prompts."""

    system: str | None  # may name columns, until it is rendered for a row
    interface: str
    beginning: Beginning  # of plain texts
    pieces: Pieces | None = None  # of plain texts that are given whole, to be scored


def is_plain_text(source: Source) -> bool:
    """Whether its documents are continued, not answered."""
    return not source.has_columns or (source.columns is not None and source.columns.text is not None)


def read_prompts(generate: Generate, asking: Asking) -> Iterator[Prompt | Reject]:
    """The prompts of all sources in the order of the recipe and the files."""
    system = parse(asking.system) if asking.system is not None else None
    fixed = replace(asking, system=rendered(system, {})) if system is not None and not system.columns else asking
    for number, source in enumerate(generate.prompts):
        by_columns = source.template is not None or (system is not None and system.columns)
        found = _of_rows(source, fixed, system=system, number=number) if by_columns else _of_examples(source, fixed)
        for item in found:
            yield replace(item, teacher=source.teacher) if isinstance(item, Prompt) and source.teacher else item


def _of_examples(source: PromptSource, asking: Asking) -> Iterator[Prompt | Reject]:
    plain = is_plain_text(source)
    for item in sources.read(_spec(source)):
        if isinstance(item, Reject):
            yield item
        elif asking.pieces is not None:
            yield from (Prompt(text=piece, source=item.source, name=item.name) for piece in asking.pieces(item.text))
        else:
            yield _prompt(item, asking, plain=plain)


def _of_rows(
    source: PromptSource, asking: Asking, *, system: ColumnText | None, number: int
) -> Iterator[Prompt | Reject]:
    """The prompts of a source of JSON lines whose columns stand in the template or the system prompt."""
    spec = _spec(source)
    if not source.has_columns:
        found = f"generate.system names {{{system.columns[0]}}}" if system is not None else "template is given"
        raise ConfigError("CONFIG", f"{found}, and generate.prompts[{number}] has no columns; use jsonl for it")
    rows = sources.read_all_columns(spec)
    lacking = Lacking()
    for row in itertools.islice(rows, spec.limit):
        if isinstance(row, Reject):
            yield lacking.seen(row)
            continue
        try:
            yield lacking.seen(_of_row(row, spec, asking, source=source, system=system))
        except RowDefectError as defect:
            reject = Reject(source=spec.label, name=row.name, reason=str(defect))
            yield lacking.seen(reject, lacks=isinstance(defect, LacksColumnError))
    lacking.require(number)


def _of_row(
    row: files.Row, spec: SourceSpec, asking: Asking, *, source: PromptSource, system: ColumnText | None
) -> Prompt | Reject:
    if not isinstance(row.content, Mapping):
        raise RowDefectError("a row must be an object")
    if system is not None:
        asking = replace(asking, system=rendered(system, row.content))
    if source.template is None:
        example = example_of_row(row.content, spec.columns, source=spec.label, name=row.name)
        return _prompt(example, asking, plain=is_plain_text(source))
    prompt, answer = rendered(parse(source.template), row.content), spec.columns.get("answer")
    reference = text_in(row.content, answer) if answer is not None else ""
    example = Example(source=spec.label, name=row.name, prompt=prompt, answer=reference)
    return _prompt(example, asking, plain=False)


def _spec(source: Source) -> SourceSpec:
    columns = source.columns.model_dump() if source.columns is not None else {}
    named = {name: str(value) for name, value in columns.items() if value is not None}
    if list(named) == ["prompt"]:
        named = {"text": named["prompt"]}  # a row without an answer is read as a text
    kind = next(
        name for name in ("text", "jsonl", "parquet", "hub", "python_docs", "python_source") if getattr(source, name)
    )
    patterns = source.text or source.jsonl or source.parquet or ((source.hub,) if source.hub else ())
    return SourceSpec(
        kind=kind,
        patterns=patterns,
        columns=named,
        separator=source.separator or "",
        limit=source.limit,
        subset=source.subset,
        split=source.split or "train",
        revision=source.revision,
        name=source.name or (Path(patterns[0]).name if patterns else kind),  # rows must not tell of this machine
    )


def _prompt(example: Example, asking: Asking, *, plain: bool) -> Prompt | Reject:
    if plain:
        start = asking.beginning(example.text)
        if asking.interface == "chat":
            return Prompt(messages=_with_system((("user", start),), asking), source=example.source, name=example.name)
        return Prompt(text=start, source=example.source, name=example.name)
    if example.structured:
        return Reject(reason="tool calls are not asked for", source=example.source, name=example.name)
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
