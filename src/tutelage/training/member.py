"""A model that trains: what it learns from whom, how fast, and in which steps of the run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.losses.schedules import constant
from tutelage.losses.terms import Scale, Term, scale_of
from tutelage.models.adapters import is_adapted
from tutelage.models.grid import rounding_of
from tutelage.training.features import learned_of
from tutelage.training.optim import Optimizer, OptimizerSettings
from tutelage.training.precision import ComputePath, MasterWeights
from tutelage.types import CausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model of a run before it trains.  It takes `optimizer.n_steps` steps, the first of them at `first_step`.

    Its schedules, of the learning rate and of the terms, run over its own steps.  After its last one it stays as it
    is, and others may still learn from it.
    """

    name: str
    model: CausalLM  # start weights in float32 or wider
    terms: tuple[Term, ...]
    optimizer: OptimizerSettings
    first_step: int = 0
    quantize: str | None = None  # the grid that its linear weights are rounded to in every forward pass

    @property
    def last_step(self) -> int:
        """The first step of the run in which it does not train any more."""
        return self.first_step + self.optimizer.n_steps

    def is_training(self, step: int) -> bool:
        """Whether it trains in this step of the run."""
        return self.first_step <= step < self.last_step

    def scales(self, step: int, *, count: int, progress: Mapping[str, float]) -> dict[str, Scale]:
        """Weight * T**k / count of each term at a step of the run; `progress` (0 to 1) of those that teach."""
        n_steps = self.optimizer.n_steps
        own = min(max(step - self.first_step, 0), n_steps - 1)
        scales = {term.name: scale_of(term, step=own, n_steps=n_steps, count=count) for term in self.terms}
        for term in self.terms:
            if term.trust == "progress":
                scale = scales[term.name]
                factor = scale.factor * progress.get(term.source, 0.0)
                scales[term.name] = Scale(factor=factor, temperature=scale.temperature)
        return scales

    def judging_scales(self, step: int) -> dict[str, Scale]:
        """As `scales` of one position, with every weight as it is after its warm-up, and full trust."""
        n_steps = self.optimizer.n_steps
        own = min(max(step - self.first_step, 0), n_steps - 1)
        settled = [replace(term, weight=constant(term.weight.start)) for term in self.terms]
        return {term.name: scale_of(term, step=own, n_steps=n_steps, count=1) for term in settled}


class Beside:
    """What a model's feature terms learn with it, and the optimizer that they have for themselves."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self.parameters = dict(parameters)
        self.optimizer = Optimizer(self.parameters, replace(settings, ema=None))

    def state(self) -> dict[str, Tensor]:
        """Matrices and moments, for a checkpoint."""
        own = {f"weight/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        return own | self.optimizer.state()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"weight/{name}"])
        self.optimizer.load(state)

    def update(self, step: int) -> None:
        """One optimizer step."""
        self.optimizer.update(step)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


class Peer:
    """A member in the course of its training: master weights and optimizer."""

    def __init__(self, member: Member, *, compute: ComputePath, seed: int = 0) -> None:
        """Takes the member's model over: it computes on the compute path from here on."""
        self.member = member
        self.name = member.name
        model = member.model.to(compute.device)
        if not is_adapted(model):
            model.requires_grad_(True)
        rounding = rounding_of(model, member.quantize, name=self.name) if member.quantize is not None else None
        self.masters = MasterWeights(model, weight_dtype=compute.weight_dtype, rounding=rounding)
        self.optimizer = Optimizer(self.masters.parameters, member.optimizer)
        learned = learned_of(member.terms, seed=seed, name=self.name, dtype=compute.weight_dtype, device=compute.device)
        self.beside = Beside(learned, member.optimizer) if learned else None

    def learning_rate(self, step: int) -> float:
        """At a step of the run; 0 outside its own steps."""
        return self.optimizer.learning_rate(step - self.member.first_step) if self.member.is_training(step) else 0.0

    def update(self, step: int) -> None:
        """One optimizer step with the gradients that were collected."""
        self.optimizer.update(step - self.member.first_step)
        self.masters.publish()
        self.masters.zero_grad()
        if self.beside is not None:
            self.beside.update(step - self.member.first_step)
