"""The recipe's terms of a loss, and values that change during a run."""

from typing import Annotated, Any, Literal  # Any: what the user wrote

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tutelage.losses.names import DIVERGENCES, FEATURES
from tutelage.recipe import short_terms
from tutelage.recipe.fields import CountOrAuto, Listed, Section, Share, one_of, shown

Divergence = Annotated[
    str,
    AfterValidator(one_of(tuple(DIVERGENCES))),
    WithJsonSchema({"type": "string", "enum": list(DIVERGENCES)}),
]


Feature = Annotated[
    str,
    AfterValidator(one_of(tuple(FEATURES))),
    WithJsonSchema({"type": "string", "enum": list(FEATURES)}),
]
Pairs = tuple[tuple[int, int], ...]


def _as_lists(value: Any) -> Any:
    """As JSON has it."""
    return value if value == "auto" else [list(pair) for pair in value]


def _layer_pairs(value: Any) -> Any:
    """auto, or pairs of layers: the student's and the teacher's."""
    found = short_terms.layer_pairs(value)
    if found == "auto":
        return found
    pairs = [tuple(pair) for pair in found if isinstance(pair, list | tuple)] if isinstance(found, list | tuple) else []
    whole = all(len(pair) == 2 and all(type(layer) is int and layer >= 0 for layer in pair) for pair in pairs)
    if not pairs or len(pairs) < len(found) or not whole:
        raise PydanticCustomError(
            "layers", "must be auto, or pairs of layers from 0 such as {0: 1, 1: 3}, got {got}", {"got": shown(value)}
        )
    return tuple(pairs)


LayerPairs = Annotated[
    Literal["auto"] | Pairs,
    PlainValidator(_layer_pairs, json_schema_input_type=Literal["auto"] | dict[str, int] | Pairs),
    PlainSerializer(_as_lists, return_type=Any),
]


class Schedule(Section):
    """A value that may change during the run.  Short form: a number, which is constant."""

    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        description="constant: start throughout; linear, cosine: from start to end; wsd: start, then down to end"
    )
    start: float = Field(description="value after the warm-up")
    end: float | None = Field(default=None, description="value at the end of the run; required but with constant")
    warmup: Share = Field(default=0.0, description="first share of the run, in which a weight rises from 0 to start")
    decay: Share | None = Field(
        default=None, description="last share of the run, in which wsd goes to end; 0.2 with wsd"
    )


CONSTANT_1 = Schedule(schedule="constant", start=1.0)
Scheduled = Annotated[Schedule, BeforeValidator(short_terms.complete_schedule, json_schema_input_type=float | Schedule)]


class LossTerm(Section):
    """One term: `divergence`, `cross_entropy` or `features`.  Short forms: its name, or `{NAME: WEIGHT}`."""

    divergence: Divergence | None = Field(
        default=None, description="name of a distance between teacher and student, see Divergences"
    )
    cross_entropy: Literal["ground_truth", "teacher_argmax"] | None = Field(
        default=None, description="against the text's next token, or the teacher's most likely one"
    )
    features: Feature | None = Field(
        default=None,
        description="what the student's layers are drawn to in a live teacher's, beside another term, see Features",
    )
    weight: Scheduled = Field(default=CONSTANT_1, description=">= 0; factor of the term")
    temperature: Scheduled | None = Field(
        default=None,
        description="> 0; softens both distributions, and the term is multiplied by `T**k`, k = 2 (1 for "
        "total_variation), arXiv:1503.02531; 1.0 with a divergence",
    )
    beta: float | None = Field(
        default=None, gt=0, lt=1, description="of jensen_shannon: the teacher's share; 0.5 there"
    )
    alpha: float | None = Field(default=None, gt=0, lt=1, description="of skew_kl, skew_reverse_kl: the mix; 0.1 there")
    layers: LayerPairs | None = Field(
        default=None,
        description="of features: `{STUDENT_LAYER: TEACHER_LAYER}`, counted from 0; auto: those the student was made "
        "of, else evenly, last to last (of attention_relations the last alone); auto there",
    )
    distance: Literal["cosine", "mse"] | None = Field(
        default=None,
        description="of hidden_states: cosine, blind to lengths (arXiv:1910.01108), or mse, in units of the teacher's "
        "mean square (arXiv:1412.6550); cosine there",
    )
    projection: bool | None = Field(
        default=None,
        description="of hidden_states: a learned linear map from student to teacher where their widths are equal too; "
        "where they differ there always is one; false there",
    )
    relation_heads: CountOrAuto | None = Field(
        default=None,
        description="of attention_relations: into how many heads queries, keys and values are cut; auto: the most that "
        "divide every width and leave 16 numbers a head; auto there",
    )
    teacher: str | None = Field(
        default=None, min_length=1, description="another of `students` to learn from; null: the recipe's teacher"
    )
    trust: Literal["always", "progress", "per_token"] = Field(
        default="always",
        description="in a teacher that itself trains: always; progress: the weight grows as its running loss falls; "
        "per_token: only where it gives the true token more probability than the student does; progress for a "
        "divergence from teacher.config whose weight is constant and has no warmup",
    )

    @property
    def name(self) -> str:
        """How metrics call the term: forward_kl, …, ground_truth, teacher_argmax, hidden_states, …."""
        name = self.divergence or self.cross_entropy or self.features
        assert name is not None, "load_recipe admits only terms with a kind"
        return name

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must run for it."""
        return self.cross_entropy != "ground_truth"


Term = Annotated[LossTerm, BeforeValidator(short_terms.complete_term, json_schema_input_type=str | LossTerm)]
Loss = Annotated[
    tuple[Term, ...],
    Listed,
    Field(min_length=1),
    BeforeValidator(short_terms.loss, json_schema_input_type=str | LossTerm | list[str | LossTerm]),
]
