"""The sections of `tutelage generate`: the endpoint, what is asked, what it may cost, and which answers are kept."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from tutelage.recipe import short
from tutelage.recipe.column_text import ColumnTextField
from tutelage.recipe.fields import (
    Count,
    Device,
    DtypeAlias,
    FunctionText,
    Index,
    Listed,
    ModelText,
    PathText,
    Section,
    Share,
)
from tutelage.recipe.sources import Globs, PromptSources


class Price(Section):
    """Dollars for a million tokens, by which the budget is kept."""

    prompt_usd: float = Field(ge=0, description="for a million tokens of prompts")
    answer_usd: float = Field(ge=0, description="for a million tokens of answers, reasoning included")


class Api(Section):
    """A teacher that writes text: an endpoint with OpenAI's interface."""

    base_url: str = Field(min_length=1, description="its address up to /v1; https unless it is on this machine")
    model: str = Field(min_length=1, description="what the endpoint calls the model")
    key_env: str | None = Field(
        default=None,
        min_length=1,
        description="variable that holds the key; null: TUTELAGE_KEY__HOST (other characters than letters and digits "
        "as _), or no key",
    )
    key_file: PathText | None = Field(default=None, description="file that holds the key, readable by you alone")
    key_header: str = Field(
        default="authorization", min_length=1, description="header that carries the key; authorization: as Bearer"
    )
    headers: dict[str, str] | None = Field(default=None, description="further headers; never a key")
    query: dict[str, str] | None = Field(default=None, description="query parameters of every request; never a key")
    body: dict[str, JsonValue] | None = Field(
        default=None, description="further fields of every request, such as reasoning_effort"
    )
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        default=None, description="what the endpoint calls generate.max_tokens; null: found by asking"
    )
    finish_reason_optional: bool = Field(
        default=False, description="true: an answer without finish_reason is whole, for servers that never give one"
    )
    logprobs_temperature: float = Field(
        default=1.0,
        gt=0,
        description="temperature of the log-probabilities that the endpoint gives: 1 where they are those before "
        "sampling, as with llama.cpp and vLLM, whatever the sampling is",
    )
    timeout_s: float = Field(default=120.0, gt=0, description="deadline of one request, from first to last byte")
    retries: Index = Field(default=6, description="further tries of a request after a fault; rate limits do not count")
    concurrency: Count = Field(default=64, description="requests under way at most; how many are is found by measuring")
    transport: Literal["direct", "batch"] = Field(
        default="direct", description="batch: by the provider's batch jobs, which take up to a day and cost less"
    )
    batch_price: Price | None = Field(default=None, description="what tokens cost in batch jobs; null: generate.price")
    terms: str | None = Field(
        default=None, min_length=1, description="terms of use of the teacher's outputs, as you know them: for the card"
    )


class TextTeacher(Section):
    """One of several teachers that write text: exactly one of `api`, `model`."""

    api: Api | None = Field(default=None, description="an endpoint")
    model: ModelText | None = Field(default=None, description="a model on this machine: hub id, folder or GGUF file")
    price: Price | None = Field(default=None, description="of an endpoint; null: generate.price")
    terms: str | None = Field(default=None, min_length=1, description="as teacher.terms, of `model`")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id; null: its main branch")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], DtypeAlias] = Field(
        default="auto",
        description="number format of its weights; auto: measured on a CPU, bfloat16 on a GPU that has it",
    )
    device: Device = Field(default="auto", description="where it runs; auto: a GPU when there is one")


TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]


class Verify(Section):
    """Keep right answers: exactly one of `number`, `exact`, `choice`, `regex`, `json_schema`, `function`."""

    number: Literal[True] | None = Field(
        default=None, description="the last number of the answer equals that of the reference"
    )
    exact: Literal[True] | None = Field(
        default=None, description="the answer is the reference, but for case and white space"
    )
    choice: Literal[True] | None = Field(
        default=None, description="the last letter that is chosen, A to J, is that of the reference"
    )
    regex: str | None = Field(default=None, min_length=1, description="found in the answer; Python's syntax")
    json_schema: dict[str, JsonValue] | None = Field(
        default=None, description="the answer is JSON that fits: type, properties, required, items, enum, limits"
    )
    function: FunctionText | None = Field(
        default=None,
        description="your Python code, path.py:name or module:name: called with prompt, answer and reference, it says "
        "true or false, or for best a number",
    )
    timeout_s: float | None = Field(default=None, gt=0, description="of a function, for one answer; null: 10 seconds")


VerifyField = Annotated[Verify, BeforeValidator(short.verify, json_schema_input_type=str | Verify)]


class JudgeModel(Section):
    """A model that gives each answer a score from 0 to 10; asked and paid like the teacher, under the same caps."""

    api: Api = Field(description="its endpoint; not that of the teacher, unless the same is written here")
    price: Price | None = Field(default=None, description="what its tokens cost; needed where generate has a price")
    prompt: ColumnTextField | None = Field(
        default=None,
        description="what it is asked, with {question}, {answer} and {reference}; it must end with a line `Score: N`, "
        "N from 0 to 10; null: a prompt of tutelage's",
    )
    max_tokens: Count = Field(default=512, description="tokens of its reply at most, reasoning included")
    temperature: float | None = Field(default=None, ge=0, description="of its sampling; null: the endpoint's own")


class Best(Section):
    """Keep the best answers to each prompt."""

    by: Literal["verify", "length", "judge"] = Field(
        description="what decides; of equal answers the earlier sample is kept"
    )
    keep: Count = Field(default=1, description="answers to a prompt that stay at most; below generate.samples")
    verify: VerifyField | None = Field(
        default=None, description="of by: verify; right before wrong, or the highest number that a function returns"
    )
    prefer: Literal["shortest", "longest"] | None = Field(
        default=None, description="of by: length, in characters; null: shortest"
    )
    judge: JudgeModel | None = Field(default=None, description="of by: judge; the model that gives the scores")


class Length(Section):
    """Keep answers of a length, in characters."""

    least: Index = Field(default=1, description="characters at least")
    most: Count | None = Field(default=None, description="characters at most; null: any number")


class Repetition(Section):
    """Drop answers that repeat themselves."""

    words: Count = Field(default=4, description="words of the sequences that are compared")
    most: Share = Field(default=0.3, description="share of sequences that may have stood in the answer before")


class Deduplicate(Section):
    """Drop answers that are there already.  Short form: true."""

    near: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="also across prompts: answers of 20 words or more that share at least this much of their sequences "
        "of 3 words with one that is kept; needs tutelage[text]",
    )


class Decontaminate(Section):
    """Drop answers that share text with evaluation sets, in the prompt or in the answer."""

    against: Globs = Field(description="files of evaluation sets, with one JSON object a line")
    columns: Annotated[tuple[str, ...], Listed, Field(min_length=1)] | None = Field(
        default=None, description="their fields that are compared; null: every text in them"
    )
    ngram: Count = Field(default=13, description="words in a row that are an overlap; a shorter text: all of it")


class Language(Section):
    """Keep answers in some languages.  Short form: a code or a list of them."""

    only: Annotated[tuple[str, ...], Listed, Field(min_length=1)] = Field(description="codes of ISO 639, such as en")
    certain: Share = Field(default=0.5, description="probability of another language from which an answer is dropped")


class Step(Section):
    """One step of the selection: exactly one field.  Short form: its name."""

    complete: bool | None = Field(default=None, description="drop unfinished answers; false keeps them")
    verify: VerifyField | None = Field(
        default=None, description="keep right answers; short form: a name such as number"
    )
    best: Best | None = Field(default=None, description="keep the best answers to each prompt")
    length: Length | None = Field(default=None, description="keep answers of a length")
    repetition: Repetition | None = Field(default=None, description="drop answers that repeat themselves")
    deduplicate: (
        Annotated[Deduplicate, BeforeValidator(short.deduplicate, json_schema_input_type=Literal[True] | Deduplicate)]
        | None
    ) = Field(default=None, description="drop answers that an earlier one equals, but for case and white space")
    decontaminate: Decontaminate | None = Field(
        default=None, description="drop answers that share text with evaluation sets"
    )
    language: (
        Annotated[Language, BeforeValidator(short.language, json_schema_input_type=str | list[str] | Language)] | None
    ) = Field(default=None, description="keep answers in some languages; needs tutelage[text]")


class Generate(Section):
    """What `tutelage generate` asks teacher.api and writes to teacher.answers."""

    prompts: PromptSources = Field(
        default=(),
        description="what is asked: prompts or conversations of JSON lines, or texts whose beginning is continued; "
        "where `compare` asks an endpoint, by default the beginnings of the training texts",
    )
    samples: Count = Field(default=1, description="answers to each prompt")
    max_tokens: Count = Field(default=512, description="tokens of an answer at most, reasoning included")
    temperature: float | None = Field(default=None, ge=0, description="of the sampling; null: the endpoint's own")
    top_logprobs: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="ask for the so many most likely tokens at each position of the answers, and write them to the "
        "folder soft beside the answers as a teacher cache; the student needs the teacher's tokenizer",
    )
    given: Literal["echo", "prompt_logprobs"] | None = Field(
        default=None,
        description="have the texts of prompts scored as they stand, not continued, with top_logprobs at each of their "
        "tokens; how the server is asked: echo (the older completions interface), prompt_logprobs (vLLM)",
    )
    seed: Index | None = Field(
        default=None, description="sample n of a prompt is asked with seed + n, where endpoints heed it; null: not sent"
    )
    system: ColumnTextField | None = Field(
        default=None, description="system prompt before each conversation; {column} as in a template"
    )
    interface: Literal["auto", "chat", "completions"] = Field(
        default="auto",
        description="auto: conversations and prompts as chat, texts as completions; chat: texts too",
    )
    prompt_tokens: Count | None = Field(
        default=None,
        description="of a plain text: its first so many tokens (the student's) are the prompt, null: 64; of a given "
        "one: tokens of a piece, null: data.max_length",
    )
    parquet: bool = Field(
        default=False, description='also write answers.parquet (needs pip install "tutelage[parquet]")'
    )
    batch: Count | None = Field(
        default=None, description="of a model on this machine: answers that are written at once; null: 16"
    )
    budget_usd: float | None = Field(
        default=None,
        gt=0,
        description="cap on what is spent, in dollars; needs price; with it or max_requests `train` buys too",
    )
    max_requests: Count | None = Field(default=None, description="cap on requests that may have to be paid")
    price: Price | None = Field(default=None, description="what tokens cost; null: only max_requests is a cap")
    select: Annotated[
        tuple[Annotated[Step, BeforeValidator(short.step, json_schema_input_type=str | Step)], ...],
        Listed,
        BeforeValidator(short.select, json_schema_input_type=str | Step | list[str | Step]),
    ] = Field(
        default=(Step(complete=True),),
        description="steps that drop answers, in this order; complete is the first unless it is named",
    )

    @property
    def has_cap(self) -> bool:
        """Whether it says how much may be bought: without, nothing is."""
        return self.budget_usd is not None or self.max_requests is not None
