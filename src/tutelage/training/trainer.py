"""The one trainer: a step that is read first, and a generator of steps.

Co-distillation is this step with a teacher among the models that train, a family is this step with several students,
mutual learning is this step with equals, hard labels are this step with a cross-entropy term and no teacher.  There is
no second trainer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from tutelage.errors import ConfigError, IntegrityError, NumericError
from tutelage.losses.chunked import CHUNK_POSITIONS
from tutelage.losses.family import Family
from tutelage.losses.feature_sums import teachers_taps
from tutelage.losses.stored import metric_name
from tutelage.losses.terms import Scale, Term
from tutelage.randomness import derive_seed
from tutelage.roles import FAMILY, STUDENT, TEACHER, figure_name, figures_of, model_and_term
from tutelage.training.member import Member, Peer
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.types import Batch, CausalLM, LossSums, Tap, Targets

_NEGATIVE_KL = -1e-6
_CROSS_ENTROPIES = ("cross_entropy", "cross_entropy_argmax", "soft_cross_entropy")
_REMEMBERED = 0.95  # of a running loss, by each step
_BESIDE = " beside"  # after a model's name: what its feature terms learn with it


class Teacher(Protocol):
    """Whatever gives soft targets for a batch: a live model, or what was stored of one."""

    def targets(self, batch: Batch) -> Targets:
        """Targets at the batch's trained positions, on the batch's device."""
        ...


@runtime_checkable
class ShowingTeacher(Protocol):
    """A teacher whose targets can hold what it computes inside."""

    def showing(self, taps: Iterable[Tap]) -> Teacher:
        """The same teacher, with `features` at these places in its targets."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One optimizer step; `step` counts finished steps.  Every loss is a mean in nats over `n_trained` positions."""

    step: int
    losses: dict[str, float]  # MODEL/TERM, plain: without weight and T**k
    totals: dict[str, float]  # by model, of those that trained in this step; so the others
    gradient_norms: dict[str, float]
    learning_rates: dict[str, float]
    n_tokens: int
    n_trained: int
    seconds: float

    def losses_of(self, model: str) -> dict[str, float]:
        """TERM: nats, of one model."""
        return figures_of(model, self.losses)


class Trainer:
    """Models that train on one stream of batches; the state between steps is peers, running losses, a step count."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        teacher: Teacher | None,
        microbatches: Callable[[int], list[Batch]],
        compute: ComputePath,
        n_vocabulary: int,
        seed: int,
        name: str = FAMILY,
        chunk_positions: int = CHUNK_POSITIONS,
        gradient_checkpointing: bool = False,
    ) -> None:
        """`teacher` does not train; `name` is what several models are called together.

        `microbatches(step)` is a pure function of the step: so data resume exactly.
        """
        self.compute = compute
        self.peers = {member.name: Peer(member, compute=compute, seed=seed) for member in members}
        assert len(self.peers) == len(members), "two members have one name"
        self.name = next(iter(self.peers)) if len(members) == 1 else name
        self.step = 0
        self.n_steps = max(member.last_step for member in members)
        self.running: dict[str, float] = {}  # a model's cross-entropy on the truth, of the steps so far
        self.family = Family(
            {member.name: member.model for member in members},
            {member.name: member.terms for member in members},
            n_vocabulary=n_vocabulary,
            chunk_positions=chunk_positions,
            learned={peer.name: peer.beside.parameters for peer in self.peers.values() if peer.beside is not None},
        )
        if gradient_checkpointing:
            for member in members:
                member.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self._sources = {t.source for member in members for t in member.terms if t.needs_teacher}
        asked = teacher if TEACHER in self._sources - {*self.peers} else None
        self._teacher = _showing(asked, teachers_taps(term for member in members for term in member.terms))
        self.microbatches = microbatches
        self._n_vocabulary = n_vocabulary
        self._seed = seed

    @property
    def only(self) -> Peer:
        """The model that trains, where there is one."""
        (peer,) = self.peers.values()
        return peer

    @property
    def judged(self) -> list[str]:
        """The models that a run is for: those that nobody learns from, or all where everybody teaches."""
        return [name for name in self.peers if name not in self._sources] or list(self.peers)

    def train_step(self, microbatches: Sequence[Batch]) -> StepStats:
        """One optimizer step.  Scales are fixed before the forward, here and nowhere else: weight * T**k / count."""
        started = time.perf_counter()
        count = sum(batch.n_trained for batch in microbatches)
        self._stop_if_nothing_to_train(count, microbatches)
        training = [peer for peer in self.peers.values() if peer.member.is_training(self.step)]
        if not training:  # a teacher that has stopped, students that have not begun
            return self._passed_over(count, started)
        scales = self._scales(count, training)
        self.family.set_training(scales)
        sums: LossSums | None = None
        for number, batch in enumerate(microbatches):
            batch = batch.to(self.compute.device)
            loss_sums = self.family(batch, self._targets(batch), scales, before=partial(self._seed_dropout, number))
            loss_sums.total.backward()
            for peer in training:
                peer.masters.collect()
            sums = loss_sums.detach() if sums is None else sums + loss_sums.detach()
        assert sums is not None
        norms = {peer.name: peer.optimizer.clip() for peer in training}
        norms |= {peer.name + _BESIDE: peer.beside.optimizer.clip() for peer in training if peer.beside is not None}
        stats = self._stats(sums, scales=scales, norms=norms, microbatches=microbatches)
        self._stop_if_not_possible(stats, microbatches)
        for peer in training:  # after every backward: nobody learns from weights of the next step
            peer.update(self.step)
        self._remember(stats)
        self.step += 1
        return _timed(stats, seconds=time.perf_counter() - started)

    def _passed_over(self, count: int, started: float) -> StepStats:
        self.step += 1
        return StepStats(
            step=self.step, losses={}, totals={}, gradient_norms={}, learning_rates={}, n_tokens=0, n_trained=count,
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def steps(self) -> Iterator[StepStats]:
        """Train to the end, one step an item; the caller may stop, look, evaluate and save between items."""
        while self.step < self.n_steps:
            yield self.train_step(self.microbatches(self.step))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Mean of each term of each model, in nats, over batches of held-out text at the present step's temperature.

        Of the moving average of the weights where there is one: it is what a run saves.
        """
        scales = self._scales(1, self.peers.values())
        self.family.set_training(())
        sums: LossSums | None = None
        with self._averages_in_place():
            for batch in batches:
                batch = batch.to(self.compute.device)
                loss_sums = self.family(batch, self._targets(batch), scales)
                sums = loss_sums if sums is None else sums + loss_sums
        if sums is None or not all(sums.counts.values()):
            raise IntegrityError(
                "NO_SCORED_TOKENS", "0 scored tokens in the held-out rows; check the mask and max_length"
            )
        return {name: float(value) / sums.counts[name] for name, value in sums.sums.items()}

    def objective(self, losses: Mapping[str, float]) -> float:
        """The weighted sum of mean losses, by the weights after their warm-up: what held-out evaluations compare.

        With the weight of the present step a loss would seem to rise while a weight does.  `losses` as `evaluate` gives
        them: a forward KL counts under the name that its targets gave it.  Of a family it is the sum over `judged`.
        """
        members = [self.peers[name].member for name in self.judged]
        return sum(_weighted(losses, m.name, m.terms, m.judging_scales(self.step)) for m in members)

    @property
    def all_have_begun(self) -> bool:
        """Whether every model has trained at least once: before that, held-out losses cannot be compared."""
        return all(peer.member.first_step < self.step for peer in self.peers.values())

    @contextmanager
    def _averages_in_place(self) -> Iterator[None]:
        """The models compute with the averaged weights inside, and with their own, bitwise, afterwards."""
        with ExitStack() as stack:
            for peer in self.peers.values():
                if peer.optimizer.average is not None:
                    own = {name: weight.clone() for name, weight in peer.masters.state().items()}
                    peer.masters.load(peer.optimizer.average)
                    stack.callback(peer.masters.load, own)
            yield

    def _targets(self, batch: Batch) -> dict[str, Targets]:
        return {TEACHER: self._teacher.targets(batch)} if self._teacher is not None else {}

    def _seed_dropout(self, number: int, name: str) -> None:
        """Each model has its own stream, by its name: who else trains changes nothing."""
        torch.manual_seed(derive_seed(self._seed, "dropout", name, self.step, number))

    def _scales(self, count: int, peers: Iterable[Peer]) -> dict[str, dict[str, Scale]]:
        step = min(self.step, self.n_steps - 1)
        progress = {name: self._progress(name) for name in self.peers}
        return {peer.name: peer.member.scales(step, count=count, progress=progress) for peer in peers}

    def _progress(self, name: str) -> float:
        """How far a model is from the uniform distribution (0) to knowing all (1), by its running loss."""
        nothing = log(self._n_vocabulary)
        return min(max(1.0 - self.running.get(name, nothing) / nothing, 0.0), 1.0)

    def _remember(self, stats: StepStats) -> None:
        for name in self.peers:
            now = stats.losses.get(f"{name}/cross_entropy")
            if now is not None:
                before = self.running.get(name, now)
                self.running[name] = _REMEMBERED * before + (1.0 - _REMEMBERED) * now

    def _stop_if_nothing_to_train(self, count: int, microbatches: Sequence[Batch]) -> None:
        if count == 0:
            rows = ", ".join(key[:12] for batch in microbatches for key in batch.row_keys[:3])
            raise IntegrityError(
                "NO_TOKENS",
                f"0 trainable tokens in step {self.step} (rows {rows}); truncation removed every answer? "
                "raise data.max_length",
            )

    def _stats(
        self,
        sums: LossSums,
        *,
        scales: Mapping[str, Mapping[str, Scale]],
        norms: Mapping[str, Tensor],
        microbatches: Sequence[Batch],
    ) -> StepStats:
        names = list(sums.sums)
        packed = torch.stack([v.double() for v in (*norms.values(), *(sums.sums[n] for n in names))])
        values = packed.tolist()  # the step's only transfer from the device
        plain = dict(zip(names, values[len(norms) :], strict=True))
        return StepStats(
            step=self.step + 1,
            losses={n: v / sums.counts[n] for n, v in plain.items()},
            totals={n: _weighted(plain, n, self.peers[n].member.terms, scales[n]) for n in scales},
            gradient_norms=dict(zip(norms, values, strict=False)),
            learning_rates={n: self.peers[n].learning_rate(self.step) for n in scales},
            n_tokens=sum(batch.view.ids_BT.numel() for batch in microbatches),
            n_trained=next(iter(sums.counts.values())),
            seconds=0.0,
        )

    def _stop_if_not_possible(self, stats: StepStats, microbatches: Sequence[Batch]) -> None:
        """Before the update: a number that is not finite, or a negative KL, leaves the weights as they are."""
        values = {f"{n}/total": v for n, v in stats.totals.items()}
        values |= {f"{n}/gradient_norm": v for n, v in stats.gradient_norms.items()} | stats.losses
        bad = [f"{name} {value}" for name, value in values.items() if not abs(value) < float("inf")]
        if bad:
            self._drop_gradients()
            rows = ", ".join(key[:12] for batch in microbatches for key in batch.row_keys[:4])
            raise NumericError(
                "NONFINITE",
                f"{', '.join(bad)} at step {self.step}, rows [{rows}]; weights unchanged; {self._lower(bad)} or look "
                "at the rows",
            )
        for name, value in stats.losses.items():
            if model_and_term(name)[1].split(".")[0] not in _CROSS_ENTROPIES and value < _NEGATIVE_KL:
                self._drop_gradients()
                raise NumericError(
                    "NEGATIVE_KL",
                    f"{name} {value:.3g} at step {self.step}; weights unchanged, rerun with --debug and report it",
                )

    def _lower(self, bad: Sequence[str]) -> str:
        if len(self.peers) == 1:
            return "lower training.learning_rate"
        return f"lower the learning rate of {', '.join(dict.fromkeys(_whose(name) for name in bad))}"

    def _drop_gradients(self) -> None:
        for peer in self.peers.values():
            peer.masters.zero_grad()
            if peer.beside is not None:
                peer.beside.zero_grad()


def _can_show(teacher: object) -> TypeGuard[ShowingTeacher]:
    return isinstance(teacher, ShowingTeacher)


def _showing(teacher: Teacher | None, taps: Sequence[Tap]) -> Teacher | None:
    """The teacher, whose targets hold what it computes at these places where there are any."""
    if not taps:
        return teacher
    if not _can_show(teacher):
        raise ConfigError(
            "FEATURES", "terms with features need one live teacher; give teacher.model, or leave them out"
        )
    return teacher.showing(taps)


def one_model(
    model: CausalLM,
    *,
    terms: Sequence[Term],
    optimizer: OptimizerSettings,
    teacher: Teacher | None,
    microbatches: Callable[[int], list[Batch]],
    compute: ComputePath,
    n_vocabulary: int,
    seed: int,
    name: str = STUDENT,
    chunk_positions: int = CHUNK_POSITIONS,
    gradient_checkpointing: bool = False,
) -> Trainer:
    """A trainer with one model."""
    member = Member(name=name, model=model, terms=tuple(terms), optimizer=optimizer)
    return Trainer(
        [member], teacher=teacher, microbatches=microbatches, compute=compute, n_vocabulary=n_vocabulary, seed=seed,
        chunk_positions=chunk_positions, gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip


def _weighted(losses: Mapping[str, float], model: str, terms: Sequence[Term], scales: Mapping[str, Scale]) -> float:
    """The sum of a model's terms, each by its factor; a forward KL under the name that its targets gave it."""
    total = 0.0
    for term in terms:
        names = (figure_name(model, metric_name(term, kind=kind)) for kind in (None, "sample"))
        total += scales[term.name].factor * next(losses[name] for name in names if name in losses)
    return total


def _whose(figure: str) -> str:
    return model_and_term(figure)[0].removesuffix(_BESIDE)


def _timed(stats: StepStats, *, seconds: float) -> StepStats:
    values = {name: getattr(stats, name) for name in StepStats.__dataclass_fields__}
    return StepStats(**{**values, "seconds": seconds})
