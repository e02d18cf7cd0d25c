"""Stored targets to test with, and what they mean, written without the package's own losses."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.losses.chunked import chunked_loss
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Scale, Term
from tutelage.types import DenseTargets, Head, SampledTargets, Targets, TopKTargets

F64 = torch.float64
N, V, D = 13, 31, 6
FACTOR = 0.4  # of every term in `run`, unless a test says otherwise


def draw(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def student(*, soft_cap: float | None = None, pad: int = 3, dtype: torch.dtype = F64) -> Head:
    weight_VD, bias_V = draw(V + pad, D, seed=1, dtype=dtype), draw(V + pad, seed=2, dtype=dtype)
    return Head(weight_VD=weight_VD, bias_V=bias_V, n_vocabulary=V, scale=0.7, soft_cap=soft_cap)


def teacher(n: int = N) -> DenseTargets:
    return DenseTargets(
        hidden_ND=draw(n, 9, seed=3), head=Head(weight_VD=draw(V, 9, seed=4), bias_V=None, n_vocabulary=V)
    )


def next_ids(n: int = N) -> Tensor:
    return torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(5))


def sampled(entries: Sequence[dict[int, float]], *, temperature: float = 1.0) -> SampledTargets:
    """From {id: weight} of each position."""
    counts = torch.tensor([len(entry) for entry in entries], dtype=torch.int64)
    return SampledTargets(
        ids_M=torch.tensor([i for entry in entries for i in entry], dtype=torch.int64),
        weights_M=torch.tensor([w for entry in entries for w in entry.values()], dtype=F64),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        temperature=temperature,
    )


def random_entries(n: int = N, *, n_columns: int = V, most: int = 7, seed: int = 6) -> list[dict[int, float]]:
    """One to `most` entries a position, the same ids in many of them; weights sum to 1."""
    g = torch.Generator().manual_seed(seed)
    entries = []
    for position in range(n):
        size = 1 if position % 4 == 1 else int(torch.randint(2, most + 1, (), generator=g))
        ids = torch.randperm(n_columns, generator=g)[:size].tolist()
        weights = torch.rand(size, generator=g, dtype=F64) + 0.05
        entries.append(dict(zip(ids, (weights / weights.sum()).tolist(), strict=True)))
    return entries


def top_k(logits_NV: Tensor, k: int, *, temperature: float = 1.0, tail: bool = True) -> TopKTargets:
    """The k most likely tokens; the tail by a plain sum of what is left."""
    p_NV = torch.softmax(logits_NV / temperature, -1)
    p_NV, ids_NV = p_NV.sort(dim=-1, descending=True)
    p_NK, rest_N = p_NV[:, :k], p_NV[:, k:].sum(-1)
    if not tail:
        p_NK, rest_N = p_NK / p_NK.sum(-1, keepdim=True), torch.zeros_like(rest_N)
    return TopKTargets(ids_NK=ids_NV[:, :k], logp_NK=p_NK.log(), tail_logp_N=rest_N.log(), temperature=temperature)


def soft(name: str = "forward_kl", *, temperature: float = 1.0, weight: float = 1.0, **parameters: float) -> Term:
    return Term(
        kind="divergence", divergence=name, temperature=constant(temperature), weight=constant(weight),
        parameters=parameters,
    )  # fmt: skip


def run(
    targets: Targets | None,
    terms: Sequence[Term],
    *,
    head: Head | None = None,
    n: int = N,
    dtype: torch.dtype = F64,
    **options: object,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Sums, and [total, gradient of the hidden states, of the head's weight, of its bias]."""
    head = head or student(dtype=dtype)
    hidden_ND = draw(n, D, seed=7, dtype=dtype).requires_grad_()
    assert head.bias_V is not None
    head = replace(head, weight_VD=head.weight_VD.clone().requires_grad_(), bias_V=head.bias_V.clone().requires_grad_())
    temperature = {t.name: t.temperature.start for t in terms}
    scales = {t.name: Scale(factor=FACTOR * t.weight.start, temperature=temperature[t.name]) for t in terms}
    options = {"next_ids_N": next_ids(n), "scales": scales, **options}
    total, sums = chunked_loss(hidden_ND, student_head=head, targets=targets, terms=terms, **options)
    total.backward()
    assert hidden_ND.grad is not None
    assert head.weight_VD.grad is not None
    assert head.bias_V is not None
    assert head.bias_V.grad is not None
    return sums, [total.detach(), hidden_ND.grad, head.weight_VD.grad, head.bias_V.grad]


def soft_by_hand(entries: Sequence[dict[int, float]], *, temperature: float) -> tuple[Tensor, list[Tensor]]:
    """Sum of the soft cross-entropy, and its gradients: ((sum of w) q - w) / T, through a head without a soft-cap."""
    head, hidden_ND = student(), draw(len(entries), D, seed=7)
    assert head.bias_V is not None
    logits_NV = (hidden_ND @ head.weight_VD[:V].T + head.bias_V[:V]) * head.scale
    q_NV = torch.softmax(logits_NV / temperature, -1)
    loss, gradient_NV = torch.zeros((), dtype=F64), torch.zeros_like(q_NV)
    for n, entry in enumerate(entries):
        for i, weight in entry.items():
            loss -= weight * q_NV[n, i].log()
            gradient_NV[n] += weight * q_NV[n]
            gradient_NV[n, i] -= weight
    gradient_NV *= head.scale / temperature
    weight_VD, bias_V = torch.zeros_like(head.weight_VD), torch.zeros_like(head.bias_V)
    weight_VD[:V], bias_V[:V] = gradient_NV.T @ hidden_ND, gradient_NV.sum(0)
    return loss, [gradient_NV @ head.weight_VD[:V], weight_VD, bias_V]
