"""Which of the teacher's layers matter: measured by what the output loses when they are skipped.

Greedy: the layer whose removal costs least KL to the whole teacher is dropped, again and again.  Measured on SmolLM2
(30 -> 20 layers) this starts a student at 1.4 nats where every-second-layer starts above 4.  A candidate is only run
from its first changed layer on, and only the most promising candidates of the last round are measured again.

Shape legend: N positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.losses.support import log_softmax
from tutelage.models.head import head_of, trained_hidden
from tutelage.models.layers import decoder_layers, passed_through, replaced
from tutelage.types import Batch, CausalLM, Head

_REMEASURED = 5  # candidates of the last round that are measured again
_COMPARED = 256  # positions at which distributions are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """The layers kept, and what each removal cost: (layer, KL to the whole teacher after it, in nats)."""

    kept: tuple[int, ...]
    dropped: tuple[tuple[int, float], ...]
    n_positions: int


@torch.no_grad()
def choose_layers(
    teacher: CausalLM,
    batches: Sequence[Batch],
    *,
    n_kept: int,
    n_vocabulary: int,
    progress: Callable[[int, int], None] | None = None,
) -> LayerChoice:
    """The `n_kept` layers to keep, by measurement on a few hundred positions of the training data.

    Deterministic.  `progress(done, total)` counts dropped layers.
    """
    _, layers = decoder_layers(teacher)
    n_drop = len(layers) - n_kept
    probe = _Probe(teacher, list(layers), batches, head=head_of(teacher, n_vocabulary=n_vocabulary))
    dropped: list[tuple[int, float]] = []
    last_cost = dict.fromkeys(range(len(layers)), 0.0)
    with probe.running():
        for done in range(n_drop):
            gone = {layer for layer, _ in dropped}
            prefix = probe.prefix(gone)
            everyone = sorted((i for i in last_cost if i not in gone), key=lambda i: (last_cost[i], i))
            candidates = everyone if done == 0 else everyone[:_REMEASURED]
            for layer in candidates:
                last_cost[layer] = probe.cost(gone | {layer}, start=layer, prefix=prefix)
            best = min(candidates, key=lambda i: (last_cost[i], i))
            dropped.append((best, last_cost[best]))
            if progress is not None:
                progress(done + 1, n_drop)
    gone = {layer for layer, _ in dropped}
    kept = tuple(i for i in range(len(layers)) if i not in gone)
    return LayerChoice(kept=kept, dropped=tuple(dropped), n_positions=probe.n_positions)


Prefix = list[list[Any]]  # for each batch, the input of each layer


class _Probe:
    """Runs the teacher with layers skipped, from any layer on, and compares with the whole teacher."""

    def __init__(self, model: CausalLM, layers: list[nn.Module], batches: Sequence[Batch], *, head: Head) -> None:
        self._model = model
        self._layers = layers
        self._batches = batches
        self._head = head
        self._skipped: set[int] = set()
        self._start = 0
        self._resume_from: Any = None
        self._inputs: list[Any] | None = None
        self._whole: list[_Whole] = []
        self._returned: dict[int, Any] = {}  # its form, without the values
        n_trained = sum(batch.n_trained for batch in batches)
        self._stride = max(1, n_trained // _COMPARED)
        self.n_positions = sum(len(range(0, batch.n_trained, self._stride)) for batch in batches)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Layers become skippable inside, and are as before outside."""
        with replaced(self._layers, self._skippable):
            self._whole = [_Whole.of(self._head.logits(self._compared(batch))) for batch in self._batches]
            yield

    def _skippable(self, index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            if index == self._start and self._resume_from is not None:
                hidden = self._resume_from
            if self._inputs is not None:
                self._inputs.append(hidden)
            if index < self._start or index in self._skipped:
                return passed_through(hidden, like=self._returned[index])
            output = original(hidden, *args, **kwargs)
            # The first run, of the whole teacher, comes by here: from then on it is known what a layer returns.
            self._returned.setdefault(index, tuple(None for _ in output) if isinstance(output, tuple) else None)
            return output

        return forward

    def prefix(self, skipped: set[int]) -> Prefix:
        """The input of every layer when `skipped` are left out."""
        self._skipped, self._start, self._resume_from = skipped, 0, None
        inputs: Prefix = []
        for batch in self._batches:
            self._inputs = []
            trained_hidden(self._model, batch.view)
            inputs.append(self._inputs)
        self._inputs = None
        return inputs

    def cost(self, skipped: set[int], *, start: int, prefix: Prefix) -> float:
        """Mean KL(whole teacher || without `skipped`) in nats; layers before `start` are as in `prefix`."""
        self._skipped, self._start = skipped, start
        total = 0.0
        for batch, inputs, whole in zip(self._batches, prefix, self._whole, strict=True):
            self._resume_from = inputs[start]
            total += whole.kl(self._head.logits(self._compared(batch)))
        self._start, self._resume_from = 0, None
        return total / self.n_positions

    def _compared(self, batch: Batch) -> Tensor:
        """Hidden states [N, D] at every stride-th trained position."""
        return trained_hidden(self._model, batch.view)[:: self._stride]


@dataclass(frozen=True, slots=True)
class _Whole:
    """The whole teacher's distributions, kept so that a comparison costs one product and one logsumexp."""

    probability_NV: Tensor
    negative_entropy: float

    @classmethod
    def of(cls, logits_NV: Tensor) -> "_Whole":
        """From the teacher's logits."""
        logp_NV = log_softmax(logits_NV)
        return cls(logp_NV.exp(), float((logp_NV.exp() * logp_NV).double().sum()))

    def kl(self, logits_NV: Tensor) -> float:
        """Sum over positions of KL(whole teacher || softmax(logits)), in nats."""
        cross = (self.probability_NV * logits_NV).sum(-1) - logits_NV.logsumexp(-1)
        return self.negative_entropy - float(cross.double().sum())
