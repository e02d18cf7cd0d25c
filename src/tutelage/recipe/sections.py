"""The recipe's sections: every field with its type, range, default and meaning.  docs/recipe.md is made from here."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, WithJsonSchema

from tutelage import plugins
from tutelage.recipe import short
from tutelage.recipe.fields import (
    Count,
    CountOrAuto,
    Device,
    DtypeAlias,
    FunctionText,
    Index,
    Interval,
    Listed,
    Section,
    Share,
    TemplateText,
    Whole,
    one_of,
)
from tutelage.recipe.generation import Generate
from tutelage.recipe.models import Pupil, Student, StudentName, Teacher
from tutelage.recipe.sources import Globs, Sources
from tutelage.recipe.terms import Loss, LossTerm
from tutelage.roles import STUDENT

CODECS = plugins.names("cache/codecs")
TRACKERS = plugins.names("training/trackers")
Tracker = Annotated[str, AfterValidator(one_of(TRACKERS)), WithJsonSchema({"type": "string", "enum": list(TRACKERS)})]
_OneOrMore = BeforeValidator(short.globs, json_schema_input_type=str | list[str])
Track = Annotated[tuple[Tracker, ...], Listed, _OneOrMore]
Functions = Annotated[tuple[FunctionText, ...], Listed, _OneOrMore]


class HeldOut(Section):
    """Rows kept from training.  Short forms: a number (share), a list (sources).

    With both, the share of these sources: the rows that a recipe which trains on them with this share holds out.
    """

    share: float | None = Field(
        default=None, gt=0, lt=1, description="share of the rows, chosen by the hash of their content"
    )
    sources: Annotated[Sources, Field(min_length=1)] | None = Field(
        default=None, description="sources of their own; null: those of data.sources"
    )


class Curriculum(Section):
    """Easy rows first: the epochs are made of a pool of rows that grows.  Short form: teacher_loss."""

    by: Literal["teacher_loss"] = Field(
        default="teacher_loss", description="what is easy: the teacher's mean loss on a row's trained tokens is low"
    )
    start: float = Field(default=0.3, gt=0, lt=1, description="share of the rows, the easiest, that the pool begins as")
    until: float = Field(default=0.5, gt=0, le=1, description="share of the run after which every row is in the pool")


class Data(Section):
    """The text to train on, and the text that is kept to measure."""

    sources: Annotated[Sources, Field(min_length=1)] = Field(description="where examples come from")
    held_out: Annotated[HeldOut, BeforeValidator(short.held_out, json_schema_input_type=float | HeldOut)] | None = (
        Field(default=HeldOut(share=0.02), description="what is kept from training to measure; null: nothing")
    )
    max_length: Whole = Field(
        default=512, ge=2, description="tokens of a window; longer documents are cut into windows"
    )
    mix: Literal["rows", "tokens"] | None = Field(
        default=None,
        description="what a source's weight counts: tokens: its part of the trained tokens, against the other weights; "
        "rows: how often each of its rows appears in an epoch; null: rows",
    )
    curriculum: (
        Annotated[
            Curriculum, BeforeValidator(short.curriculum, json_schema_input_type=Literal["teacher_loss"] | Curriculum)
        ]
        | None
    ) = Field(default=None, description="rows that are easy for the teacher come first; null: the order is drawn")
    train_on: Literal["all", "answers"] = Field(
        default="all", description="answers: only what the assistant says is learned"
    )
    chat_template: TemplateText | None = Field(
        default=None, description="Jinja file or text that renders messages; null: the tokenizer's own"
    )
    reasoning: Literal["think"] | None = Field(
        default=None,
        description="of answers: think trains with the teacher's reasoning before the answer, in <think> tags; "
        "null: without it",
    )
    max_reject: float = Field(default=0.01, ge=0, le=1, description="share of defective rows that is tolerated")
    missing_soft: Literal["error", "drop"] = Field(
        default="error", description="training rows that the teacher cache lacks: refuse to train, or leave them out"
    )
    control_text: Literal["encode", "reject"] = Field(
        default="encode", description="text that spells a control token: encoded as plain text, or the row is rejected"
    )


class EarlyStop(Section):
    """Stop when the held-out loss no longer falls."""

    patience: Count = Field(description="evaluations without a new best before the run stops")


class Training(Section):
    """How long, how fast and how precisely: exactly one of `tokens`, `steps`, `epochs`."""

    tokens: Count | None = Field(default=None, description="length of the run in tokens")
    steps: Count | None = Field(default=None, description="length of the run in optimizer steps")
    epochs: float | None = Field(default=None, gt=0, description="length of the run in passes over the data")
    batch_tokens: Count = Field(default=8192, description="tokens of one optimizer step; a multiple of data.max_length")
    micro_batch: CountOrAuto | None = Field(
        default=None,
        description="windows of one forward pass; auto: as many as fit, found before the first step; null: the whole "
        "batch at once",
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["wsd", "cosine", "constant"] = Field(default="wsd", description="wsd: warm up, stay, decay to 0")
    warmup: Share = Field(default=0.05, description="first share of the run, in which the learning rate rises from 0")
    decay: Share | None = Field(
        default=None, description="last share of the run, in which wsd falls to 0; 0.2 with wsd"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, on matrices only")
    betas: Annotated[tuple[Share, Share], Listed] = Field(default=(0.9, 0.95), description="of AdamW")
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="gradients are clipped to this norm; null: never"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float64"], DtypeAlias] = Field(
        default="auto", description="of the products; master weights and losses are float32 or wider; auto: measured"
    )
    seed: Index = Field(default=0, description="every random draw of the run derives from it")
    gradient_checkpointing: bool = Field(default=False, description="less memory, about a third more time")
    compile: bool = Field(
        default=False, description="layers compiled by torch.compile: faster steps after a minute; needs a compiler"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a moving average of the weights; null: none"
    )
    evaluate_every: Interval | None = Field(
        default=None, description="tokens, or a share of the run, between evaluations; null: only at the end"
    )
    save_every: Interval = Field(default=0.1, description="tokens, or a share of the run, between checkpoints")
    keep: Count = Field(default=2, description="newest checkpoints that stay; the best one always stays")
    early_stop: EarlyStop | None = Field(default=None, description="stop before the end; null: never")
    device: Device = Field(default="auto", description="where the student trains; auto: a GPU when there is one")
    threads: Count | None = Field(default=None, description="CPU threads; null: as many as torch finds")
    chunk: Count = Field(default=512, description="positions whose logits are alive at once; memory against speed")
    log_every: Count = Field(default=10, description="optimizer steps between lines of progress without a terminal")
    track: Track | None = Field(
        default=None,
        description='programs that show the figures as they come; each needs pip install "tutelage[NAME]"; null: none; '
        "tensorboard: true is short for [tensorboard]",
    )
    callbacks: Functions | None = Field(
        default=None,
        description="functions of your own, path.py:name or module:name, that hear of each step, evaluation, "
        "checkpoint and the end; null: none; see docs/extending.md",
    )
    save_dtype: Annotated[Literal["bfloat16"], DtypeAlias] | None = Field(
        default=None, description="also save the student in this format, with the measured difference"
    )


class Cache(Section):
    """What `tutelage label` writes; at most one of `bytes_per_token`, `error`, `threshold` and `k` says how much."""

    codec: Annotated[str, AfterValidator(one_of(CODECS)), WithJsonSchema({"type": "string", "enum": list(CODECS)})] = (
        Field(default="threshold", description="how distributions are stored")
    )
    bytes_per_token: float | None = Field(
        default=None, gt=0, description="budget of targets and witness, on average; 16 with threshold"
    )
    error: float | None = Field(
        default=None, gt=0, description="budget of the gradient error a position, against the reference student"
    )
    threshold: float | None = Field(
        default=None, ge=0.0025, le=0.25, description="of threshold: probabilities from here on are exact; made a 1/m"
    )
    k: Count | None = Field(default=None, description="of topk: how many tokens a position")
    tail: bool | None = Field(
        default=None,
        description="of topk: keep the probability of all others; false makes a biased student; true there",
    )
    dtype: Annotated[Literal["float16", "float32", "float64"], DtypeAlias] | None = Field(
        default=None, description="of dense: the number format; float16 there"
    )
    temperature: float = Field(default=1.0, gt=0, description="at which the teacher is stored; training asks the same")
    draws: Count | None = Field(
        default=None, description="of threshold: independent draws a row, taken in turn by the epochs; 1 there"
    )
    rows: Literal["run"] | None = Field(
        default=None, description="run: label and need only the rows that this recipe's own run reads; null: all"
    )


class Writes(Section):
    """Text that every model writes to held-out prompts, or after the beginning of held-out texts."""

    prompts: Count = Field(default=32, description="so many, spread over the held-out rows")
    tokens: Count = Field(default=64, description="new tokens of each text, at most; greedy")


class Evaluation(Section):
    """What is measured at the end beside the held-out rows."""

    rows: Count | None = Field(default=None, description="at most so many held-out rows; null: all")
    task_prompts: Count | None = Field(
        default=100,
        description="of answers that a step verified: so many held-out prompts, at most, every model answers; "
        "the same verifiers judge; null: none",
    )
    out_of_domain: Sources = Field(default=(), description="text unlike the training data, to see what was lost")
    overlap: bool = Field(
        default=True,
        description="look for measured rows that stand in the training data, and show results without them too; "
        "reads all training rows once",
    )
    triggers: bool = Field(
        default=True,
        description="look for rare words that stand together in many training documents of one source, as planted ones "
        "do; reads all training rows twice",
    )
    writes: Annotated[Writes, BeforeValidator(short.writes, json_schema_input_type=int | bool | Writes)] | None = Field(
        default=None,
        description="text that the models write, for its repetition, length and ends; a number of prompts, or true; "
        "null: none, since writing costs more than scoring",
    )
    probes: Globs | None = Field(
        default=None,
        description="files of paired sentences (JSON, JSON lines or CSV), of which one says a stereotype: CrowS-Pairs, "
        "StereoSet, or your own with the columns stereotype, anti_stereotype and category; null: none",
    )
    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Listed,
        BeforeValidator(short.globs, json_schema_input_type=str | list[str]),
    ] = Field(default=(), description="texts whose most likely next tokens are shown for teacher and student")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """One student as the recipe asks for it; `learning_rate` None: that of `training`."""

    section: Student
    loss: tuple[LossTerm, ...]
    learning_rate: float | None = None
    first_step: int = 0


class Recipe(Section):
    """Everything that defines a result.  Made by `load_recipe`, which also checks what spans several fields."""

    teacher: Annotated[Teacher, BeforeValidator(short.teacher, json_schema_input_type=str | Teacher)] | None = Field(
        default=None, description="the model that is learned from; only a plain fine-tuning of student.model needs none"
    )
    student: Annotated[Student, BeforeValidator(short.student, json_schema_input_type=str | Student)] | None = Field(
        default=None, description="the model that learns"
    )
    students: (
        Annotated[
            dict[StudentName, Annotated[Pupil, BeforeValidator(short.student, json_schema_input_type=str | Pupil)]],
            Field(min_length=1),
        ]
        | None
    ) = Field(default=None, description="in place of `student`: several by name, from one pass of the teacher")
    data: Data = Field(description="the text to train on")
    loss: Loss | None = Field(default=None, description="terms that are added up; of every student without its own")
    training: Annotated[Training, BeforeValidator(short.complete_training)] = Field(description="how it is trained")
    control: bool = Field(
        default=False,
        description="also train the control (same start and tokens, plain cross-entropy): the fair comparison",
    )
    cache: Annotated[Cache, BeforeValidator(short.complete_cache)] | None = Field(
        default=None, description="what `label` writes to teacher.cache; threshold at 16 bytes unless it says more"
    )
    generate: Generate | None = Field(
        default=None, description="what `generate` asks teacher.api, and what it may cost"
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="what is measured")

    @property
    def learners(self) -> dict[str, Learner]:
        """The students by name; a single one is called `student`."""
        if self.students is None:
            assert self.student is not None and self.loss is not None, "recipe rules: a student and its loss"
            return {STUDENT: Learner(section=self.student, loss=self.loss)}
        learners = {}
        for name, pupil in self.students.items():
            loss = pupil.loss or self.loss
            assert loss is not None, "recipe rules: every student has a loss"
            learners[name] = Learner(
                section=pupil, loss=loss, learning_rate=pupil.learning_rate, first_step=pupil.start_at_step or 0
            )
        return learners

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher learns too (co-distillation)."""
        return self.teacher is not None and self.teacher.train is not None

    def resolved(self) -> dict[str, JsonValue]:
        """The recipe written out: long forms, defaults, absolute paths; `load_recipe` of it gives an equal recipe."""
        tree: dict[str, JsonValue] = self.model_dump(mode="json")
        return tree

    def fingerprint(self) -> str:
        """SHA-256 of the resolved recipe, 64 hexadecimal digits."""
        text = json.dumps(self.resolved(), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        return hashlib.sha256(b"tutelage recipe 1\n" + text.encode()).hexdigest()


def json_schema() -> dict[str, JsonValue]:
    """The JSON schema of a recipe, for editors: completion, help and red underlines while typing."""
    schema: dict[str, JsonValue] = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Tutelage recipe"}
