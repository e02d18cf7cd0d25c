"""`teacher: {model: …}`: the teacher is in memory and is asked at every step.

Shape legend: N trained positions, D hidden size.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from tutelage.errors import IntegrityError
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import head_of, trained_hidden
from tutelage.models.taps import tapped
from tutelage.types import Batch, DenseTargets, Tap


class LiveTeacher:
    """A frozen model that answers with hidden states and its head; never in train mode, never with gradients."""

    def __init__(self, model: nn.Module, *, n_vocabulary: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self._n_vocabulary = n_vocabulary
        self.fingerprint = weights_fingerprint(model)
        self._taps: tuple[Tap, ...] = ()

    def showing(self, taps: Iterable[Tap]) -> "LiveTeacher":
        """The same teacher, whose targets also hold what it computes at these places."""
        shown = copy.copy(self)
        shown._taps = tuple(taps)
        return shown

    @torch.no_grad()
    def targets(self, batch: Batch) -> DenseTargets:
        """Hidden states [N, D] at the batch's trained positions, with the head and the features shown; no graph."""
        with tapped(self.model, self._taps) as found:
            hidden_ND = trained_hidden(self.model, batch.view)
        head = head_of(self.model, n_vocabulary=self._n_vocabulary)
        return DenseTargets(hidden_ND=hidden_ND, head=head, features=found)

    def stop_if_changed(self, *, step: int) -> None:
        """Raise IntegrityError[TEACHER_CHANGED] when a weight differs from when the teacher was handed over."""
        now = weights_fingerprint(self.model)
        if now != self.fingerprint or self.model.training:
            what = "is in train mode" if self.model.training else f"sha {self.fingerprint[:8]} -> {now[:8]}"
            raise IntegrityError(
                "TEACHER_CHANGED", f"teacher {what} at step {step}; something else trains it: hand over a copy"
            )
