"""The recipe's models: who teaches and who learns."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, PlainValidator
from pydantic_core import PydanticCustomError

from tutelage.recipe import short
from tutelage.recipe.fields import (
    PLACE,
    Count,
    Device,
    DtypeAlias,
    Extent,
    Index,
    Listed,
    ModelText,
    PathText,
    Place,
    Section,
    Share,
)
from tutelage.recipe.generation import Api, TeacherName, TextTeacher
from tutelage.recipe.sources import MEMORY
from tutelage.recipe.terms import Loss


def _device_map(value: Any) -> Any:
    """auto, or places by the name of a part; '' is all of it, and stands alone."""
    if value == "auto":
        return value
    found = value if isinstance(value, dict) else {}
    if not found or not all(isinstance(name, str) and _is_place(place) for name, place in found.items()):
        raise PydanticCustomError(
            "device_map", "must be auto, or a device number, cpu or disk by the name of a part, such as {'': disk}"
        )
    if "" in found and len(found) > 1:
        raise PydanticCustomError("device_map", "names '', which is all of it, and parts: name every part, or '' alone")
    return found


def _is_place(value: Any) -> bool:
    return value >= 0 if type(value) is int else isinstance(value, str) and PLACE.match(value) is not None


DeviceMap = Annotated[
    Literal["auto"] | dict[str, int | str],
    PlainValidator(_device_map, json_schema_input_type=Literal["auto"] | dict[str, Index | Place]),
]


def _targets(value: Any) -> Any:
    """One sentence for all-linear and names: a union would complain once for each of them."""
    if value == "all-linear":
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise PydanticCustomError("targets", "must be all-linear, or names of layers such as [q_proj, v_proj]")
    return value


_Names = Literal["all-linear"] | Annotated[tuple[str, ...], Listed, Field(min_length=1)]
Targets = Annotated[_Names, BeforeValidator(_targets, json_schema_input_type=_Names)]


class TeacherTraining(Section):
    """How a teacher trains beside its students; what is null is as in `training`.  Short form: true."""

    learning_rate: float | None = Field(default=None, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["wsd", "cosine", "constant"] | None = Field(default=None, description="of the learning rate")
    warmup: Share | None = Field(default=None, description="first share of its steps, with a rising learning rate")
    decay: Share | None = Field(default=None, description="last share of its steps, in which wsd falls to 0")
    weight_decay: float | None = Field(default=None, ge=0, description="of AdamW, on matrices only")
    freeze_at_step: Count | None = Field(
        default=None, description="after so many steps it stays as it is and goes on teaching; null: it never stops"
    )


class EnsembleMember(Section):
    """One of several teachers that are asked together."""

    model: ModelText = Field(description="hub id, folder with safetensors, or GGUF file")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id; null: its main branch")
    weight: float = Field(default=1.0, gt=0, description="its share of the average, against the other members")


class Teacher(Section):
    """Who is learned from: `model`, `cache`, or both; `ensemble`; `config`; or text, `answers`.  Short form: a model.

    It neither trains nor is saved, unless there is `train`.  With `cache`, `tutelage label` runs the model once and
    writes its outputs there; `tutelage train` learns from them, and needs the model only for a student made of its
    layers.  With `answers`, `tutelage generate` asks `api`, or `model` on this machine, and writes what it answers
    there; `train` learns that text.
    """

    model: ModelText | None = Field(default=None, description="hub id, folder with safetensors, or GGUF file")
    memory: str | None = Field(default=None, description=MEMORY)
    cache: PathText | None = Field(
        default=None, description="folder of a teacher cache: `label` writes it, `train` learns from it; null: ask live"
    )
    api: Api | None = Field(default=None, description="an endpoint that writes text, for `generate`")
    writers: Annotated[dict[TeacherName, TextTeacher], Field(min_length=1)] | None = Field(
        default=None,
        description="in place of `api`: several that write text, by name; each is asked every prompt, unless a source "
        "of generate.prompts names its `teacher`",
    )
    answers: PathText | None = Field(
        default=None, description="folder of answers: `generate` writes it, `train` learns from it"
    )
    terms: str | None = Field(
        default=None,
        min_length=1,
        description="terms of use of what `model` writes for `generate`, as you know them: for the card",
    )
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id; null: its main branch")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], DtypeAlias] = Field(
        default="auto",
        description="number format of its weights; auto: measured on a CPU, bfloat16 on a GPU that has it",
    )
    quantize: Literal["int8", "fp8", "int4"] | None = Field(
        default=None,
        description="round its weights while they load, so that a larger one fits; int4 needs CUDA; null: as saved "
        '(needs pip install "tutelage[quantized]")',
    )
    device: Device = Field(default="auto", description="where it runs; auto: where the student trains")
    device_map: DeviceMap | None = Field(
        default=None,
        description="where its parts lie, for one that does not fit: auto: GPUs first, then the CPU's memory, then the "
        "disk; or a device, cpu or disk by the name of a part, '' for all; null: whole on `device`",
    )
    ensemble: Annotated[tuple[EnsembleMember, ...], Listed, Field(min_length=2)] | None = Field(
        default=None, description="several models with one tokenizer, their probabilities averaged"
    )
    config: dict[str, JsonValue] | None = Field(
        default=None,
        min_length=1,
        description="fields of a Hugging Face config, in place of those of `tokenizer`'s model: a teacher from nothing",
    )
    tokenizer: ModelText | None = Field(
        default=None, description="of a teacher from nothing: the model whose tokenizer and config it takes"
    )
    train: (
        Annotated[TeacherTraining, BeforeValidator(short.train, json_schema_input_type=bool | TeacherTraining)] | None
    ) = Field(default=None, description="it learns too, from the truth, in the same steps (co-distillation)")


class Layers(Section):
    """Which of the teacher's layers the student keeps.  Short forms: a number (important), a list (listed)."""

    important: Count | None = Field(default=None, description="how many, chosen by measured importance")
    evenly: Count | None = Field(default=None, description="how many, spread evenly from first to last")
    listed: Annotated[tuple[Index, ...], Listed, Field(min_length=1)] | None = Field(
        default=None, description="exactly these, counted from 0, in rising order"
    )


class Width(Section):
    """How wide a student of the teacher's weights is; what is null stays.  Short form: one share for all.

    What carries most on a sample of the training data is kept (Minitron, arXiv:2407.14679).  A number below 1 is a
    share of what the teacher has, rounded to a multiple of 8, of heads to whole groups.
    """

    hidden: Extent | None = Field(default=None, description="channels of the residual stream (hidden_size)")
    mlp: Extent | None = Field(default=None, description="neurons of each layer's MLP (intermediate_size)")
    heads: Extent | None = Field(
        default=None, description="attention heads of each layer; without key_value_heads whole groups of them"
    )
    key_value_heads: Count | None = Field(
        default=None, description="keys and values that heads share; of each that is kept as many heads stay"
    )


class Init(Section):
    """What is done to the start weights before they train.  Short form: the random share."""

    random: float = Field(
        gt=0, lt=1, description="every weight goes so much of the way to a random one, drawn by training.seed"
    )


class Lora(Section):
    """Low-rank adapters beside weights that stay as they are (needs tutelage[lora]).  Short form: the rank."""

    rank: Count = Field(default=16, description="of each layer's adapter")
    alpha: float | None = Field(
        default=None, gt=0, description="what an adapter adds is multiplied by alpha / rank; null: twice the rank"
    )
    targets: Targets = Field(
        default="all-linear", description="names of the layers that get one, such as [q_proj, v_proj]"
    )
    dora: bool = Field(default=False, description="learn the norm of each row too (DoRA)")


class Student(Section):
    """The model that learns: exactly one of `layers` (or `width`, or both), `model`, `config`.  Short form: a model."""

    layers: Annotated[Layers, BeforeValidator(short.layers, json_schema_input_type=int | list[int] | Layers)] | None = (
        Field(default=None, description="a copy of the teacher with some of its layers")
    )
    width: Annotated[Width, BeforeValidator(short.width, json_schema_input_type=float | Width)] | None = Field(
        default=None, description="a copy of the teacher with fewer channels, neurons or heads; with `layers` of those"
    )
    model: ModelText | None = Field(
        default=None, description="hub id, folder or GGUF file with the teacher's tokenizer"
    )
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id; null: its main branch")
    init: Annotated[Init, BeforeValidator(short.init, json_schema_input_type=float | Init)] | None = Field(
        default=None, description="start between its weights and random ones; null: as they are"
    )
    lora: Annotated[Lora, BeforeValidator(short.lora, json_schema_input_type=int | bool | Lora)] | None = Field(
        default=None, description="train adapters alone; null: every weight"
    )
    quantize: Literal["int8", "int4"] | None = Field(
        default=None,
        description="compute with its linear weights rounded to integers, in training and when measured, and save them "
        "so (quantisation-aware training); null: as they are",
    )
    config: dict[str, JsonValue] | None = Field(
        default=None,
        min_length=1,
        description="fields of a Hugging Face config; trained from nothing, teacher's tokenizer",
    )
    memory: str | None = Field(default=None, description=MEMORY)

    @property
    def copies_teacher(self) -> bool:
        """Whether it is made of the teacher's weights."""
        return self.layers is not None or self.width is not None


class Pupil(Student):
    """One student of a family: as `student`, with what it has of its own."""

    loss: Loss | None = Field(default=None, description="terms that are added up; null: the recipe's `loss`")
    learning_rate: float | None = Field(default=None, gt=0, description="null: as in `training`")
    start_at_step: Count | None = Field(default=None, description="the first step that it takes part in; null: all")


StudentName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]
