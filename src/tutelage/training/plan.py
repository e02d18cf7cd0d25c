"""What a recipe's numbers mean for the trainer: terms, optimizer settings, steps and intervals."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tutelage.data.loader import Loader
from tutelage.errors import ConfigError
from tutelage.losses.names import DIVERGENCES, FEATURES
from tutelage.losses.schedules import Schedule
from tutelage.losses.terms import Feature, Term
from tutelage.recipe import Recipe
from tutelage.recipe.sections import Training
from tutelage.recipe.terms import LossTerm
from tutelage.recipe.terms import Schedule as ScheduleSection
from tutelage.roles import TEACHER
from tutelage.training.fit import FitPlan
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.types import CausalLM

_PARAMETER_DEFAULTS = {"beta": 0.5, "alpha": 0.1}
_WSD_DECAY = 0.2
GROUND_TRUTH = (Term(kind="ground_truth"),)  # of the control, and of a teacher that trains


def schedule_of(section: ScheduleSection) -> Schedule:
    """The pure function behind a schedule section."""
    return Schedule(
        kind=section.schedule,
        start=section.start,
        end=section.end if section.end is not None else section.start,
        warmup=section.warmup,
        decay=section.decay if section.decay is not None else _WSD_DECAY,
    )


def terms_of(loss: tuple[LossTerm, ...]) -> tuple[Term, ...]:
    """The terms of a recipe's loss; ConfigError when two have one name, because metrics could not tell them apart."""
    terms = tuple(_term(section) for section in loss)
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("CONFIG", f"loss: {name} stands there twice; give it once with the sum of the weights")
    return terms


def _term(section: LossTerm) -> Term:
    weight, source = schedule_of(section.weight), section.teacher or TEACHER
    if section.features is not None:
        return Term(kind="feature", feature=_feature(section), weight=weight)
    if section.divergence is None:
        return Term(kind=section.cross_entropy or "ground_truth", weight=weight, source=source)
    parameters = {
        name: getattr(section, name) if getattr(section, name) is not None else _PARAMETER_DEFAULTS[name]
        for name in DIVERGENCES[section.divergence]
    }
    temperature = schedule_of(section.temperature) if section.temperature else Schedule(start=1.0)
    return Term(
        kind="divergence",
        divergence=section.divergence,
        parameters=parameters,
        weight=weight,
        temperature=temperature,
        source=source,
        trust=section.trust,
    )


def _feature(section: LossTerm) -> Feature:
    assert section.features is not None
    return Feature(
        name=section.features,
        settings={name: getattr(section, name) for name in FEATURES[section.features]},
        layers=section.layers if isinstance(section.layers, tuple) else None,
    )


def rows_per_step(training: Training, *, max_length: int) -> int:
    """Windows of one optimizer step."""
    return max(1, training.batch_tokens // max_length)


def n_steps_of(training: Training, loader: Loader) -> int:
    """Optimizer steps of the run: from tokens (without padding), steps or epochs."""
    if training.steps is not None:
        return training.steps
    if training.tokens is not None:
        return loader.steps_for_tokens(training.tokens)
    assert training.epochs is not None, "recipe rules: exactly one length"
    return max(1, loader.steps_for_epochs(training.epochs))


def rows_of_run(training: Training, loader: Loader) -> npt.NDArray[np.int64]:
    """The training rows that the run reads, by number, each once."""
    return loader.rows_read(n_steps_of(training, loader))


def optimizer_settings(
    training: Training, *, n_steps: int, own: Mapping[str, float | str | None] | None = None
) -> OptimizerSettings:
    """AdamW as the recipe asks, with its learning-rate schedule down to 0; `own` is what a model says for itself."""
    training = training.model_copy(update={name: value for name, value in (own or {}).items() if value is not None})
    schedule = Schedule(
        kind=training.schedule,
        start=training.learning_rate,
        end=0.0,
        warmup=training.warmup,
        decay=training.decay if training.decay is not None else _WSD_DECAY,
    )
    return OptimizerSettings(
        schedule=schedule,
        n_steps=n_steps,
        weight_decay=training.weight_decay,
        betas=training.betas,
        max_grad_norm=training.max_grad_norm,
        ema=training.ema,
    )


def fit_plan(training: Training, *, n_steps: int) -> FitPlan:
    """Intervals in steps."""
    return FitPlan(
        n_steps=n_steps,
        save_every=_steps(training.save_every, training, n_steps=n_steps),
        evaluate_every=(
            _steps(training.evaluate_every, training, n_steps=n_steps) if training.evaluate_every is not None else None
        ),
        keep=training.keep,
        patience=training.early_stop.patience if training.early_stop is not None else None,
        log_every=training.log_every,
        track=training.track or (),
    )


def _steps(interval: float, training: Training, *, n_steps: int) -> int:
    """Tokens, or a share of the run when below 1, as optimizer steps."""
    return max(1, round(interval * n_steps if interval < 1 else interval / training.batch_tokens))


def student_member(
    recipe: Recipe, name: str, model: CausalLM, *, n_steps: int, terms: tuple[Term, ...] | None = None
) -> Member:
    """One student of the recipe; ConfigError when it would start after the run.

    `terms`: those of its loss, after `training/features.py` has settled them; needed where one compares layers.
    """
    learner = recipe.learners[name]
    if learner.first_step >= n_steps:
        raise ConfigError(
            "CONFIG",
            f"students.{name}.start_at_step: {learner.first_step}, and the run has {n_steps} steps; give less, or a "
            "longer run",
        )
    settings = optimizer_settings(
        recipe.training, n_steps=n_steps - learner.first_step, own={"learning_rate": learner.learning_rate}
    )
    terms = terms_of(learner.loss) if terms is None else terms
    return Member(
        name=name, model=model, terms=terms, optimizer=settings, first_step=learner.first_step,
        quantize=learner.section.quantize,
    )  # fmt: skip


def teacher_member(recipe: Recipe, model: CausalLM, *, n_steps: int) -> Member:
    """The teacher that trains on the truth; ConfigError when it would freeze after the run."""
    assert recipe.teacher is not None and recipe.teacher.train is not None
    own = recipe.teacher.train.model_dump()
    last = own.pop("freeze_at_step", None) or n_steps
    if last > n_steps:
        raise ConfigError(
            "CONFIG",
            f"teacher.train.freeze_at_step: {last}, and the run has {n_steps} steps; give less, or leave it out",
        )
    settings = optimizer_settings(recipe.training, n_steps=last, own=own)
    return Member(name=TEACHER, model=model, terms=GROUND_TRUTH, optimizer=settings)
