"""Hidden states: each layer's output at the trained positions is drawn to that of a layer of the teacher.

FitNets (arXiv:1412.6550) draws a layer through a learned regressor to the teacher's by squared error; TinyBERT
(arXiv:1909.10351) does so with every layer and one linear map each, DistilBERT (arXiv:1910.01108) takes the cosine,
Minitron (arXiv:2407.14679) states after their norm.  The default here is the cosine, which is half the squared error
of states that are both normalised to length 1: the blocks of a decoder normalise what they read, so its direction is
what they get, and a few positions with states a hundred times longer than the others (the first of a row, in most
models) count as much as any.  `mse` follows lengths too, in units of the teacher's own.

Shape legend: B rows, T positions, N trained positions, W width of the student's states, U of the teacher's.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.losses.support import wide
from tutelage.losses.terms import Feature
from tutelage.types import Part, Tap, TokenView

PARTS: tuple[Part, ...] = ("output",)
EVERY_LAYER = True


def cosine(teachers_NU: Tensor, own_NU: Tensor) -> Tensor:
    """1 - cos of the angle between states, shape [N], in [0, 2]; exactly 0, with gradient 0, for equal states."""
    difference_NU = _unit(own_NU) - _unit(teachers_NU)
    return 0.5 * difference_NU.square().sum(-1)


def mse(teachers_NU: Tensor, own_NU: Tensor) -> Tensor:
    """Mean squared error over the mean square of the teacher's state, shape [N], >= 0; 1 for a state of zeros."""
    size_N = teachers_NU.square().sum(-1).clamp_min(torch.finfo(teachers_NU.dtype).tiny)
    return (own_NU - teachers_NU).square().sum(-1) / size_N


def _unit(state_NU: Tensor) -> Tensor:
    return torch.nn.functional.normalize(state_NU, dim=-1)


_DISTANCES = {"cosine": cosine, "mse": mse}


def settled(feature: Feature, own: Mapping[Tap, int], teachers: Mapping[Tap, int]) -> Feature:
    """With the shapes [U, W] of its projections: where widths differ, and everywhere if the recipe asks for them."""
    shapes = {}
    for student_layer, teacher_layer in feature.pairs:
        shape = teachers[Tap(layer=teacher_layer)], own[Tap(layer=student_layer)]
        if shape[0] != shape[1] or feature.settings["projection"]:
            shapes[_key(student_layer)] = shape
    return replace(feature, learned=shapes)


def total(
    feature: Feature,
    own: Mapping[Tap, Tensor],
    teachers: Mapping[Tap, Tensor],
    *,
    view: TokenView,
    learned: Mapping[str, Tensor],
) -> Tensor:
    """The sum over trained positions of the mean distance of the pairs of layers, 0-dim, without a unit."""
    distance = _DISTANCES[str(feature.settings["distance"])]
    sums = []
    for student_layer, teacher_layer in feature.pairs:
        own_NU = _trained(own[Tap(layer=student_layer)], view)
        if (projection_UW := learned.get(_key(student_layer))) is not None:
            own_NU = own_NU @ projection_UW.t().to(own_NU.dtype)
        sums.append(distance(_trained(teachers[Tap(layer=teacher_layer)], view).to(own_NU.dtype), own_NU).sum())
    return torch.stack(sums).mean()


def _trained(state_BTW: Tensor, view: TokenView) -> Tensor:
    """The states [N, W] at the trained positions, in float32 or wider."""
    state_NW = state_BTW.flatten(0, 1).index_select(0, view.index_N)
    return state_NW.to(wide(state_NW.dtype))


def _key(student_layer: int) -> str:
    return f"projection_{student_layer}"
