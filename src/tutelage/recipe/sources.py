"""Where documents and prompts come from: the sources of a recipe."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tutelage.recipe import short
from tutelage.recipe.column_text import ColumnTextField
from tutelage.recipe.fields import Count, Listed, PathText, PlaceText, Section

MEMORY = "fingerprint of an object handed to tutelage.train() in memory; written by tutelage, not by hand"
Globs = Annotated[
    tuple[PlaceText, ...],
    Listed,
    Field(min_length=1),
    BeforeValidator(short.globs, json_schema_input_type=str | list[str]),
]


class Columns(Section):
    """The names of a row's fields: `text`, or `prompt` and `answer`, or `messages`, …"""

    text: str | None = Field(default=None, min_length=1, description="plain text; the default is the field named text")
    prompt: str | None = Field(default=None, min_length=1, description="what is asked")
    answer: str | None = Field(default=None, min_length=1, description="what is answered")
    messages: str | None = Field(default=None, min_length=1, description="a list of {role, content}")
    conversations: str | None = Field(
        default=None, min_length=1, description="a list of {from: human or gpt or system, value}, ShareGPT's form"
    )
    chosen: str | None = Field(
        default=None,
        min_length=1,
        description="of preference data: the answer that is learned, text or messages; what was rejected is not read",
    )
    tools: str | None = Field(
        default=None, min_length=1, description="beside messages: the tools that a conversation may call"
    )


class Source(Section):
    """Where examples come from: one of `text`, `jsonl`, `parquet`, `hub`, `answers`, `python_docs`, `python_source`.

    Files may be compressed (.gz, .bz2, .xz, .zst) and may be named by a URL (`s3://bucket/*.jsonl`, `hf://…`).
    """

    text: Globs | None = Field(
        default=None, description="text files, one document each; patterns such as `corpus/**/*.txt`"
    )
    jsonl: Globs | None = Field(default=None, description="files with one JSON object a line")
    parquet: Globs | None = Field(default=None, description="Parquet files, an example a row")
    hub: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+(/[\w.-]+)?$",
        description="a data set of the Hugging Face hub, OWNER/NAME, of Parquet or JSON lines; kept in the hub's cache",
    )
    subset: str | None = Field(
        default=None, min_length=1, description="of hub: the part of the data set; null: its default, or its only one"
    )
    split: str | None = Field(default=None, min_length=1, description="of hub: which split is read; train there")
    revision: str | None = Field(
        default=None, min_length=1, description="of hub: a branch, tag or commit; null: the newest"
    )
    answers: PathText | None = Field(default=None, description="folder that `tutelage generate` wrote")
    python_docs: Literal[True] | None = Field(default=None, description="Python's own documentation, no download")
    python_source: Literal[True] | None = Field(
        default=None, description="the standard library's code: text unlike documentation, to measure on"
    )
    memory: str | None = Field(default=None, description=MEMORY)
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="what cuts a text file into documents, such as a blank line; null: a file is one",
    )
    limit: Count | None = Field(default=None, description="the first so many documents only; null: all")
    columns: Columns | None = Field(
        default=None, description="field names of a row; also accepted beside jsonl:, parquet: and hub:"
    )
    name: str | None = Field(default=None, min_length=1, description="how tables call it; null: its pattern")
    weight: float = Field(
        default=1.0,
        gt=0,
        description="how often its rows are drawn; with data.mix: tokens its part of the trained tokens",
    )

    @property
    def has_columns(self) -> bool:
        """Whether its rows are made of columns, and may be conversations."""
        return self.jsonl is not None or self.parquet is not None or self.hub is not None


class PromptSource(Source):
    """Where prompts come from: a source, whose JSON lines may also be put into a `template`."""

    template: ColumnTextField | None = Field(
        default=None,
        description="the prompt, with {column} where a column of the JSON line is put in, and {{ }} for braces; "
        "null: the column that columns.prompt names",
    )
    teacher: str | None = Field(
        default=None, min_length=1, description="which of teacher.writers is asked; null: each of them"
    )


Sources = Annotated[
    tuple[Source, ...],
    Listed,
    BeforeValidator(short.complete_sources, json_schema_input_type=str | Source | list[str | Source]),
]
PromptSources = Annotated[
    tuple[PromptSource, ...],
    Listed,
    Field(min_length=1),
    BeforeValidator(short.complete_prompts, json_schema_input_type=str | PromptSource | list[str | PromptSource]),
]
