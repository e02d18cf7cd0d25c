"""The sections of `tutelage generate`: the endpoint, what is asked, what it may cost, and which answers are kept."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from tutelage.recipe import short
from tutelage.recipe.fields import Count, Device, DtypeAlias, Index, Listed, ModelText, PathText, Section, Share
from tutelage.recipe.sources import PromptSources


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
    """Keep right answers: exactly one of `number`, `exact`, `choice`, `regex`, `json_schema`."""

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


class Length(Section):
    """Keep answers of a length, in characters."""

    least: Index = Field(default=1, description="characters at least")
    most: Count | None = Field(default=None, description="characters at most; null: any number")


class Repetition(Section):
    """Drop answers that repeat themselves."""

    words: Count = Field(default=4, description="words of the sequences that are compared")
    most: Share = Field(default=0.3, description="share of sequences that may have stood in the answer before")


class Step(Section):
    """One step of the selection: exactly one field.  Short form: its name."""

    complete: bool | None = Field(default=None, description="drop unfinished answers; false keeps them")
    verify: Annotated[Verify, BeforeValidator(short.verify, json_schema_input_type=str | Verify)] | None = Field(
        default=None, description="keep right answers; short form: a name such as number"
    )
    length: Length | None = Field(default=None, description="keep answers of a length")
    repetition: Repetition | None = Field(default=None, description="drop answers that repeat themselves")
    deduplicate: Literal[True] | None = Field(
        default=None, description="drop answers that an earlier one equals, but for case and white space"
    )


class Generate(Section):
    """What `tutelage generate` asks teacher.api and writes to teacher.answers."""

    prompts: PromptSources = Field(
        description="what is asked: prompts or conversations of JSON lines, or texts whose beginning is continued"
    )
    samples: Count = Field(default=1, description="answers to each prompt")
    max_tokens: Count = Field(default=512, description="tokens of an answer at most, reasoning included")
    temperature: float | None = Field(default=None, ge=0, description="of the sampling; null: the endpoint's own")
    seed: Index | None = Field(
        default=None, description="sample n of a prompt is asked with seed + n, where endpoints heed it; null: not sent"
    )
    system: str | None = Field(default=None, min_length=1, description="system prompt before each conversation")
    interface: Literal["auto", "chat", "completions"] = Field(
        default="auto",
        description="auto: conversations and prompts as chat, texts as completions; chat: texts too",
    )
    prompt_tokens: Count = Field(
        default=64, description="of a plain text: its first so many tokens (the student's) are the prompt"
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
