"""What a token takes on this machine: real steps of short models, from which those of the whole follow.

A transformer's layers are alike, so the time of a token is linear in their number; what an optimizer step takes
whatever its tokens grows with the parameters.  Models of the recipe's own configs with one and with three layers and
random weights take steps in the recipe's precision and windows, on tokens that are made up:

    seconds of a step = update * parameters + tokens * (head + layers * a layer)

A teacher adds its forward pass and the loss against it: a step with a teacher of one layer less the same step without
one, and two more of its layers alone.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any  # configs of transformers are untyped

import torch
from transformers import AutoModelForCausalLM

from tutelage import console
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.models.cast import cast
from tutelage.models.head import trained_hidden
from tutelage.models.student import shortened
from tutelage.planning.facts import Facts
from tutelage.planning.flops import Size, size_of
from tutelage.planning.pace import Pace
from tutelage.recipe import Recipe
from tutelage.roles import STUDENT
from tutelage.teachers.live import LiveTeacher
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.training.plan import GROUND_TRUTH
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer
from tutelage.types import Batch, CausalLM, TokenView

Clock = Callable[[], float]
MOST_S = 20.0  # expected; with what is not counted it stays below 30
_LAYERS = (1, 3)
_FEWEST, _MOST, _PART = 64, 768, 4  # tokens of a measured step; a short one has a fourth of them
_HELD_BYTES = 28.0  # a parameter, of a model that trains beside another one
_STEPS = 6.5  # of a model of three layers with so many tokens: all that is measured, the warming up included
_WRITING = 8.0  # a token that is written in a batch, against one that is read; measured with SmolLM2 on two cores
_SOFT = (Term(kind="divergence", divergence="forward_kl"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one model: `update_s` for each parameter once a step; `token_s` and `layer_s` for each token."""

    update_s: float
    token_s: float  # of the head, and of all that is not a layer
    layer_s: float

    def per_token(self, size: Size, *, batch_tokens: float) -> float:
        """Seconds a token of a model of this kind, in steps of so many tokens."""
        return self.update_s * size.parameters / batch_tokens + self.token_s + self.layer_s * size.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Configs, and the sizes of the models that they describe."""

    facts: Facts
    students: Mapping[str, Any]
    teacher: Any | None
    n_vocabulary: int
    positions_per_token: float = 1.0  # that training computes


def tokens_of_a_step(models: Models, *, training_per_s: float, memory_bytes: float | None) -> int:
    """How many tokens the measured steps have, from the operations a second that are expected.

    0 where even the fewest would take too long, or models of three layers more than half of the memory.
    """
    window = models.facts.text.window
    configs = [*models.students.values(), *([models.teacher] if models.teacher is not None else [])]
    sizes = [size_of(shortened(config, _LAYERS[1]), n_vocabulary=models.n_vocabulary) for config in configs]
    held = _HELD_BYTES * max((size.parameters for size in sizes), default=0)
    if memory_bytes is not None and held > memory_bytes / 2:
        return 0
    a_token = sum(size.training_flops(context=window) for size in sizes)
    n = int(MOST_S * training_per_s / (_STEPS / 2 * a_token))
    return 0 if n < _FEWEST else min(n, _MOST)


def calibrate(
    recipe: Recipe, models: Models, *, compute: ComputePath, n_tokens: int, clock: Clock = time.perf_counter
) -> Pace:
    """The pace of this machine from steps of `n_tokens`, which `tokens_of_a_step` gives; `clock` gives seconds."""
    measuring = _Measuring(recipe, models, compute=compute, n_tokens=n_tokens, clock=clock)
    facts, batch_tokens, padded = models.facts, float(recipe.training.batch_tokens), models.positions_per_token
    training, costs = {}, {}
    with console.Progress("measuring steps of short models", total=len(models.students) + 1) as bar:
        for name, config in models.students.items():
            costs[name] = measuring.training(config)
            training[name] = padded * costs[name].per_token(facts.students[name], batch_tokens=batch_tokens)
            bar.advance(1)
        forward = teaching = 0.0
        if models.teacher is not None and facts.teacher is not None and costs:
            forward = padded * measuring.forward(models.teacher, n_layers=facts.teacher.layers)
            name, size = next(iter(facts.students.items()))
            context = facts.text.window
            ratio = facts.teacher.training_flops(context=context) / size.training_flops(context=context)
            teaching = training[name] * ratio
        bar.advance(1)
    return Pace(
        where=f"this machine, {compute.device}, {str(compute.weight_dtype).removeprefix('torch.')}, "
        f"steps of {measuring.n_long:,} tokens measured with {_LAYERS[0]} and {_LAYERS[1]} layers",
        student_training=training,
        teacher_forward=forward,
        teacher_training=teaching,
        prompt=forward,
        answer=_WRITING * forward,
    )


def solved(few_s: float, many_s: float, short_s: float, *, long: int, short: int, parameters: int) -> Costs:
    """From steps of one layer with `long` and with `short` tokens, and of three layers with `long`.

    What comes out below 0 is noise, and 0.
    """
    layer_s = max((many_s - few_s) / (_LAYERS[1] - _LAYERS[0]) / long, 0.0)
    whole_s = max((few_s - short_s) / (long - short), 0.0)
    update_s = max(few_s - whole_s * long, 0.0)
    return Costs(update_s=update_s / parameters, token_s=max(whole_s - layer_s, 0.0), layer_s=layer_s)


class _Measuring:
    """The steps of one recipe on one compute path."""

    def __init__(self, recipe: Recipe, models: Models, *, compute: ComputePath, n_tokens: int, clock: Clock) -> None:
        self._clock = clock
        self._recipe, self._compute, self._n_vocabulary = recipe, compute, models.n_vocabulary
        window, longest = models.facts.text.window, recipe.data.max_length
        self._long, self._short = (
            [_batch(n, max_length=longest, window=window, n_vocabulary=models.n_vocabulary)]
            for n in (n_tokens, n_tokens // _PART)
        )
        self.n_long, self.n_short = (found[0].view.ids_BT.numel() for found in (self._long, self._short))

    def training(self, config: Any) -> Costs:
        few, many = _LAYERS
        model = self._made(config, few)
        parameters = sum(p.numel() for p in model.parameters())
        step = self._step(model)
        short_s, few_s = self._seconds(step, self._short), self._seconds(step, self._long, warm=False)
        many_s = self._seconds(self._step(self._made(config, many)), self._long)
        return solved(few_s, many_s, short_s, long=self.n_long, short=self.n_short, parameters=parameters)

    def forward(self, config: Any, *, n_layers: int) -> float:
        """Seconds a token that a teacher of so many layers adds to a step."""
        few, many = _LAYERS
        without_s = self._seconds(self._step(self._made(config, few)), self._long)
        teacher = self._cast(self._made(config, few))
        with_s = self._seconds(self._step(self._made(config, few), teacher=teacher), self._long)
        times = [self._seconds(self._trunk(self._cast(self._made(config, n))), self._long) for n in (few, many)]
        a_layer_s = max((times[1] - times[0]) / (many - few), 0.0)
        return (max(with_s - without_s, 0.0) + (n_layers - few) * a_layer_s) / self.n_long

    def _step(self, model: CausalLM, *, teacher: CausalLM | None = None) -> Callable[[list[Batch]], object]:
        live = LiveTeacher(teacher, n_vocabulary=self._n_vocabulary) if teacher is not None else None
        settings = OptimizerSettings(schedule=constant(1e-6), n_steps=1 << 20)
        trainer = Trainer(
            [Member(name=STUDENT, model=model, terms=_SOFT if live else GROUND_TRUTH, optimizer=settings)],
            teacher=live,
            microbatches=lambda _: [],
            compute=self._compute,
            n_vocabulary=self._n_vocabulary,
            seed=0,
            chunk_positions=self._recipe.training.chunk,
            gradient_checkpointing=self._recipe.training.gradient_checkpointing,
        )
        return trainer.train_step

    def _trunk(self, model: CausalLM) -> Callable[[list[Batch]], object]:
        @torch.inference_mode()
        def ask(batches: list[Batch]) -> None:
            for batch in batches:
                trained_hidden(model, batch.to(self._compute.device).view)

        return ask

    def _seconds(self, action: Callable[[list[Batch]], object], batches: list[Batch], *, warm: bool = True) -> float:
        """Of one call, after one with few tokens that warms up."""
        if warm:
            action(self._short)
        started = self._clock()
        action(batches)
        if self._compute.device.startswith("cuda"):
            torch.cuda.synchronize()
        return self._clock() - started

    def _made(self, config: Any, n_layers: int) -> CausalLM:
        """Random weights in float32."""
        with torch.random.fork_rng(devices=[]):
            made: CausalLM = AutoModelForCausalLM.from_config(shortened(config, n_layers), dtype=torch.float32)
        return made

    def _cast(self, model: CausalLM) -> CausalLM:
        return cast(model, self._compute.weight_dtype, device=self._compute.device).eval()


def _batch(n_tokens: int, *, max_length: int, window: float, n_vocabulary: int) -> Batch:
    """One micro-batch of about so many tokens, in rows of at most `max_length`, with documents of `window` tokens."""
    length = min(n_tokens, max_length)
    shape = (max(1, n_tokens // max_length), length)
    draw = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(n_vocabulary, shape, generator=draw)
    document = max(1, min(int(window), length - 1))  # two in a row at least: a mask, as training has it
    positions_BT = (torch.arange(length) % document).expand(shape)
    return Batch(views={"": TokenView.of(ids_BT, ids_BT, positions_BT)})
