"""What one call of a joint loss works on: who learns from whom, by which function, and in which order.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from tutelage.losses import closed_form, gates
from tutelage.losses.gradients import Workspace
from tutelage.losses.plain import plain_chunk
from tutelage.losses.support import wide
from tutelage.losses.targets import Stored, full_product, part_of
from tutelage.losses.terms import ChunkResult, Scale, Term
from tutelage.types import DenseTargets, Head, Targets

ChunkFunction: TypeAlias = Callable[..., ChunkResult]


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


def by_source(terms: Iterable[Term]) -> list[tuple[str | None, tuple[Term, ...]]]:
    """Terms by whom they learn from; those that need no teacher go with the first."""
    terms = tuple(terms)
    sources: list[str | None] = [*dict.fromkeys(term.source for term in terms if term.needs_teacher)]
    if not sources:
        return [(None, terms)] if terms else []
    return [(s, tuple(t for t in terms if (t.source if t.needs_teacher else sources[0]) == s)) for s in sources]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Terms of one model from one source; without `gradient` they are only counted (their weight is 0 here)."""

    source: str | None
    terms: tuple[Term, ...]
    chunk: ChunkFunction
    gradient: bool


@dataclass(slots=True)
class Job:
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
    passes: dict[str, list[Pass]] = field(init=False)
    taught_by: Counter[str] = field(init=False)  # how many models learn from each other model or target
    order: list[str] = field(init=False)  # a product is overwritten when its model's turn has come
    copied: set[str] = field(init=False)  # those that somebody later in the order still learns from

    def __post_init__(self) -> None:
        self.sums = {
            name: {term.name: part.hidden_ND.new_zeros((), dtype=wide(part.hidden_ND.dtype)) for term in part.terms}
            for name, part in self.parts.items()
        }
        self.passes = {name: self._passes_of(part) for name, part in self.parts.items()}
        sources = {name: {p.source for p in passes if p.source is not None} for name, passes in self.passes.items()}
        self.taught_by = Counter(source for of in sources.values() for source in of)
        self.order, self.copied = _order(sources)

    def _passes_of(self, part: Part) -> list[Pass]:
        live = [t for t in part.terms if part.scales[t.name].factor != 0.0] if self.needs_gradient else []
        idle = [t for t in part.terms if t not in live]
        return [
            Pass(source=source, terms=terms, chunk=self._function(part, source, terms), gradient=bool(group is live))
            for group in (idle, live)
            for source, terms in by_source(group)
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

    def full(self, source: str, chunk: slice, *, buffer: int) -> Tensor | None:
        """Of full targets from outside, [n, V]: the product with the teacher's head, or logits; None for a sample."""
        return full_product(self.targets[source], chunk, workspace=self.workspace, name=f"of {source} {buffer}")

    def stored(self, source: str | None, chunk: slice) -> Stored | None:
        """Of targets that hold a few entries a position, those of the chunk."""
        targets = self.targets.get(source or "")
        return part_of(targets, chunk, offsets=self.offsets.get(source or "")) if isinstance(targets, Stored) else None


def _order(sources: Mapping[str, set[str]]) -> tuple[list[str], set[str]]:
    """(names, those that nobody left learns from first; the names whose product others need after their turn)."""
    left, order, copied = dict(sources), [], set[str]()
    while left:
        needed = {source for of in left.values() for source in of}
        free = [name for name in left if name not in needed]
        chosen = free[0] if free else next(iter(left))
        if not free:
            copied.add(chosen)
        order.append(chosen)
        del left[chosen]
    return order, copied
