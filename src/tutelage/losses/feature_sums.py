"""The terms that compare what lies inside student and teacher: which places they tap, and their sums.

Shape legend: B rows, T positions, W width of what is tapped.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tutelage import plugins
from tutelage.losses.terms import Feature, Scale, Term
from tutelage.types import Tap, TokenView

FOLDER = "losses/features"


def features_of(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The terms that compare layers."""
    return tuple(term for term in terms if term.feature is not None)


def taps(feature: Feature) -> tuple[list[Tap], list[Tap]]:
    """The places that a feature needs of the student and of the teacher."""
    parts = plugins.load(FOLDER, feature.name).PARTS
    own, teachers = (dict.fromkeys(pair[side] for pair in feature.pairs) for side in (0, 1))
    return [Tap(layer=n, part=part) for n in own for part in parts], [
        Tap(layer=n, part=part) for n in teachers for part in parts
    ]


def own_taps(terms: Iterable[Term]) -> list[Tap]:
    """All places of the student that terms need, each once."""
    return list(dict.fromkeys(tap for term in terms if term.feature is not None for tap in taps(term.feature)[0]))


def teachers_taps(terms: Iterable[Term]) -> list[Tap]:
    """All places of the teacher that terms need, each once."""
    return list(dict.fromkeys(tap for term in terms if term.feature is not None for tap in taps(term.feature)[1]))


def key(term: Term, name: str) -> str:
    """What a learned matrix of a term is called among those of all terms of a model."""
    return f"{term.name}_{name}"


def feature_losses(
    terms: Iterable[Term],
    *,
    own: Mapping[Tap, Tensor],
    teachers: Mapping[Tap, Tensor],
    view: TokenView,
    learned: Mapping[str, Tensor],
    scales: Mapping[str, Scale],
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """(scaled total with a graph, None where every weight is 0; each term's plain sum over trained positions).

    A term of weight 0 is summed and logged, and touches no gradient.  Raises ValueError where the teacher does not
    show the layers that a term asks for.
    """
    whole: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for term in features_of(terms):
        assert term.feature is not None
        if missing := [tap for tap in taps(term.feature)[1] if tap not in teachers]:
            raise ValueError(f"{term.name} asks for {missing[0]} of the teacher, which its targets do not hold")
        factor = scales[term.name].factor
        with torch.set_grad_enabled(torch.is_grad_enabled() and factor != 0.0):
            found = plugins.load(FOLDER, term.feature.name).total(
                term.feature,
                own,
                {tap: teachers[tap].detach() for tap in taps(term.feature)[1]},
                view=view,
                learned={name: learned[key(term, name)] for name in term.feature.learned},
            )
        sums[term.name] = found.detach()
        if factor != 0.0:
            whole = factor * found if whole is None else whole + factor * found
    return whole, sums
