"""Where documents come from: what a recipe asks for, read as a stream of examples and rejects.

kind           reads                                                    columns
text           text files; a file is a document, or `separator` cuts    -
jsonl          a JSON object a line                                     those of `example_of_row`
parquet        a Parquet row                                            as jsonl
hub            a split of a data set on the hub                         as jsonl
examples       Python objects already in memory                         as jsonl
answers        the folder that `tutelage generate` wrote                -
python_docs    Python's own documentation                               -
python_source  the standard library's code                              -
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.data import answers, files, hub, places, standard_library
from tutelage.data.example import Example, Reject, RowDefectError
from tutelage.data.places import Place
from tutelage.data.row import COLUMNS, example_of_row
from tutelage.errors import ConfigError

READER_VERSION = 3  # raise it when the same input would be read as other documents: stores are then built anew
KINDS = ("text", "jsonl", "parquet", "hub", "examples", "answers", "python_docs", "python_source")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One source of documents; `weight` is how often each of its rows appears in an epoch, on average."""

    kind: str
    patterns: tuple[str, ...] = ()
    weight: float = 1.0
    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    limit: int | None = None  # the first documents only
    examples: Iterable[object] = ()  # strings, mappings or Examples; iterated more than once
    name: str = ""
    reasoning: bool = False  # of answers: with the teacher's reasoning
    subset: str | None = None  # of a data set on the hub; its name is the only pattern
    split: str = "train"
    revision: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(COLUMNS))
        if self.kind not in KINDS:
            raise ConfigError("CONFIG", f"data.sources: kind '{self.kind}' unknown; known: {', '.join(KINDS)}")
        if unknown:
            raise ConfigError("CONFIG", f"data.sources: columns {unknown} unknown; known: {', '.join(COLUMNS)}")
        if isinstance(self.examples, Iterator):
            raise ConfigError(
                "CONFIG", "data.sources: examples is an iterator, which is empty after one pass; pass a list"
            )

    @property
    def label(self) -> str:
        """The name under which results show this source."""
        parts = [self.kind, *self.patterns][:2]
        parts += [part for part in (self.subset, self.split) if part] if self.kind == "hub" else []
        return self.name or ":".join(parts)


def read(spec: SourceSpec) -> Iterator[Example | Reject]:
    """The documents of one source, in an order that only the content and the file names decide."""
    return itertools.islice(_read(spec), spec.limit)


def _read(spec: SourceSpec) -> Iterator[Example | Reject]:
    if spec.kind == "python_docs":
        yield from standard_library.read_docs(spec.label)
    elif spec.kind == "python_source":
        yield from standard_library.read_source(spec.label)
    elif spec.kind == "examples":
        yield from _in_memory(spec)
    elif spec.kind == "answers":
        for folder in spec.patterns:
            yield from answers.read_answers(Path(folder), source=spec.label, reasoning=spec.reasoning)
    else:
        yield from _in_files(spec)


def _in_files(spec: SourceSpec) -> Iterator[Example | Reject]:
    if spec.kind == "text":
        for path in input_files([spec]):
            yield from files.read_text(path, source=spec.label, separator=spec.separator)
        return
    for path in input_files([spec]):
        rows = _rows_in(path, spec, columns=tuple(spec.columns.values()))
        yield from files.examples_of(rows, spec.columns, source=spec.label)


def read_all_columns(spec: SourceSpec) -> Iterator[files.Row | Reject]:
    """The rows of a source that has columns, with all of them."""
    for path in input_files([spec]):
        yield from _rows_in(path, spec, columns=())


def _rows_in(path: Place, spec: SourceSpec, *, columns: Sequence[str]) -> Iterator[files.Row | Reject]:
    """The rows of one file; of Parquet only these columns, or all where none is named."""
    is_of_hub = spec.kind == "hub" and path.name.lower().endswith(files.PARQUET_ENDINGS)
    if spec.kind == "parquet" or is_of_hub:
        return files.read_parquet(path, columns=columns)
    return files.read_rows(path, source=spec.label)


def _in_memory(spec: SourceSpec) -> Iterator[Example | Reject]:
    for number, item in enumerate(spec.examples):
        name = f"example {number}"
        try:
            if isinstance(item, Example):
                yield item
            else:
                yield example_of_row(item, spec.columns, source=spec.label, name=name)
        except RowDefectError as defect:
            yield Reject(source=spec.label, name=name, reason=str(defect))


def content(spec: SourceSpec) -> dict[str, object]:
    """Everything that decides what `read` yields, by content: JSON for the key of a store."""
    if spec.kind == "examples":
        hashes = [_hash_of_item(item) for item in _in_memory(spec)]
    else:
        hashes = [places.version_of(place) for place in input_files([spec])]
    more = {"reasoning": spec.reasoning} if spec.kind == "answers" else {}
    return {
        **more,
        "reader": READER_VERSION,
        "kind": spec.kind,
        "name": spec.label,
        "columns": dict(sorted(spec.columns.items())),
        "separator": spec.separator,
        "limit": spec.limit,
        "sha256": hashes,
    }


def input_files(specs: Sequence[SourceSpec]) -> tuple[Place, ...]:
    """The files that the sources read."""
    paths: list[Place] = []
    for spec in specs:
        paths += _files_of(spec)
    return tuple(paths)


def _files_of(spec: SourceSpec) -> Iterable[Place]:
    if spec.kind.startswith("python_"):
        return standard_library.files()
    if spec.kind == "answers":
        for folder in spec.patterns:
            answers.read_card(Path(folder))  # says what to type where there are none
        return [Path(folder, answers.ROWS) for folder in spec.patterns]
    if spec.kind == "hub":
        (repository,) = spec.patterns
        return hub.files_of(repository, subset=spec.subset, split=spec.split, revision=spec.revision)
    return places.find(spec.patterns)


def _hash_of_item(item: Example | Reject) -> str:
    return item.id if isinstance(item, Example) else item.reason
