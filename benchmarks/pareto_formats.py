"""What others store of a teacher, written from their descriptions: the targets that a student sees, and their bytes.

    top-k                 k ids bit-packed, k float16: our codec `topk`, which is the same thing with a witness
    DistillKit            its three documented configurations: the first few of the k log-probabilities as floats, the
                          others as a least-squares polynomial of their rank (powers, and a square root), coefficients
                          in float32, ids bit-packed; tokens that are not among the k count as probability 0
    draws                 n draws with replacement (Sparse Logit Sampling, arXiv:2503.16870): ids bit-packed and a count
                          each, weight count / n; or, as Gemma 3's report says (arXiv:2503.19786), the drawn tokens'
                          own probabilities in float16, normalised among themselves

Prices leave out whatever framing their files have, so they are low.

Shape legend: N positions, C positions of a chunk, V vocabulary, K kept ids, J draws, M entries of all positions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.types import Head, SampledTargets, TopKTargets

K, J = 128, 256
DRAWS = (12, 50, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What every sparse format needs of the teacher's distributions: made in one pass."""

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor
    draws_NJ: Tensor
    draws_logp_NJ: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A format's targets at all positions, and what they cost."""

    targets: SampledTargets | TopKTargets
    bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A configuration of DistillKit's: `k` ids, `exact` floats of `exact_bytes`, and these powers of the rank."""

    k: int
    exact: int
    exact_bytes: int
    powers: tuple[float, ...]


DISTILLKIT = {
    "recommended": Polynomial(128, 16, 2, (0, 1, 2, 3, 4, 0.5)),
    "budget": Polynomial(50, 1, 2, (0, 1, 0.5)),
    "released Qwen3-235B": Polynomial(128, 32, 4, (0, 1, 2)),
}


GEMMA = "256 draws, Gemma 3"
NAMES = (*(f"DistillKit {name}" for name in DISTILLKIT), *(f"{n} draws" for n in DRAWS), GEMMA)


@torch.no_grad()
def kept_of(hidden_ND: Tensor, *, head: Head, seed: int) -> Kept:
    """The K most likely tokens, the mass of the rest and J draws at each position."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for place in chunks_of(len(hidden_ND)):
        logp_CV = log_probabilities(hidden_ND[place], head=head)
        kept_CK, ids_CK = logp_CV.topk(K, dim=-1)
        p_CV = logp_CV.exp_()
        draws_CJ = torch.multinomial(p_CV, J, replacement=True, generator=draw)
        draws_logp_CJ = p_CV.gather(-1, draws_CJ).log()
        tail_C = p_CV.scatter_(-1, ids_CK, 0.0).sum(-1).log()
        parts.append((ids_CK, kept_CK, tail_C, draws_CJ, draws_logp_CJ))
    ids_NK, logp_NK, tail_N, draws_NJ, draws_logp_NJ = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Kept(ids_NK=ids_NK, logp_NK=logp_NK, tail_N=tail_N, draws_NJ=draws_NJ, draws_logp_NJ=draws_logp_NJ)


def stored(name: str, kept: Kept, *, bits: int) -> Stored:
    """One of NAMES."""
    if name == GEMMA:
        return gemma(kept, bits=bits)
    if name.startswith("DistillKit "):
        return distillkit(kept, DISTILLKIT[name.removeprefix("DistillKit ")], bits=bits)
    return draws(kept, int(name.partition(" ")[0]), bits=bits)


def top_k(kept: Kept, k: int, *, tail: bool) -> TopKTargets:
    """What codec `topk` stores of the first k, as it is read again."""
    rest_N = torch.cat([kept.logp_NK[:, k:], kept.tail_N[:, None]], -1).logsumexp(-1) if tail else None
    stored_NK = kept.logp_NK[:, :k].half().float()
    rest_N1 = torch.full((len(stored_NK), 1), -math.inf) if rest_N is None else rest_N.half().float()[:, None]
    all_NS = torch.log_softmax(torch.cat([stored_NK, rest_N1], -1), -1)
    return TopKTargets(ids_NK=kept.ids_NK[:, :k], logp_NK=all_NS[:, :-1], tail_logp_N=all_NS[:, -1], temperature=1.0)


def distillkit(kept: Kept, configuration: Polynomial, *, bits: int) -> Stored:
    """The first entries in their dtype, a polynomial through the others by least squares."""
    k, exact = configuration.k, configuration.exact
    dtype = torch.bfloat16 if configuration.exact_bytes == 2 else torch.float32
    rank_R = torch.arange(1, k - exact + 1, dtype=torch.float64) / (k - exact)
    terms_RP = torch.stack([rank_R**power for power in configuration.powers], -1)
    coefficients_NP = (kept.logp_NK[:, exact:k].double() @ torch.linalg.pinv(terms_RP).T).float()
    exact_NK = kept.logp_NK[:, :exact].to(dtype).float()
    # The ids are sorted, so no later one is more likely than the last exact one: without this the curve overshoots.
    curve_NR = (coefficients_NP @ terms_RP.T.float()).minimum(exact_NK[:, -1:])
    logp_NK = torch.cat([exact_NK, curve_NR], -1)
    n = len(logp_NK)
    targets = SampledTargets(
        ids_M=kept.ids_NK[:, :k].reshape(-1),
        weights_M=logp_NK.exp().reshape(-1),
        offsets=torch.arange(0, n * k + 1, k),
        temperature=1.0,
    )
    n_bytes = math.ceil(k * bits / 8) + exact * configuration.exact_bytes + 4 * len(configuration.powers)
    return Stored(targets=targets, bytes_per_token=float(n_bytes))


def draws(kept: Kept, n_draws: int, *, bits: int) -> Stored:
    """n draws with replacement: an unbiased sample."""
    ids_M, counts_M, _, offsets = _distinct(kept.draws_NJ[:, :n_draws])
    targets = SampledTargets(ids_M=ids_M, weights_M=counts_M / n_draws, offsets=offsets, temperature=1.0)
    entry_bits = bits + math.ceil(math.log2(n_draws))
    return Stored(targets=targets, bytes_per_token=len(ids_M) * entry_bits / 8 / (len(offsets) - 1))


def gemma(kept: Kept, *, bits: int) -> Stored:
    """The drawn tokens with their own probabilities, normalised among themselves: biased."""
    ids_M, _, first_M, offsets = _distinct(kept.draws_NJ)
    order_NJ = kept.draws_NJ.sort(dim=-1, stable=True).indices
    p_M = kept.draws_logp_NJ.gather(-1, order_NJ).reshape(-1)[first_M].half().float().exp()
    position_M = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    total_N = torch.zeros(len(offsets) - 1).index_add_(0, position_M, p_M)
    targets = SampledTargets(ids_M=ids_M, weights_M=p_M / total_N[position_M], offsets=offsets, temperature=1.0)
    return Stored(targets=targets, bytes_per_token=len(ids_M) * (bits + 16) / 8 / (len(offsets) - 1))


def _distinct(draws_NJ: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct ids of each position, how often each was drawn, where it begins in the sorted draws, and offsets."""
    sorted_NJ = draws_NJ.sort(dim=-1, stable=True).values
    is_first_NJ = torch.ones_like(sorted_NJ, dtype=torch.bool)
    is_first_NJ[:, 1:] = sorted_NJ[:, 1:] != sorted_NJ[:, :-1]
    first_M = is_first_NJ.reshape(-1).nonzero()[:, 0]
    counts_M = torch.cat([first_M, torch.tensor([sorted_NJ.numel()])]).diff()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), is_first_NJ.sum(-1).cumsum(0)])
    return sorted_NJ.reshape(-1)[first_M], counts_M, first_M, offsets
