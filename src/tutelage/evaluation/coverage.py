"""How much of the distance to the teacher is left in each set of text: in domain, and out of it.

From the transfer alone, in closed form.  The distance is KL(teacher || model); what is left of it is the student's over
that of the student before training, both on the same sequences:

    left = KL_student / KL_before,    Var(left) = (s_student^2 + left^2 s_before^2 - 2 left c) / KL_before^2

where 2 c = s_student^2 + s_before^2 - s_difference^2, by their paired difference, is twice the covariance of the two.
Two sets have no sequence in common, so log(left out of domain / left in domain) has the sum of both relative variances.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tutelage import io, roles
from tutelage.evaluation import stats
from tutelage.evaluation.json_values import finite
from tutelage.evaluation.transfer import HELD_OUT, SetResult, Transfer
from tutelage.types import Estimate

COVERAGE = "coverage.json"
KL = "kl_to_teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One model on one set: its distance to the teacher in nats, and the share of the first distance that is left."""

    name: str  # of the set
    kl: Estimate
    left: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A set against the held-out one: left there / left here, with its 95 % interval."""

    gap: Gap
    ratio: float
    low: float
    high: float
    p_value: float  # of a ratio of 1, corrected for the number of sets and models
    decided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """One trained model: what is left in domain, and each other set against it."""

    model: str
    in_domain: Gap
    others: tuple[Against, ...]


def coverage_of(transfer: Transfer) -> tuple[Covered, ...]:
    """For the student and its control; nothing without a teacher, held-out text, or the student before training."""
    before = roles.before(roles.STUDENT)
    if transfer.teacher is None or before not in transfer.models or HELD_OUT not in transfer.sets:
        return ()
    found = []
    for model in roles.trained(transfer.models):
        gaps = {name: _gap(name, result, model=model, before=before) for name, result in transfer.sets.items()}
        here = gaps.pop(HELD_OUT)
        if here is not None:
            others = tuple(_against(here, gap) for gap in gaps.values() if gap is not None)
            found.append(Covered(model=model, in_domain=here, others=others))
    return _corrected(found)


def _gap(name: str, result: SetResult, *, model: str, before: str) -> Gap | None:
    """None where one of the two has no score, or where there was no distance to begin with."""
    after, first = (result.estimates.get(m, {}).get(KL) for m in (model, before))
    apart = result.difference(KL, first=model, second=before)
    if after is None or first is None or apart is None or first.value <= 0:
        return None
    left = after.value / first.value
    twice_covariance = after.stderr**2 + first.stderr**2 - apart.stderr**2
    variance = (after.stderr**2 + left**2 * first.stderr**2 - left * twice_covariance) / first.value**2
    stderr = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.inf
    return Gap(name=name, kl=after, left=Estimate(value=left, stderr=stderr, n=apart.n, unit="share"))


def _against(here: Gap, there: Gap) -> Against:
    if here.left.value <= 0 or there.left.value <= 0:
        return Against(gap=there, ratio=math.nan, low=0.0, high=math.inf, p_value=1.0, decided=False)
    ratio = there.left.value / here.left.value
    stderr = math.hypot(here.left.stderr / here.left.value, there.left.stderr / there.left.value)
    half = stats.quantile_95(min(here.left.n, there.left.n)) * stderr
    known = math.isfinite(half)
    low, high = (ratio * math.exp(-half), ratio * math.exp(half)) if known else (0.0, math.inf)
    p_value = stats.p_value(math.log(ratio), stderr, n=min(here.left.n, there.left.n))
    return Against(gap=there, ratio=ratio, low=low, high=high, p_value=p_value if known else 1.0, decided=False)


def _corrected(found: Sequence[Covered]) -> tuple[Covered, ...]:
    p_values = iter(stats.holm([one.p_value for covered in found for one in covered.others]))
    return tuple(replace(c, others=tuple(_decided(one, next(p_values)) for one in c.others)) for c in found)


def _decided(one: Against, p_value: float) -> Against:
    return replace(one, p_value=p_value, decided=p_value < stats.ALPHA)


def write(folder: Path, found: Sequence[Covered]) -> None:
    """coverage.json; what it was made from are the records of the transfer."""
    io.write_json(folder / COVERAGE, {"coverage": json_of(found)})


def json_of(found: Sequence[Covered]) -> list[dict[str, Any]]:
    """Plain JSON values; what is not finite becomes null."""
    return [finite(asdict(one)) for one in found]
