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
from tutelage.models.placement import device_of
from tutelage.models.taps import tapped
from tutelage.types import Batch, DenseTargets, Head, Tap


class LiveTeacher:
    """A frozen model that answers with hidden states and its head; never in train mode, never with gradients."""

    def __init__(self, model: nn.Module, *, n_vocabulary: int, answers_on: torch.device | str | None = None) -> None:
        """`answers_on` is where the answers are moved to when the model lies elsewhere; None: they stay with it."""
        self.model = model.eval().requires_grad_(False)
        self._n_vocabulary = n_vocabulary
        self._answers_on = answers_on
        self._moved_head: Head | None = None
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
            hidden_ND = trained_hidden(self.model, batch.view.to(device_of(self.model)))
        answers = DenseTargets(hidden_ND=hidden_ND, head=self._head(), features=found)
        return answers.to(self._answers_on) if self._answers_on is not None else answers

    def _head(self) -> Head:
        """The head where the answers go; moved there once, since it stays as it is."""
        if self._moved_head is not None:
            return self._moved_head
        head = head_of(self.model, n_vocabulary=self._n_vocabulary)
        if self._answers_on is None:
            return head
        moved = head.to(self._answers_on)
        if moved.weight_VD is not head.weight_VD:
            self._moved_head = moved
        return moved

    def stop_if_changed(self, *, step: int) -> None:
        """Raise IntegrityError[TEACHER_CHANGED] when a weight differs from when the teacher was handed over."""
        now = weights_fingerprint(self.model)
        if now != self.fingerprint or self.model.training:
            what = "is in train mode" if self.model.training else f"sha {self.fingerprint[:8]} -> {now[:8]}"
            raise IntegrityError(
                "TEACHER_CHANGED", f"teacher {what} at step {step}; something else trains it: hand over a copy"
            )
