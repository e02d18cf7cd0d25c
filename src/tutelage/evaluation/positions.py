"""What a model did at each position: numbers by name, from its logits and the teacher's.

A measure is a plain function of a `Pair` and its name in OWN (of the model alone) or AGAINST (with a teacher): its sum
over a sequence is then in `SequenceScore.sums` under that name, for a metric to read.  On a CPU a compiled loop gives
those of COLUMNS (`_positions_cpu.py`); elsewhere, for other dtypes, for other measures and for rows with an infinite
logit the plain functions run.  Both ways are held equal by a test.  float32 or wider.

Tokens are ordered by their logits, of equal ones the lower id first.

Shape legend: C positions of a chunk, V vocabulary, H inverse temperatures, K tokens, L columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.losses import fused

INVERSE_TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
N_FIRST = 5  # tokens whose overlap is counted
N_RUNNERS_UP = 10  # the teacher's tokens of ranks 2 to 11, whose order is compared

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Product:
    """A model's logits at the positions of a chunk, before `factor` (> 0) scales them."""

    stored_CV: Tensor
    factor: float = 1.0

    def logits(self) -> Tensor:
        """Logits [C, V], float32 or wider."""
        wide_CV = self.stored_CV.to(torch.promote_types(self.stored_CV.dtype, torch.float32))
        return wide_CV if self.factor == 1.0 else wide_CV * self.factor


@dataclass(frozen=True)
class Distribution:
    """One model at some positions; what several measures need is worked out once."""

    logits_CV: Tensor

    @cached_property
    def logp_CV(self) -> Tensor:  # noqa: N802  # shape letters
        """Log-probabilities."""
        return torch.log_softmax(self.logits_CV, -1)

    @cached_property
    def p_CV(self) -> Tensor:  # noqa: N802
        """Probabilities."""
        return self.logp_CV.exp()

    @cached_property
    def first_CK(self) -> Tensor:  # noqa: N802
        """Ids of the tokens of rank 1 to 11, or of all where there are fewer."""
        return _first_tokens(self.logits_CV, min(1 + N_RUNNERS_UP, self.logits_CV.shape[-1]))


@dataclass(frozen=True)
class Pair:
    """A model beside its teacher, in one dtype on one device, and the true next tokens."""

    model: Distribution
    teacher: Distribution | None
    next_ids_C: Tensor

    @property
    def taught(self) -> Distribution:
        """The teacher, for measures that need one."""
        assert self.teacher is not None, "measures of AGAINST are asked with a teacher"
        return self.teacher


def nll_nats(pair: Pair) -> Tensor:
    """-log q(true next token), in nats."""
    return -_at(pair.model.logp_CV, pair.next_ids_C)


def confidence(pair: Pair) -> Tensor:
    """The probability of the first token."""
    return pair.model.logp_CV.max(-1).values.double().exp()


def correct(pair: Pair) -> Tensor:
    """Whether the first token is the true one."""
    return pair.model.first_CK[:, 0] == pair.next_ids_C


def brier(pair: Pair) -> Tensor:
    """Squared distance of the distribution from the true token, in [0, 2]."""
    squares_C: Tensor = torch.linalg.vector_norm(pair.model.p_CV, dim=-1).double().square()
    return squares_C - 2 * _at(pair.model.logp_CV, pair.next_ids_C).double().exp() + 1


def heated_nats(pair: Pair) -> Tensor:
    """The loss of the true token at each inverse temperature, [C, H]."""
    z_CV, true_C = _shifted(pair)
    return torch.stack([torch.logsumexp(b * z_CV, -1) - b * true_C for b in INVERSE_TEMPERATURES], -1)


def heated_slopes(pair: Pair) -> Tensor:
    """Its derivative by the inverse temperature, [C, H]: the mean logit less the true one."""
    z_CV, true_C = _shifted(pair)
    return torch.stack([_dot(torch.softmax(b * z_CV, -1), z_CV) - true_C for b in INVERSE_TEMPERATURES], -1)


def kl_nats(pair: Pair) -> Tensor:
    """KL(teacher || model), in nats: exactly 0 for equal distributions."""
    return _dot(pair.taught.p_CV, pair.taught.logp_CV - pair.model.logp_CV)


def agree(pair: Pair) -> Tensor:
    """Whether both have the same first token."""
    return pair.model.first_CK[:, 0] == pair.taught.first_CK[:, 0]


def reverse_kl_nats(pair: Pair) -> Tensor:
    """KL(model || teacher), in nats; infinite where only the teacher gives 0."""
    return _dot(pair.model.p_CV, pair.model.logp_CV - pair.taught.logp_CV)


def acceptance(pair: Pair) -> Tensor:
    """sum min(p, q) = 1 - sum |p - q| / 2: how often the teacher would accept the model's token as a draft.

    Speculative decoding, arXiv:2211.17192 (corollary 3.6).
    """
    return 1 - 0.5 * (pair.taught.p_CV - pair.model.p_CV).abs().double().sum(-1)


def top5_overlap(pair: Pair) -> Tensor:
    """Share of the teacher's first five tokens that are among the model's first five."""
    own_CK, taught_CK = pair.model.first_CK[:, :N_FIRST], pair.taught.first_CK[:, :N_FIRST]
    return (own_CK[:, :, None] == taught_CK[:, None, :]).any(1).double().mean(-1)


def runner_up_order(pair: Pair) -> Tensor:
    """Spearman's correlation of both models' order of the teacher's tokens of ranks 2 to 11, in [-1, 1].

    Equal logits share the mean of their ranks; 1 where neither model orders them, 0 where one of them does not.
    """
    ids_CK = pair.taught.first_CK[:, 1:]
    own_CK, taught_CK = (_ranks(d.logits_CV.gather(-1, ids_CK)) for d in (pair.model, pair.taught))
    own_C, taught_C = own_CK.square().sum(-1), taught_CK.square().sum(-1)
    no_order_C = (own_C == 0) | (taught_C == 0)
    found_C = (own_CK * taught_CK).sum(-1) / (own_C * taught_C).sqrt()
    return torch.where(no_order_C, (own_C == taught_C).double(), found_C)


Measure = Callable[[Pair], Tensor]
OWN: Mapping[str, Measure] = {m.__name__: m for m in (nll_nats, confidence, correct, brier, heated_nats, heated_slopes)}
AGAINST: Mapping[str, Measure] = {
    m.__name__: m for m in (kl_nats, agree, reverse_kl_nats, acceptance, top5_overlap, runner_up_order)
}
# What the compiled loop writes, in its order.
COLUMNS = {
    "nll_nats": slice(0, 1),
    "confidence": slice(1, 2),
    "correct": slice(2, 3),
    "brier": slice(3, 4),
    "heated_nats": slice(4, 11),
    "heated_slopes": slice(11, 18),
    "kl_nats": slice(18, 19),
    "agree": slice(19, 20),
    "reverse_kl_nats": slice(20, 21),
    "acceptance": slice(21, 22),
    "top5_overlap": slice(22, 23),
    "runner_up_order": slice(23, 24),
}


def numbers(model: Product, teacher: Product | None, next_ids_C: Tensor) -> Columns:
    """Every measure at each position of a chunk, float64 on the CPU: [C], of the heated ones [C, H]."""
    measures = {**OWN, **(AGAINST if teacher is not None else {})}
    if not fused.is_compiled(model.stored_CV, teacher.stored_CV if teacher is not None else None):
        return _plain(model, teacher, next_ids_C, measures=measures)
    found = _compiled(model, teacher, next_ids_C)
    columns = {name: _narrow(found[:, COLUMNS[name]]) for name in measures if name in COLUMNS}
    own_measures = {name: measure for name, measure in measures.items() if name not in COLUMNS}
    if own_measures:
        columns |= _plain(model, teacher, next_ids_C, measures=own_measures)
    return _mended(columns, model, teacher, next_ids_C=next_ids_C, measures=measures)


def _plain(model: Product, teacher: Product | None, next_ids_C: Tensor, *, measures: Mapping[str, Measure]) -> Columns:
    own_CV = model.logits()
    taught_CV = teacher.logits().to(own_CV.device) if teacher is not None else None
    wide = torch.promote_types(own_CV.dtype, taught_CV.dtype) if taught_CV is not None else own_CV.dtype
    taught = Distribution(taught_CV.to(wide)) if taught_CV is not None else None
    pair = Pair(Distribution(own_CV.to(wide)), taught, next_ids_C.to(own_CV.device))
    return {name: measure(pair).double().cpu().numpy() for name, measure in measures.items()}


def _compiled(model: Product, teacher: Product | None, next_ids_C: Tensor) -> NDArray[np.float64]:
    """All columns [C, L] by the compiled loop; torch's threads share the rows."""
    loop = _loop()
    n_rows, n_columns = model.stored_CV.shape
    assert teacher is None or teacher.stored_CV.shape == model.stored_CV.shape, "both models have one vocabulary"
    assert n_rows == len(next_ids_C) and 0 <= int(next_ids_C.min()) <= int(next_ids_C.max()) < n_columns
    stored = [model.stored_CV, (teacher or model).stored_CV]
    if stored[0].dtype != stored[1].dtype:
        stored = [each.float() for each in stored]
    out_CL = np.zeros((n_rows, max(place.stop for place in COLUMNS.values())))
    factors = (np.float32(model.factor), np.float32((teacher or model).factor))
    arrays = [fused.stored_array(each) for each in stored]
    work = partial(loop.rows, *arrays, next_ids_C.cpu().numpy(), out_CL, factors, teacher is not None)
    fused.over_rows(work, n_rows=n_rows)
    return out_CL


def _mended(
    columns: Columns, model: Product, teacher: Product | None, *, next_ids_C: Tensor, measures: Mapping[str, Measure]
) -> Columns:
    """The same with the rows that are not finite worked out again the plain way, which knows infinite logits."""
    broken_C = np.zeros(len(next_ids_C), dtype=bool)
    for values in columns.values():
        broken_C |= ~np.isfinite(values.reshape(len(values), -1)).all(-1)
    if not broken_C.any():
        return columns
    rows = torch.from_numpy(broken_C.nonzero()[0])
    again = _plain(
        Product(model.stored_CV[rows], model.factor),
        Product(teacher.stored_CV[rows], teacher.factor) if teacher is not None else None,
        next_ids_C[rows],
        measures=measures,
    )
    for name, values in again.items():
        columns[name][broken_C] = values
    return columns


@cache
def _loop() -> ModuleType:
    from tutelage.evaluation import _positions_cpu

    return _positions_cpu


def _narrow(values_CL: NDArray[np.float64]) -> NDArray[np.float64]:
    return values_CL[:, 0] if values_CL.shape[1] == 1 else values_CL


def _at(values_CV: Tensor, ids_C: Tensor) -> Tensor:
    return values_CV.gather(-1, ids_C[:, None]).squeeze(-1)


def _shifted(pair: Pair) -> tuple[Tensor, Tensor]:
    """Logits less their maximum, and that of the true token."""
    z_CV = pair.model.logits_CV - pair.model.logits_CV.max(-1, keepdim=True).values
    return z_CV, _at(z_CV, pair.next_ids_C)


def _dot(p_CV: Tensor, values_CV: Tensor) -> Tensor:
    """Sum of p * value, shape [C]; a token with p = 0 adds nothing, also where its value is infinite."""
    return (p_CV * values_CV).masked_fill(p_CV == 0, 0.0).sum(-1)


def _ranks(values_CK: Tensor) -> Tensor:
    """Ranks of the largest first about their mean, doubled so that they are whole; equal values share theirs."""
    above_CK = (values_CK[:, None, :] > values_CK[:, :, None]).double().sum(-1)
    same_CK = (values_CK[:, None, :] == values_CK[:, :, None]).double().sum(-1) - 1
    return 2 * above_CK + same_CK - (values_CK.shape[-1] - 1)


def _first_tokens(logits_CV: Tensor, n: int) -> Tensor:
    """Ids [C, n] of the largest logits in their order; topk alone promises no order of equal ones."""
    if logits_CV.dtype == torch.float64:
        return torch.sort(logits_CV, dim=-1, descending=True, stable=True).indices[:, :n]
    bits_CV = (logits_CV.float() + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    ordered_CV = (bits_CV ^ ((bits_CV >> 31) & 0x7FFFFFFF)).long()
    n_columns = logits_CV.shape[-1]
    ids_V = torch.arange(n_columns, device=logits_CV.device)
    keys_CV = ordered_CV * n_columns + (n_columns - 1 - ids_V)
    return n_columns - 1 - keys_CV.topk(n, dim=-1).values.remainder(n_columns)
