"""The loss of one model, or of several that learn together, over hidden states and heads, chunk by chunk.

A [tokens, vocabulary] tensor is never whole: the gradient of a few hundred positions is formed while their logits live.
Each head's product is made once a chunk, and serves the model's own cross-entropy and whoever learns from it.  The two
products of the backward pass stand in `gradients.py` once, for every divergence; what differs is only the gradient with
respect to the chunk's product, which comes from autograd on the plain functions (`plain_chunk`), or in closed form
(`losses/closed_form.py`) for the common blends.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.losses import closed_form, gates
from tutelage.losses.gradients import Gradients, Workspace
from tutelage.losses.plain import plain_chunk
from tutelage.losses.stored import metric_name, refuse_unservable
from tutelage.losses.support import wide
from tutelage.losses.targets import Stored, check, full_product, kind_of, part_of
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.roles import TEACHER
from tutelage.types import DenseTargets, Head, SampledTargets, Targets

CHUNK_POSITIONS = 512
GROUP_POSITIONS = 1024  # positions whose gradients wait for one product into the weight; a constant, not the batch
ChunkFunction = Callable[..., ChunkResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One model of a joint loss: its hidden states [N, D] at the trained positions, its head, its terms and scales."""

    hidden_ND: Tensor
    head: Head
    terms: tuple[Term, ...]
    scales: Mapping[str, Scale]


def chunk_function(
    terms: Sequence[Term], *, heads: Sequence[Head | None], targets: Targets | None = None
) -> ChunkFunction:
    """The closed form where it serves these terms, heads and targets, else the plain functions."""
    return closed_form.fused_chunk if closed_form.serves(terms, heads=heads, targets=targets) else plain_chunk


def chunked_loss(
    hidden_ND: Tensor,
    *,
    student_head: Head,
    targets: Targets | None,
    next_ids_N: Tensor,
    terms: Sequence[Term],
    scales: Mapping[str, Scale],
    chunk_positions: int = CHUNK_POSITIONS,
    chunk: ChunkFunction | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total, sums): the scaled loss with a graph to hidden states and head, and each term's plain sum in nats.

    `hidden_ND` [N, D] are the student's hidden states at the trained positions, `next_ids_N` [N] the true next tokens
    (int64, none of them -100), `targets` the teacher's hidden states at the same positions with its head, or what a
    cache holds of it (None when no term needs a teacher).  total = sum over terms of `scales[NAME].factor` *
    sums[NAME], 0-dim, float32 or wider; `sums[NAME]` is detached and has neither weight nor T**k in it, NAME is
    `Term.name`, but `soft_cross_entropy` for the forward KL of sampled targets.  `scale_of` makes a scale.
    Gradients are formed in the forward, so backward works once and has no second derivative.
    `workspace` keeps the large tensors from call to call: give one and the same at every step.
    N = 0 gives a zero that still depends on the student, so that backward works on every rank.

    Raises ValueError when shapes, targets, scales or terms do not fit together, IndexError for an id outside the head,
    ConfigError for a term that stored targets cannot serve (`refuse_unservable`).
    """
    total, sums = joint_loss(
        {"": Part(hidden_ND=hidden_ND, head=student_head, terms=tuple(terms), scales=scales)},
        targets={TEACHER: targets} if targets is not None else {},
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        chunk=chunk,
        workspace=workspace,
    )
    return total, sums[""]


def joint_loss(
    parts: Mapping[str, Part],
    *,
    targets: Mapping[str, Targets],
    next_ids_N: Tensor,
    chunk_positions: int = CHUNK_POSITIONS,
    chunk: ChunkFunction | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """`chunked_loss` of several models at once: the sum of their scaled losses, and each one's sums.

    A term learns from `Term.source`: another of `parts`, as it is at this step and without a gradient to it, or what
    stands under that name in `targets`.  What a model computes does not depend on who else is there, bit for bit.
    """
    if chunk_positions < 1:
        raise ValueError(f"chunk_positions {chunk_positions}, expected at least 1")
    for part in parts.values():
        _check(part, parts=parts, targets=targets, next_ids_N=next_ids_N)
    job = _Job(
        parts=dict(parts),
        targets=dict(targets),
        offsets={name: t.offsets.cpu() for name, t in targets.items() if isinstance(t, SampledTargets)},
        next_ids_N=next_ids_N,
        chunk_positions=chunk_positions,
        workspace=workspace or Workspace(),
        needs_gradient=torch.is_grad_enabled()
        and any(p.hidden_ND.requires_grad or p.head.weight_VD.requires_grad for p in parts.values()),
        chunk=chunk,
    )
    tensors = [t for p in parts.values() for t in (p.hidden_ND, p.head.weight_VD, p.head.bias_V)]
    total: Tensor = _JointLoss.apply(job, *tensors)  # type: ignore[no-untyped-call]
    return total, {name: _named(part, job=job, sums=job.sums[name]) for name, part in parts.items()}


def _named(part: Part, *, job: "_Job", sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for term in part.terms:
        targets = job.targets.get(term.source)
        named[metric_name(term, kind=kind_of(targets) if targets is not None else None)] = sums[term.name]
        if term.name + gates.TRUSTED in sums:
            named[term.name + gates.TRUSTED] = sums[term.name + gates.TRUSTED]
    return named


def _check(part: Part, *, parts: Mapping[str, Part], targets: Mapping[str, Targets], next_ids_N: Tensor) -> None:
    """ValueError, IndexError or ConfigError for what does not fit together."""
    by_source = _by_source(part.terms) or [(None, ())]
    for source, terms in by_source:
        given: Targets | None = targets.get(source) if source is not None else targets.get(TEACHER)
        if source is not None and source in parts:
            given = DenseTargets(hidden_ND=parts[source].hidden_ND, head=parts[source].head)
        check(
            part.hidden_ND,
            given,
            student_head=part.head,
            next_ids_N=next_ids_N,
            terms=part.terms,
            asking=terms,
            scales=part.scales,
        )
        if isinstance(given, Stored):
            if any(term.trust == "per_token" for term in terms):
                raise ValueError("trust per_token needs the whole distribution of a teacher, found stored entries")
            refuse_unservable(terms, kind=kind_of(given), temperature=given.temperature, scales=part.scales)


def _by_source(terms: Iterable[Term]) -> list[tuple[str | None, tuple[Term, ...]]]:
    """Terms by whom they learn from; those that need no teacher go with the first."""
    terms = tuple(terms)
    sources: list[str | None] = [*dict.fromkeys(term.source for term in terms if term.needs_teacher)]
    if not sources:
        return [(None, terms)] if terms else []
    return [(s, tuple(t for t in terms if (t.source if t.needs_teacher else sources[0]) == s)) for s in sources]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Terms of one model from one source; without `gradient` they are only counted (their weight is 0 here)."""

    source: str | None
    terms: tuple[Term, ...]
    chunk: ChunkFunction
    gradient: bool


@dataclass(slots=True)
class _Job:
    """What one call works on; sums come back through it."""

    parts: dict[str, Part]
    targets: dict[str, Targets]
    offsets: dict[str, Tensor]  # of samples, on the host
    next_ids_N: Tensor
    chunk_positions: int
    workspace: Workspace
    needs_gradient: bool
    chunk: ChunkFunction | None
    sums: dict[str, dict[str, Tensor]] = field(init=False)
    passes: dict[str, list[_Pass]] = field(init=False)
    order: list[str] = field(init=False)  # a product is overwritten when its model's turn has come
    copied: set[str] = field(init=False)  # those that somebody later in the order still learns from

    def __post_init__(self) -> None:
        self.sums = {
            name: {term.name: part.hidden_ND.new_zeros((), dtype=wide(part.hidden_ND.dtype)) for term in part.terms}
            for name, part in self.parts.items()
        }
        self.passes = {name: self._passes_of(part) for name, part in self.parts.items()}
        self.order, self.copied = _order({n: {p.source for p in passes} for n, passes in self.passes.items()})

    def _passes_of(self, part: Part) -> list[_Pass]:
        live = [t for t in part.terms if part.scales[t.name].factor != 0.0] if self.needs_gradient else []
        idle = [t for t in part.terms if t not in live]
        return [
            _Pass(source=source, terms=terms, chunk=self._function(part, source, terms), gradient=bool(group is live))
            for group in (idle, live)
            for source, terms in _by_source(group)
        ]

    def _function(self, part: Part, source: str | None, terms: tuple[Term, ...]) -> ChunkFunction:
        function = self.chunk or chunk_function(
            terms, heads=(part.head, self.head_of(source)), targets=self.targets.get(source or "")
        )
        return gates.gated(function) if any(term.trust == "per_token" for term in terms) else function

    def head_of(self, source: str | None) -> Head | None:
        """The head of whom terms learn from; None for stored targets, and for none."""
        if source in self.parts:
            return self.parts[source].head
        targets = self.targets.get(source or "")
        return targets.head if isinstance(targets, DenseTargets) else None

    def full(self, source: str, chunk: slice) -> Tensor | None:
        """Of full targets from outside, [n, V]: the product with the teacher's head, or logits; None for a sample."""
        return full_product(self.targets[source], chunk, workspace=self.workspace, name=f"of {source}")

    def stored(self, source: str | None, chunk: slice) -> Stored | None:
        """Of targets that hold a few entries a position, those of the chunk."""
        targets = self.targets.get(source or "")
        return part_of(targets, chunk, offsets=self.offsets.get(source or "")) if isinstance(targets, Stored) else None


def _order(sources: Mapping[str, set[str | None]]) -> tuple[list[str], set[str]]:
    """(names, those that nobody left learns from first; the names whose product others need after their turn)."""
    left, order, copied = dict(sources), [], set[str]()
    while left:
        needed = {source for name, of in left.items() for source in of if source != name}
        free = [name for name in left if name not in needed]
        chosen = free[0] if free else next(iter(left))
        if not free:
            copied.add(chosen)
        order.append(chosen)
        del left[chosen]
    return order, copied


class _JointLoss(torch.autograd.Function):
    """Forms every gradient in its forward, group by group; backward only multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx, job: _Job, *tensors: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]  # torch's ctx has no public type
        gradients = {
            name: Gradients.zero(part.hidden_ND, part.head.weight_VD, part.head.bias_V)
            for name, part in job.parts.items()
            if job.needs_gradient
        }
        hidden = {name: part.hidden_ND.to(part.head.weight_VD.dtype) for name, part in job.parts.items()}
        n_positions = job.next_ids_N.shape[0]
        group_positions = max(1, GROUP_POSITIONS // job.chunk_positions) * job.chunk_positions
        for start in range(0, n_positions, group_positions):
            group = slice(start, min(start + group_positions, n_positions))
            products = _group_products(hidden, group, job=job)
            for name, gradient in gradients.items():
                part = job.parts[name]
                gradient.add(
                    products[name], group, head=part.head, hidden_ND=part.hidden_ND, workspace=job.workspace, name=name
                )
        ctx.gradients = [
            g for n, p in job.parts.items() if job.needs_gradient for g in gradients[n].finish(p.head.weight_VD.dtype)
        ]
        first = next(iter(job.parts.values())).hidden_ND
        total = first.new_zeros((), dtype=wide(first.dtype))
        for name, part in job.parts.items():
            for term in part.terms:
                total = total + part.scales[term.name].factor * job.sums[name][term.name]
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):  # type: ignore[no-untyped-def]
        is_one = grad_total.device.type == "cpu" and grad_total.item() == 1.0
        gradients = [g if g is None or is_one else g.mul_(grad_total.to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return (None, *gradients)


def _group_products(hidden: Mapping[str, Tensor], group: slice, *, job: _Job) -> dict[str, Tensor]:
    """Sums of a group's chunks into the job; returns d(total)/d(product) of the whole group, of each model."""
    n_rows = group.stop - group.start
    products = {}
    for name, part in job.parts.items():
        columns = part.head.n_vocabulary
        products[name] = job.workspace.tensor(f"product {name}", part.head.weight_VD, rows=n_rows, columns=columns)
    for start in range(group.start, group.stop, job.chunk_positions):
        chunk = slice(start, min(start + job.chunk_positions, group.stop))
        rows = slice(chunk.start - group.start, chunk.stop - group.start)
        for name, part in job.parts.items():
            part.head.product(hidden[name][chunk], out_NV=products[name][rows])
        _chunk({name: product_NV[rows] for name, product_NV in products.items()}, chunk, job=job)
    return products


def _chunk(products: dict[str, Tensor], chunk: slice, *, job: _Job) -> None:
    """The sums of one chunk into the job; each product [n, V] becomes the gradient with respect to it."""
    teaching = {name: products[name].clone() if name in job.copied else products[name] for name in products}
    asked = {p.source for passes in job.passes.values() for p in passes if p.source in job.targets}
    teaching |= {source: full for source in asked if source and (full := job.full(source, chunk)) is not None}
    for name in job.order:
        product_NV, part = products[name], job.parts[name]
        gradients = [p for p in job.passes[name] if p.gradient]
        summed_NV = torch.zeros_like(product_NV) if len(gradients) > 1 else None
        for each in job.passes[name]:
            is_last = not each.gradient or each is gradients[-1]
            result = each.chunk(
                each.terms,
                scales=part.scales,
                student_product_NV=product_NV if is_last else product_NV.clone(),
                teacher_product_NV=teaching.get(each.source or ""),
                student_head=part.head,
                teacher_head=job.head_of(each.source),
                next_ids_N=job.next_ids_N[chunk],
                gradient=each.gradient,
                stored=job.stored(each.source, chunk),
            )
            for term, value in result.sums.items():
                job.sums[name][term] = job.sums[name][term] + value if term in job.sums[name] else value
            if not each.gradient:
                continue
            assert result.gradient_NV is not None
            if summed_NV is not None and not is_last:
                summed_NV += result.gradient_NV
                continue
            if result.gradient_NV is not product_NV:
                product_NV.copy_(result.gradient_NV)
            if summed_NV is not None:
                product_NV += summed_NV
        if job.needs_gradient and not gradients:
            product_NV.zero_()
