"""The kinds of targets as the chunked loss sees them: whether they fit the student, and the part of a chunk.

Shape legend: N trained positions, n positions of one chunk, V vocabulary, D hidden size, M entries of all positions.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tutelage.losses.gradients import Workspace
from tutelage.losses.terms import Scale, Term
from tutelage.types import DenseTargets, Head, LogitTargets, MixtureTargets, SampledTargets, Targets, TopKTargets

Kind: TypeAlias = Literal["sample", "top_k", "hidden", "logits", "mixture"]
Stored: TypeAlias = SampledTargets | TopKTargets  # a few entries a position, at one temperature

_KINDS: dict[type, Kind] = {
    DenseTargets: "hidden",
    LogitTargets: "logits",
    MixtureTargets: "mixture",
    SampledTargets: "sample",
    TopKTargets: "top_k",
}


def kind_of(targets: Targets) -> Kind:
    """What a codec that decodes to such targets calls its KIND."""
    return _KINDS[type(targets)]


def n_positions(targets: Targets) -> int:
    """How many trained positions have a target."""
    match targets:
        case DenseTargets():
            return targets.hidden_ND.shape[0]
        case LogitTargets():
            return targets.logits_NV.shape[0]
        case MixtureTargets():
            return targets.parts[0].hidden_ND.shape[0]
        case SampledTargets():
            return targets.offsets.shape[0] - 1
        case TopKTargets():
            return targets.ids_NK.shape[0]


def part_of(stored: Stored, chunk: slice, *, offsets: Tensor | None) -> Stored:
    """The targets of the positions `chunk`; `offsets` is a host copy of a sample's, so that no device is waited for."""
    if isinstance(stored, TopKTargets):
        return TopKTargets(
            ids_NK=stored.ids_NK[chunk],
            logp_NK=stored.logp_NK[chunk],
            tail_logp_N=stored.tail_logp_N[chunk],
            temperature=stored.temperature,
        )
    edges = stored.offsets if offsets is None else offsets
    first, last = int(edges[chunk.start]), int(edges[chunk.stop])
    return SampledTargets(
        ids_M=stored.ids_M[first:last],
        weights_M=stored.weights_M[first:last],
        offsets=stored.offsets[chunk.start : chunk.stop + 1] - first,
        temperature=stored.temperature,
    )


def full_product(targets: Targets, chunk: slice, *, workspace: Workspace, name: str) -> Tensor | None:
    """Of full targets, [n, V]: the product with the teacher's head, or logits; None for a few stored entries."""
    if isinstance(targets, LogitTargets):
        logits_NV = targets.logits_NV[chunk]
        return logits_NV.float() if logits_NV.dtype == torch.float16 else logits_NV
    if isinstance(targets, MixtureTargets):
        with torch.no_grad():
            return targets.logp(chunk)
    if not isinstance(targets, DenseTargets):
        return None
    head, n_rows = targets.head, chunk.stop - chunk.start
    out_NV = workspace.tensor(name, head.weight_VD, rows=n_rows, columns=head.n_vocabulary)
    return head.product(targets.hidden_ND[chunk], out_NV=out_NV)


def check(
    hidden_ND: Tensor,
    targets: Targets | None,
    *,
    student_head: Head,
    next_ids_N: Tensor,
    terms: Sequence[Term],
    asking: Sequence[Term],
    scales: Mapping[str, Scale],
) -> None:
    """ValueError for what would broadcast, be left out or be added twice without a word.

    `terms` are all of a model, `asking` those among them that learn from `targets`.
    """
    names = [term.name for term in terms]
    asks = [term.name for term in asking if term.needs_teacher]
    if hidden_ND.ndim != 2 or next_ids_N.shape != hidden_ND.shape[:1]:
        found = f"{tuple(hidden_ND.shape)} with next tokens {tuple(next_ids_N.shape)}"
        raise ValueError(f"hidden states {found}, expected [N, D] with [N]: the trained positions alone")
    if inside := [term.name for term in terms if term.feature is not None]:
        raise ValueError(f"{inside[0]} compares layers, expected terms on the vocabulary: see feature_losses for it")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"terms {names}, expected at least one and no name twice: add the weights of equal terms")
    if missing := [name for name in names if name not in scales]:
        raise ValueError(f"scales for {sorted(scales)}, expected one for each term: {', '.join(missing)} missing")
    if targets is not None:
        _check_targets(hidden_ND, targets, n_vocabulary=student_head.n_vocabulary)
    elif asks:
        raise ValueError(f"no targets, expected the teacher's hidden states and head: {', '.join(asks)} asks")


def _check_targets(hidden_ND: Tensor, targets: Targets, *, n_vocabulary: int) -> None:
    if isinstance(targets, DenseTargets) and targets.hidden_ND.ndim != 2:
        raise ValueError(f"hidden states {tuple(targets.hidden_ND.shape)} of the teacher, expected [N, D]")
    if isinstance(targets, MixtureTargets):
        for part in targets.parts:
            _check_targets(hidden_ND, part, n_vocabulary=n_vocabulary)
        return
    if n_positions(targets) != hidden_ND.shape[0]:
        found = f"{n_positions(targets)} positions of the teacher, {hidden_ND.shape[0]} of the student"
        raise ValueError(f"{found}, expected the same N: one row for each trained position")
    teachers = n_vocabulary
    if isinstance(targets, DenseTargets):
        teachers = targets.head.n_vocabulary
    elif isinstance(targets, LogitTargets):
        teachers = targets.logits_NV.shape[1]
    if teachers != n_vocabulary:
        found = f"{teachers} and {n_vocabulary}"
        raise ValueError(f"n_vocabulary {found} of teacher and student, expected one: the tokenizer's real size")
    if isinstance(targets, SampledTargets):
        _check_sample(targets)
    if isinstance(targets, TopKTargets):
        _check_top_k(targets)
    if isinstance(targets, Stored):
        _check_ids(targets.ids_M if isinstance(targets, SampledTargets) else targets.ids_NK, n_vocabulary=n_vocabulary)


def _check_sample(targets: SampledTargets) -> None:
    n_entries = targets.ids_M.shape[0]
    if targets.weights_M.shape != targets.ids_M.shape:
        raise ValueError(f"{tuple(targets.weights_M.shape)} weights, expected {tuple(targets.ids_M.shape)}, as ids")
    edges = targets.offsets.cpu()
    first, last = int(edges[0]), int(edges[-1])
    if (first, last) != (0, n_entries) or bool((edges.diff() < 0).any()):
        raise ValueError(f"offsets from {first} to {last}, expected to rise from 0 to the {n_entries} entries")


def _check_top_k(targets: TopKTargets) -> None:
    shapes = targets.ids_NK.shape, targets.logp_NK.shape, targets.tail_logp_N.shape
    if shapes[0] != shapes[1] or shapes[2] != shapes[0][:1]:
        found = " and ".join(str(tuple(shape)) for shape in shapes[1:])
        raise ValueError(f"log-probabilities and tails {found}, expected {tuple(shapes[0])}, as ids, and its [N]")


def _check_ids(ids: Tensor, *, n_vocabulary: int) -> None:
    if ids.numel() == 0:
        return
    lowest, highest = torch.stack(ids.aminmax()).tolist()
    if not 0 <= lowest <= highest < n_vocabulary:
        raise IndexError(f"stored token ids from {lowest} to {highest}, expected 0 to {n_vocabulary - 1}")
