"""The one trainer: a step that is read first, and a generator of steps.

Co-distillation is the same step with a teacher that also has an optimizer, a family is the same step with several
students, hard labels are the same step with a cross-entropy term and no teacher.  There is no second trainer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tutelage.errors import IntegrityError, NumericError
from tutelage.losses.chunked import CHUNK_POSITIONS
from tutelage.losses.family import Family
from tutelage.losses.stored import metric_name
from tutelage.losses.terms import Scale, Term, scale_of
from tutelage.randomness import derive_seed
from tutelage.training.optim import Optimizer, OptimizerSettings
from tutelage.training.precision import ComputePath, MasterWeights
from tutelage.types import Batch, CausalLM, LossSums, Targets

_NEGATIVE_KL = -1e-6
_CROSS_ENTROPIES = ("/cross_entropy", "/cross_entropy_argmax", "/soft_cross_entropy")


class Teacher(Protocol):
    """Whatever gives soft targets for a batch: a live model, or what was stored of one."""

    def targets(self, batch: Batch) -> Targets:
        """Targets at the batch's trained positions, on the batch's device."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One optimizer step; `step` counts finished steps.  Every loss is a mean in nats over `n_trained` positions."""

    step: int
    losses: dict[str, float]  # MODEL/TERM, plain: without weight and T**k
    total: float
    gradient_norm: float
    learning_rate: float
    n_tokens: int
    n_trained: int
    seconds: float


class Trainer:
    """One student, its optimizer and its terms; the state between steps is weights, moments and a step count."""

    def __init__(
        self,
        student: CausalLM,
        *,
        terms: Sequence[Term],
        teacher: Teacher | None,
        microbatches: Callable[[int], list[Batch]],
        compute: ComputePath,
        optimizer: OptimizerSettings,
        n_vocabulary: int,
        seed: int,
        name: str = "student",
        chunk_positions: int = CHUNK_POSITIONS,
        gradient_checkpointing: bool = False,
    ) -> None:
        """`microbatches(step)` is a pure function of the step: that is the exact resume of the data."""
        self.compute = compute
        self.terms = tuple(terms)
        self.name = name
        self.step = 0
        self.masters = MasterWeights(student.to(compute.device).requires_grad_(True), weight_dtype=compute.weight_dtype)
        self.optimizer = Optimizer(self.masters.parameters, optimizer)
        self.family = Family(student, self.terms, n_vocabulary=n_vocabulary, name=name, chunk_positions=chunk_positions)
        if gradient_checkpointing:
            student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self._teacher = teacher if any(term.needs_teacher for term in self.terms) else None
        self.microbatches = microbatches
        self._n_steps = optimizer.n_steps
        self._seed = seed

    def train_step(self, microbatches: Sequence[Batch]) -> StepStats:
        """One optimizer step.  Scales are fixed before the forward, here and nowhere else: weight * T**k / count."""
        started = time.perf_counter()
        count = sum(batch.n_trained for batch in microbatches)
        self._stop_if_nothing_to_train(count, microbatches)
        scales = self._scales(count)
        torch.manual_seed(derive_seed(self._seed, "dropout", self.name, self.step))
        self.family.train()
        sums: LossSums | None = None
        for batch in microbatches:
            batch = batch.to(self.compute.device)
            targets = self._teacher.targets(batch) if self._teacher is not None else None
            loss_sums = self.family(batch, targets, scales)
            loss_sums.total.backward()
            self.masters.collect()
            sums = loss_sums.detach() if sums is None else sums + loss_sums.detach()
        assert sums is not None
        gradient_norm = self.optimizer.clip()
        stats = self._stats(sums, scales=scales, gradient_norm=gradient_norm, microbatches=microbatches)
        self._stop_if_not_possible(stats, microbatches)
        self.optimizer.update(self.step)
        self.masters.publish()
        self.masters.zero_grad()
        self.step += 1
        return _timed(stats, seconds=time.perf_counter() - started)

    def steps(self) -> Iterator[StepStats]:
        """Train to the end, one step an item; the caller may stop, look, evaluate and save between items."""
        while self.step < self._n_steps:
            yield self.train_step(self.microbatches(self.step))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Mean of each term, in nats, over batches of held-out text at the present step's temperature.

        Of the moving average of the weights where there is one: it is what a run saves.
        """
        self.family.eval()
        scales = self._scales(1)
        sums: LossSums | None = None
        with self._average_in_place():
            for batch in batches:
                batch = batch.to(self.compute.device)
                targets = self._teacher.targets(batch) if self._teacher is not None else None
                loss_sums = self.family(batch, targets, scales)
                sums = loss_sums if sums is None else sums + loss_sums
        if sums is None or not all(sums.counts.values()):
            raise IntegrityError(
                "NO_SCORED_TOKENS", "0 scored tokens in the held-out rows; check the mask and max_length"
            )
        return {name: float(value) / sums.counts[name] for name, value in sums.sums.items()}

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """The model computes with the averaged weights inside, and with its own, bitwise, afterwards."""
        if self.optimizer.average is None:
            yield
            return
        own = {name: weight.clone() for name, weight in self.masters.state().items()}
        self.masters.load(self.optimizer.average)
        try:
            yield
        finally:
            self.masters.load(own)

    def objective(self, losses: dict[str, float]) -> float:
        """The weighted sum of mean losses as it is trained at the present step: what held-out evaluations compare.

        `losses` as `evaluate` gives them: a forward KL counts under the name that its targets gave it.
        """
        scales, total = self._scales(1), 0.0
        for term in self.terms:
            names = (f"{self.name}/{metric_name(term, kind=kind)}" for kind in (None, "sample"))
            total += scales[term.name].factor * next(losses[name] for name in names if name in losses)
        return total

    def _scales(self, count: int) -> dict[str, Scale]:
        step = min(self.step, self._n_steps - 1)
        return {t.name: scale_of(t, step=step, n_steps=self._n_steps, count=count) for t in self.terms}

    def _stop_if_nothing_to_train(self, count: int, microbatches: Sequence[Batch]) -> None:
        if count == 0:
            rows = ", ".join(key[:12] for batch in microbatches for key in batch.row_keys[:3])
            raise IntegrityError(
                "NO_TOKENS",
                f"0 trainable tokens in step {self.step} (rows {rows}); truncation removed every answer? "
                "raise data.max_length",
            )

    def _stats(
        self, sums: LossSums, *, scales: dict[str, Scale], gradient_norm: Tensor, microbatches: Sequence[Batch]
    ) -> StepStats:
        names = list(sums.sums)
        packed = torch.stack([sums.total.double(), gradient_norm.double(), *(sums.sums[n].double() for n in names)])
        total, norm, *values = packed.tolist()  # the step's only transfer from the device
        return StepStats(
            step=self.step + 1,
            losses={n: v / sums.counts[n] for n, v in zip(names, values, strict=True)},
            total=total,
            gradient_norm=norm,
            learning_rate=self.optimizer.learning_rate(self.step),
            n_tokens=sum(batch.view.ids_BT.numel() for batch in microbatches),
            n_trained=next(iter(sums.counts.values())),
            seconds=0.0,
        )

    def _stop_if_not_possible(self, stats: StepStats, microbatches: Sequence[Batch]) -> None:
        """Before the update: a number that is not finite, or a negative KL, leaves the weights as they are."""
        values = {"total": stats.total, "grad norm": stats.gradient_norm, **stats.losses}
        bad = [f"{name} {value}" for name, value in values.items() if not abs(value) < float("inf")]
        if bad:
            self.masters.zero_grad()
            rows = ", ".join(key[:12] for batch in microbatches for key in batch.row_keys[:4])
            raise NumericError(
                "NONFINITE",
                f"{', '.join(bad)} at step {self.step}, rows [{rows}]; weights unchanged; "
                "lower training.learning_rate or look at the rows",
            )
        for name, value in stats.losses.items():
            if not name.endswith(_CROSS_ENTROPIES) and value < _NEGATIVE_KL:
                self.masters.zero_grad()
                raise NumericError(
                    "NEGATIVE_KL",
                    f"{name} {value:.3g} at step {self.step}; weights unchanged, rerun with --debug and report it",
                )


def _timed(stats: StepStats, *, seconds: float) -> StepStats:
    values = {name: getattr(stats, name) for name in StepStats.__dataclass_fields__}
    return StepStats(**{**values, "seconds": seconds})
