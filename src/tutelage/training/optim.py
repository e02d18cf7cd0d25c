"""AdamW over the master weights, with a learning-rate schedule, clipping and weight averaging."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.losses.schedules import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW (arXiv:1711.05101); weight decay applies to matrices only."""

    schedule: Schedule
    n_steps: int
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    ema: float | None = None


class Optimizer:
    """The optimizer of one model; its state is a flat dictionary of tensors by parameter name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self._parameters = dict(parameters)
        self._settings = settings
        matrices = [p for p in self._parameters.values() if p.ndim >= 2]
        others = [p for p in self._parameters.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        device = next(iter(self._parameters.values())).device.type
        self._adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=settings.schedule.start,
            betas=settings.betas,
            eps=settings.eps,
            fused=device in ("cpu", "cuda"),
        )
        self.average = (
            {n: p.detach().clone() for n, p in self._parameters.items()} if settings.ema is not None else None
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of one step; the end value of a decay would be reached one step after the last."""
        return self._settings.schedule.value(step, n_steps=self._settings.n_steps + 1)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the gradients to at most `max_grad_norm` together; returns their norm before (0-dim)."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), self._settings.max_grad_norm, norm)
        return norm

    @torch.no_grad()
    def update(self, step: int) -> None:
        """One AdamW step at the step's learning rate, then the moving average of the weights."""
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate(step)
        self._adamw.step()
        if self.average is not None and self._settings.ema is not None:
            for name, parameter in self._parameters.items():
                self.average[name].lerp_(parameter.detach(), 1.0 - self._settings.ema)

    def state(self) -> dict[str, Tensor]:
        """Moments and counters as `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`, and `average/NAME`."""
        state = {
            f"{key}/{name}": value
            for name, parameter in self._parameters.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }
        if self.average is not None:
            state |= {f"average/{name}": value for name, value in self.average.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state`; every entry of every parameter has to be there (KeyError is our own bug)."""
        keys = ("step", "exp_avg", "exp_avg_sq")
        for name, parameter in self._parameters.items():
            if f"step/{name}" in state:
                self._adamw.state[parameter] = {k: state[f"{k}/{name}"].to(_home(k, parameter)) for k in keys}
            if self.average is not None:
                self.average[name].copy_(state[f"average/{name}"])


def _home(key: str, parameter: nn.Parameter) -> torch.device:
    """Where AdamW keeps an entry: with the parameter (the fused form keeps the step there too)."""
    return parameter.device
