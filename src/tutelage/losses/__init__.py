"""Losses for anybody's own training loop: plain divergences and the chunked loss over hidden states.

    from tutelage import losses
    losses.forward_kl(teacher_logp, student_logp)          # [N, V] log-probabilities -> [N] nats
    total, sums = losses.chunked_loss(hidden, student_head=..., targets=..., ...)      # docs/losses.md: a whole loop

The names are imported on first use, so that reading a recipe needs no torch.
"""

import importlib
from typing import Any

from tutelage.losses.names import DIVERGENCES

_HOMES = {
    **dict.fromkeys(DIVERGENCES, "divergences"),
    "log_softmax": "support",
    "merge_tail": "support",
    "chunked_loss": "chunked",
    "Term": "terms",
    "Feature": "terms",
    "feature_losses": "feature_sums",
    "own_taps": "feature_sums",
    "teachers_taps": "feature_sums",
    "Scale": "terms",
    "scale_of": "terms",
    "Schedule": "schedules",
    "constant": "schedules",
    "refuse_unservable": "stored",
    "Family": "family",
}

__all__ = [*_HOMES, "DIVERGENCES"]


def __getattr__(name: str) -> Any:  # the type of a lazily imported name is that of its home
    if name in _HOMES:
        return getattr(importlib.import_module(f"tutelage.losses.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tutelage.losses' has no attribute '{name}'; it has: {', '.join(__all__)}")
