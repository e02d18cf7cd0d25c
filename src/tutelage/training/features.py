"""Terms that compare layers, before training: which layers, whether both models have them, and what is learned beside.

A learned matrix (a projection of `hidden_states`) trains with its student by an optimizer of its own, so that what it
does never changes how the student's gradients are clipped.  It is in the checkpoints and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage import plugins
from tutelage.errors import ConfigError
from tutelage.losses import feature_sums
from tutelage.losses.terms import Feature, Term
from tutelage.models import taps
from tutelage.randomness import derive_seed
from tutelage.roles import TEACHER
from tutelage.types import CausalLM


def settled(
    terms: Sequence[Term],
    *,
    student: CausalLM,
    teacher: CausalLM | None,
    kept: Sequence[int] | None,
    channels: Sequence[int] = (),
) -> tuple[Term, ...]:
    """The terms with layers and shapes chosen.

    `kept`, `channels`: the teacher's layers, and channels of its residual stream, that the student was made of.
    Raises ConfigError[FEATURES] for layers or states that one of the models does not have.
    """
    return tuple(
        term
        if term.feature is None
        else replace(term, feature=replace(_settled(term, student, teacher, kept=kept), channels=tuple(channels)))
        for term in terms
    )


def _settled(term: Term, student: CausalLM, teacher: CausalLM | None, *, kept: Sequence[int] | None) -> Feature:
    feature = term.feature
    assert feature is not None
    if teacher is None or term.source != TEACHER:
        raise ConfigError("FEATURES", f"{term.name} needs one live teacher; give teacher.model, or leave it out")
    n_own, n_teachers = taps.n_layers(student), taps.n_layers(teacher)
    part = plugins.load(feature_sums.FOLDER, feature.name)
    layers = feature.layers or _auto(n_own, n_teachers, kept=kept, every=part.EVERY_LAYER)
    require_layers(layers, n_own=n_own, n_teachers=n_teachers, name=term.name)
    feature = replace(feature, layers=layers)
    own, teachers = feature_sums.taps(feature)
    found: Feature = part.settled(feature, taps.widths(student, own), taps.widths(teacher, teachers))
    return found


def require_layers(pairs: Sequence[tuple[int, int]], *, n_own: int, n_teachers: int, name: str) -> None:
    """ConfigError[FEATURES] for a pair of layers (student's, teacher's) of which one is not there."""
    for side, (whose, n) in enumerate((("student", n_own), ("teacher", n_teachers))):
        if absent := [pair[side] for pair in pairs if pair[side] >= n]:
            raise ConfigError(
                "FEATURES", f"{name}: layer {absent[0]} of the {whose}, which has 0 to {n - 1}; change layers, or auto"
            )


def _auto(n_own: int, n_teachers: int, *, kept: Sequence[int] | None, every: bool) -> tuple[tuple[int, int], ...]:
    """Each layer with the one it came from, else at even distances, last to last; without `every` the last pair."""
    if kept is not None and len(kept) == n_own:
        pairs = tuple(enumerate(kept))
    else:
        pairs = tuple((n, round((n + 1) * n_teachers / n_own) - 1) for n in range(n_own))
        pairs = tuple((own, max(0, its)) for own, its in pairs)
    return pairs if every else pairs[-1:]


def learned_of(
    terms: Sequence[Term], *, seed: int, name: str, dtype: torch.dtype, device: str
) -> dict[str, nn.Parameter]:
    """The start of every matrix that a model's terms learn, by `feature_sums.key`.

    Of a student that was narrowed, its channels at their places among the teacher's; else the identity where it is
    square; else drawn by the seed and its name, semi-orthogonal, which keeps lengths and angles as far as it can.
    """
    made = {}
    for term in feature_sums.features_of(terms):
        assert term.feature is not None
        for own, shape in term.feature.learned.items():
            key = feature_sums.key(term, own)
            start = _start(shape, seed=derive_seed(seed, "learned beside", name, key), channels=term.feature.channels)
            made[key] = nn.Parameter(start.to(device=device, dtype=torch.promote_types(dtype, torch.float32)))
    return made


def _start(shape: tuple[int, int], *, seed: int, channels: tuple[int, ...]) -> Tensor:
    if len(channels) == shape[1]:
        return torch.eye(shape[0], dtype=torch.float64)[:, list(channels)]
    if shape[0] == shape[1]:
        return torch.eye(shape[0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    start: Tensor = nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), generator=generator)
    return start


def n_learned(terms: Sequence[Term]) -> int:
    """How many numbers are learned beside a model."""
    shapes = [s for term in terms if term.feature is not None for s in term.feature.learned.values()]
    return sum(rows * columns for rows, columns in shapes)
