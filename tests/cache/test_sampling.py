"""Threshold sampling: exact expectations over the draw, whole weights, and two ways that agree.

Shape legend: N positions, G draws of a grid, V vocabulary.
"""

import numpy as np
import pytest
import torch

from tutelage.cache import sampling
from tutelage.cache.codec import Positions
from tutelage.errors import NumericError
from tutelage.types import Head

V = 12


def distribution(kind: str) -> torch.Tensor:
    """p [V], float64."""
    shapes = {
        "sure": [0.9, 0.05] + [0.05 / (V - 2)] * (V - 2),
        "two heads": [0.4, 0.03, 0.35, 0.02] + [0.2 / (V - 4)] * (V - 4),
        "many heads": [0.2, 0.17, 0.16, 0.15, 0.14, 0.11] + [0.07 / (V - 6)] * (V - 6),
        "flat": [1 / V + (i - (V - 1) / 2) * 1e-3 for i in range(V)],
    }
    p_V = torch.tensor(shapes[kind], dtype=torch.float64)
    return p_V / p_V.sum()


def positions(n: int, *, seed: int = 0) -> Positions:
    return Positions(
        current_ids_N=np.zeros(n, np.int64),
        next_ids_N=np.zeros(n, np.int64),
        counts_R=np.array([n]),
        seeds_R=np.array([seed], np.uint64),
    )


def dense(drawn: sampling.Drawn, *, n: int, vocabulary: int) -> np.ndarray:
    """Weights in grains [N, V]."""
    units_NV = np.zeros((n, vocabulary), np.int64)
    np.add.at(units_NV, (np.repeat(np.arange(n), np.diff(drawn.offsets)), drawn.ids_M), drawn.units_M)
    return units_NV


def at_draws(p_V: torch.Tensor, draws_G: np.ndarray, *, m: int, grains: int, way: str) -> np.ndarray:
    """Weights in grains [G, V] for given draws, by the reference or by the compiled loop."""
    logp_GV = p_V.log().repeat(len(draws_G), 1)
    next_ids_G = np.zeros(len(draws_G), np.int64)
    if way == "reference":
        drawn = sampling.reference(logp_GV, next_ids_G, draws_C=draws_G, m=m, grains=grains)
    else:
        head = Head(weight_VD=torch.zeros(1, 1), bias_V=None, n_vocabulary=len(p_V))
        drawn = sampling._compiled(logp_GV.float(), head, 1.0, next_ids_G, draws_G, m, grains)
    return dense(drawn, n=len(draws_G), vocabulary=len(p_V))


@pytest.mark.parametrize("way", ["reference", "compiled"])
@pytest.mark.parametrize("kind", ["sure", "two heads", "many heads", "flat"])
@pytest.mark.parametrize(("m", "grains"), [(4, 1), (7, 2), (11, 4)])
def test_the_mean_over_all_draws_is_the_teachers_distribution(kind, m, grains, way):
    """Between two neighbouring breakpoints nothing changes, so a fine grid integrates to within its step."""
    p_V, n = distribution(kind), 20_000
    units_GV = at_draws(p_V, (np.arange(n) + 0.5) / n, m=m, grains=grains, way=way)
    largest_step = 2 * (m + 2) / n  # each breakpoint is missed by at most a step, each jump is at most tau
    assert np.abs(units_GV.mean(0) / (m * grains) - p_V.numpy()).max() < largest_step


@pytest.mark.parametrize("way", ["reference", "compiled"])
@pytest.mark.parametrize("kind", ["sure", "two heads", "many heads", "flat"])
def test_weights_are_whole_never_negative_and_sum_to_one(kind, way):
    draws_G = (np.arange(1000) + 0.5) / 1000
    for m, grains in ((4, 2), (10, 1), (10, 2), (13, 4)):
        units_GV = at_draws(distribution(kind), draws_G, m=m, grains=grains, way=way)
        assert (units_GV >= 0).all()
        assert (units_GV.sum(1) == m * grains).all()
        weights_GV = torch.from_numpy(units_GV).float() / np.float32(m * grains)
        assert weights_GV.double().sum(1).sub(1).abs().max() < 1e-6


def test_heads_are_the_tokens_of_at_least_tau_and_picks_weigh_tau():
    p_V = distribution("many heads")
    for m in (4, 7, 9, 30):
        drawn = sampling.reference(p_V.log()[None], np.zeros(1, np.int64), draws_C=np.array([0.3]), m=m, grains=2)
        heads = drawn.ids_M[: drawn.n_heads_N[0]]
        assert sorted(heads.tolist()) == (p_V * m >= 1).nonzero()[:, 0].tolist()
        if len(heads):
            assert heads[0] == int(p_V.argmax())
        assert (drawn.units_M[drawn.n_heads_N[0] :] == 2).all()


def top_k_renormalised(p_NV: torch.Tensor, k: int) -> torch.Tensor:
    kept = p_NV.topk(k)
    return torch.zeros_like(p_NV).scatter(-1, kept.indices, kept.values / kept.values.sum(-1, keepdim=True))


def test_a_million_seeded_draws_are_unbiased_to_five_sigma_and_top_k_is_not():
    n, m, grains = 1_000_000, 9, 2
    generator = torch.Generator().manual_seed(3)
    p_V = torch.softmax(torch.randn(40, generator=generator, dtype=torch.float64) * 1.5, -1)
    draws_N = sampling.draws(positions(n, seed=11))
    units_NV = np.concatenate(
        [at_draws(p_V, part, m=m, grains=grains, way="compiled") for part in np.split(draws_N, 10)]
    )
    weights_NV = units_NV / (m * grains)
    error_V = weights_NV.mean(0) - p_V.numpy()
    sigma_V = weights_NV.std(0) / np.sqrt(n) + 1e-9
    assert (np.abs(error_V) < 5 * sigma_V).all()
    biased_V = top_k_renormalised(p_V[None], 9)[0].numpy() - p_V.numpy()
    assert (np.abs(biased_V) > 5 * sigma_V).any(), "the negative control must fail"


def test_draws_differ_by_position_and_row_and_are_uniform():
    draws_N = sampling.draws(positions(100_000, seed=5))
    assert len(np.unique(draws_N)) > 99_000
    assert ((draws_N > 0) & (draws_N < 1)).all()
    counts = np.histogram(draws_N, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 60  # chi-square, 19 degrees: beyond 1 in 10**5
    assert abs(np.corrcoef(draws_N[:-1], draws_N[1:])[0, 1]) < 0.02
    assert not np.array_equal(draws_N, sampling.draws(positions(100_000, seed=6)))


def test_draws_are_those_of_splitmix64():
    """The first numbers of the generator as published, for seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [((number >> 32) + 0.5) / 2**32 for number in published]
    assert sampling.draws(positions(3, seed=1234567)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_compiled_way_picks_what_the_reference_picks(dtype, temperature):
    """A pick may move to a neighbour where the draw is within 1e-5 of a token's edge: at most 1 position in 50 here."""
    generator = torch.Generator().manual_seed(0)
    n, vocabulary, m = 300, 5000, 25
    weight_VD = (torch.randn(vocabulary, 16, generator=generator) * 0.7).to(dtype)
    hidden_ND = torch.randn(n, 16, generator=generator).to(dtype)
    head = Head(weight_VD=weight_VD, bias_V=None, n_vocabulary=vocabulary, scale=1.3)
    rows = positions(n)
    ours = sampling.sample(hidden_ND, head=head, positions=rows, temperature=temperature, m=m, grains=2)
    places = [
        (place, torch.log_softmax(head.finish(product_CV).double() / temperature, -1))
        for place, product_CV in sampling.products(hidden_ND, head=head)
    ]
    draws_N, different = sampling.draws(rows), 0
    for place, logp_CV in places:
        theirs = sampling.reference(logp_CV, rows.next_ids_N[place], draws_C=draws_N[place], m=m, grains=2)
        mine = ours.between(place.start, place.stop)
        different += int(
            (dense(mine, n=len(logp_CV), vocabulary=vocabulary) != dense(theirs, n=len(logp_CV), vocabulary=vocabulary))
            .any(1)
            .sum()
        )
        assert (mine.n_heads_N == theirs.n_heads_N).all()
        assert np.abs(mine.next_logp_N - theirs.next_logp_N).max() < 1e-5
    assert different <= n // 50


def test_a_soft_capped_head_is_sampled_after_its_cap():
    generator = torch.Generator().manual_seed(1)
    head = Head(weight_VD=torch.randn(50, 8, generator=generator), bias_V=None, n_vocabulary=50, soft_cap=2.0)
    hidden_ND = torch.randn(20, 8, generator=generator) * 3
    drawn = sampling.sample(hidden_ND, head=head, positions=positions(20), temperature=1.0, m=8, grains=2)
    expected_N = torch.log_softmax(head.logits(hidden_ND), -1)[:, 0].double().numpy()
    assert np.abs(drawn.next_logp_N - expected_N).max() < 1e-5


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_is_refused(broken):
    head = Head(weight_VD=torch.ones(50, 8), bias_V=None, n_vocabulary=50)
    hidden_ND = torch.ones(3, 8)
    hidden_ND[1, 2] = broken
    with pytest.raises(NumericError):
        sampling.sample(hidden_ND, head=head, positions=positions(3), temperature=1.0, m=8, grains=2)
