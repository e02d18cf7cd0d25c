"""The recipe's terms of a loss, and values that change during a run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tutelage.losses.names import DIVERGENCES
from tutelage.recipe import short
from tutelage.recipe.fields import Listed, Section, Share, one_of

Divergence = Annotated[
    str,
    AfterValidator(one_of(tuple(DIVERGENCES))),
    WithJsonSchema({"type": "string", "enum": list(DIVERGENCES)}),
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
Scheduled = Annotated[Schedule, BeforeValidator(short.complete_schedule, json_schema_input_type=float | Schedule)]


class LossTerm(Section):
    """One term of the loss: `divergence` or `cross_entropy`.  Short forms: its name, or `{NAME: WEIGHT}`."""

    divergence: Divergence | None = Field(
        default=None, description="name of a distance between teacher and student, see Divergences"
    )
    cross_entropy: Literal["ground_truth", "teacher_argmax"] | None = Field(
        default=None, description="against the text's next token, or the teacher's most likely one"
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
    teacher: str | None = Field(
        default=None, min_length=1, description="another of `students` to learn from; null: the recipe's teacher"
    )
    trust: Literal["always", "progress", "per_token"] = Field(
        default="always",
        description="in a teacher that itself trains: always; progress: the weight grows as its running loss falls; "
        "per_token: only where it gives the true token more probability than the student does",
    )

    @property
    def name(self) -> str:
        """How metrics call the term: forward_kl, …, ground_truth, teacher_argmax."""
        name = self.divergence or self.cross_entropy
        assert name is not None, "load_recipe admits only terms with a kind"
        return name

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must run for it."""
        return self.cross_entropy != "ground_truth"


Term = Annotated[LossTerm, BeforeValidator(short.complete_term, json_schema_input_type=str | LossTerm)]
Loss = Annotated[
    tuple[Term, ...],
    Listed,
    Field(min_length=1),
    BeforeValidator(short.loss, json_schema_input_type=str | LossTerm | list[str | LossTerm]),
]
