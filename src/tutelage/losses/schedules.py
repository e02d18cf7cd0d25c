"""Values that change over a run: learning rate, loss weight, temperature.  Pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine", "wsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A value over `n_steps` optimizer steps; `warmup` and `decay` are shares of the run.

    After the warm-up from 0 (if any) the value is `start`; `linear` and `cosine` then go to `end` at the last step;
    `wsd` (warm-up, stable, decay; arXiv:2404.06395) stays and goes linearly to `end` over the last `decay` share.
    """

    kind: ScheduleKind = "constant"
    start: float = 1.0
    end: float = 0.0
    warmup: float = 0.0
    decay: float = 0.2

    def value(self, step: int, *, n_steps: int) -> float:
        """The value of optimizer step `step` (0-based)."""
        n_warmup = round(self.warmup * n_steps)
        if step < n_warmup:
            return self.start * (step + 1) / n_warmup
        if self.kind == "constant":
            return self.start
        if self.kind == "wsd":
            n_decay = max(1, round(self.decay * n_steps))
            share = max(0.0, (step - (n_steps - n_decay) + 1) / n_decay)
        else:
            share = (step - n_warmup) / max(1, n_steps - 1 - n_warmup)
        share = min(share, 1.0)
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * share))
        return self.start + (self.end - self.start) * share


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule(kind="constant", start=value, end=value)
