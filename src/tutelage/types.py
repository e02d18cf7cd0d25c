"""The values that travel between rooms.

Shape legend: B rows of a batch, T positions of a row, N trained positions of a batch (B and T flattened, ignored ones
dropped), V vocabulary (the tokenizer's real size), D hidden size, K kept entries of every position, M entries of all
positions one after the other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

IGNORED = -100
# A causal language model of transformers: an nn.Module with config, base_model and get_output_embeddings(), an
# interface that no stub describes.
CausalLM: TypeAlias = Any


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; a copy to the CPU is waited for, or the CPU would read what is not written yet."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One batch as one tokenizer sees it.

    `labels_BT` has the alignment of `ids_BT` (Hugging Face convention): the hidden state at position t predicts
    `labels[t + 1]`, and -100 is never predicted.  The shift is done once, by `of`; everything later works on the N
    trained positions: `index_N` points into the flattened [B*T] hidden states, `next_ids_N` is the true next token.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor | None  # position inside its document; None: every row is one document from position 0
    index_N: Tensor
    next_ids_N: Tensor

    @classmethod
    def of(cls, ids_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor | None = None) -> "TokenView":
        """A view with its trained positions worked out; int64 tensors of shape [B, T]."""
        shifted_BT = torch.full_like(labels_BT, IGNORED)
        shifted_BT[:, :-1] = labels_BT[:, 1:]
        index_N = (shifted_BT.reshape(-1) != IGNORED).nonzero().squeeze(-1)
        return cls(
            ids_BT=ids_BT,
            labels_BT=labels_BT,
            positions_BT=positions_BT,
            index_N=index_N,
            next_ids_N=shifted_BT.reshape(-1)[index_N],
        )

    def to(self, device: torch.device | str) -> "TokenView":
        """The same view on a device."""
        return TokenView(
            ids_BT=_moved(self.ids_BT, device),
            labels_BT=_moved(self.labels_BT, device),
            positions_BT=_moved(self.positions_BT, device) if self.positions_BT is not None else None,
            index_N=_moved(self.index_N, device),
            next_ids_N=_moved(self.next_ids_N, device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch: a view for each tokenizer fingerprint (one today), and the keys of its rows.

    `row_visits` says how many epochs came before this one, for each row (a cache with several draws gives another one
    each time); empty: none.
    """

    views: dict[str, TokenView]
    row_keys: tuple[str, ...] = ()
    row_visits: tuple[int, ...] = ()

    @property
    def view(self) -> TokenView:
        """The only view; with two tokenizers ask `views` by fingerprint."""
        (view,) = self.views.values()
        return view

    @property
    def n_trained(self) -> int:
        """Trained positions of the only view."""
        return int(self.view.index_N.numel())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        views = {k: v.to(device) for k, v in self.views.items()}
        return Batch(views=views, row_keys=self.row_keys, row_visits=self.row_visits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What turns hidden states into logits: logits = soft_cap * tanh(scale * (h @ W.T + b) / soft_cap).

    `n_vocabulary` is the tokenizer's real size: rows of W beyond it are padding and never take part, which equals
    masking them with -inf.
    """

    weight_VD: Tensor  # [rows >= n_vocabulary, D]
    bias_V: Tensor | None
    n_vocabulary: int
    scale: float = 1.0
    soft_cap: float | None = None
    fingerprint: str = ""

    def to(self, device: torch.device | str) -> "Head":
        """The same on a device: the same tensors where they lie there already."""
        bias_V = self.bias_V.to(device) if self.bias_V is not None else None
        return replace(self, weight_VD=self.weight_VD.to(device), bias_V=bias_V)

    def product(self, hidden_ND: Tensor, *, out_NV: Tensor | None = None) -> Tensor:
        """The bare product with the real rows, shape [N, V], in the dtype of the weight.

        `out_NV` receives it (without a graph): fresh memory of this size costs as much as the product itself.
        """
        weight_VD = self.weight_VD[: self.n_vocabulary]
        bias_V = self.bias_V[: self.n_vocabulary] if self.bias_V is not None else None
        hidden_ND = hidden_ND.to(weight_VD.dtype)
        if out_NV is None:
            return torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
        if bias_V is not None:
            return torch.addmm(bias_V, hidden_ND, weight_VD.t(), out=out_NV)
        return torch.mm(hidden_ND, weight_VD.t(), out=out_NV)

    def finish(self, product_NV: Tensor) -> Tensor:
        """Logits [N, V] in float32 or wider, scaled and soft-capped as the model's config says."""
        logits_NV = product_NV.to(torch.promote_types(product_NV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.soft_cap is not None:
            logits_NV = self.soft_cap * torch.tanh(logits_NV / self.soft_cap)
        return logits_NV

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in float32 or wider."""
        return self.finish(self.product(hidden_ND))


Part: TypeAlias = Literal["output", "query", "key", "value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A place inside a model: what decoder layer `layer` puts out, or its attention's queries, keys or values."""

    layer: int
    part: Part = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTargets:
    """The teacher's whole distribution at each trained position, as hidden states and a head.

    Logits are made chunk by chunk inside the loss, never whole.  `features` are what a live teacher has at the places
    that it was asked for, [B, T, width] each.
    """

    hidden_ND: Tensor
    head: Head
    features: Mapping[Tap, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "DenseTargets":
        """The same on a device, the head too."""
        features = {tap: _moved(tensor, device) for tap, tensor in self.features.items()}
        return DenseTargets(hidden_ND=_moved(self.hidden_ND, device), head=self.head.to(device), features=features)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTargets:
    """The teacher's whole distribution as stored logits (or log-probabilities, which are logits too): small caches."""

    logits_NV: Tensor

    def to(self, device: torch.device | str) -> "LogitTargets":
        """The same on a device."""
        return LogitTargets(logits_NV=_moved(self.logits_NV, device))


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureTargets:
    """Several teachers' whole distributions, averaged in probability at temperature 1 when a chunk asks for them."""

    parts: tuple[DenseTargets, ...]
    weights: tuple[float, ...]  # > 0, their sum is 1

    def logp(self, chunk: slice) -> Tensor:
        """Log-probabilities of the average at the positions `chunk`, shape [n, V], nats, float32 or wider."""
        each = [
            torch.log_softmax(part.head.logits(part.hidden_ND[chunk]), -1) + math.log(weight)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return torch.stack(each).logsumexp(0)

    def to(self, device: torch.device | str) -> "MixtureTargets":
        """The same on a device."""
        return MixtureTargets(parts=tuple(part.to(device) for part in self.parts), weights=self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTargets:
    """An unbiased sample of the teacher's distribution at each trained position: a few weighted tokens.

    The entries of position n are `offsets[n]:offsets[n + 1]`; no id occurs twice there, weights are >= 0 and sum to 1,
    and their expectation over the draw is the teacher's probability at `temperature`.  Right in losses that are linear
    in the target alone: `forward_kl`, whose gradient is that of the soft cross-entropy.
    """

    ids_M: Tensor  # int64
    weights_M: Tensor  # float32
    offsets: Tensor  # int64, shape [N + 1]
    temperature: float

    def to(self, device: torch.device | str) -> "SampledTargets":
        """The same on a device."""
        return SampledTargets(
            ids_M=_moved(self.ids_M, device),
            weights_M=_moved(self.weights_M, device),
            offsets=_moved(self.offsets, device),
            temperature=self.temperature,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKTargets:
    """The teacher's k most likely tokens, most likely first, and the probability of all others together."""

    ids_NK: Tensor  # int64
    logp_NK: Tensor  # nats, at `temperature`
    tail_logp_N: Tensor  # nats; -inf: nothing is left (k = V, or renormalised by name)
    temperature: float

    def to(self, device: torch.device | str) -> "TopKTargets":
        """The same on a device."""
        return TopKTargets(
            ids_NK=_moved(self.ids_NK, device),
            logp_NK=_moved(self.logp_NK, device),
            tail_logp_N=_moved(self.tail_logp_N, device),
            temperature=self.temperature,
        )


CachedTargets: TypeAlias = DenseTargets | LogitTargets | SampledTargets | TopKTargets  # what a codec decodes to
Targets: TypeAlias = CachedTargets | MixtureTargets


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over trained positions; only `Trainer.train_step` divides, and it does so in the scales before the forward.

    `total` is the only tensor with a graph and is already scaled.  `sums[NAME]` is the plain sum over positions in
    nats (no weight, no T**k), detached; `counts[NAME]` its number of positions.  NAME is `model/term`.
    """

    total: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def detach(self) -> "LossSums":
        """The same without a graph."""
        return LossSums(self.total.detach(), self.sums, self.counts)

    def __add__(self, other: "LossSums") -> "LossSums":
        sums = dict(self.sums)
        for name, value in other.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        counts = {k: self.counts.get(k, 0) + other.counts.get(k, 0) for k in self.counts | other.counts}
        return LossSums(self.total + other.total, sums, counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value with its uncertainty; `n` counts sequences, not tokens."""

    value: float
    stderr: float
    n: int
    unit: str = ""
