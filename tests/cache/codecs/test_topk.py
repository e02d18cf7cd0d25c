"""Top-k: the tail in precision, the width of the ids, the rounding's bounds, the choice of k and what is refused."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache import synthetic
from tutelage.cache.codec import Budget, Fitted, Mismatch
from tutelage.cache.codecs import _row, topk
from tutelage.cache.error import measure
from tutelage.errors import ConfigError, NumericError
from tutelage.types import Head, TopKTargets

V = 300
COUNTS = (30, 1, 17)


def chosen(k: int, *, tail: bool = True) -> Fitted:
    return Fitted(settings={"k": k, "tail": tail}, tables={}, why="")


def stored(k: int, *, tail: bool = True, teacher: Head | None = None, hidden_ND=None, rows=None):
    """Teacher, hidden states, rows, bytes and what is read of them."""
    teacher = synthetic.head() if teacher is None else teacher
    rows = synthetic.positions(COUNTS, vocabulary=teacher.n_vocabulary) if rows is None else rows
    hidden_ND = synthetic.states(len(rows), dtype=teacher.weight_VD.dtype) if hidden_ND is None else hidden_ND
    encoded = synthetic.encoded(topk, chosen(k, tail=tail), hidden_ND=hidden_ND, teacher=teacher, rows=rows)
    data = synthetic.bytes_of(encoded)
    read = synthetic.decoded(topk, chosen(k, tail=tail), data, rows=rows, vocabulary=teacher.n_vocabulary)
    return teacher, hidden_ND, rows, data, read


def true_logp(teacher: Head, hidden_ND) -> torch.Tensor:
    return torch.log_softmax(teacher.logits(hidden_ND).double(), -1)


def merged(logp_NV, ids_NK) -> torch.Tensor:
    """The K + 1 probabilities by a plain loop: kept ones, and the sum of all others."""
    rows = []
    for logp_V, ids_K in zip(logp_NV.tolist(), ids_NK.tolist(), strict=True):
        rest = math.fsum(math.exp(x) for i, x in enumerate(logp_V) if i not in set(ids_K))
        rows.append([math.exp(logp_V[i]) for i in ids_K] + [rest])
    return torch.tensor(rows, dtype=torch.float64)


# --- what is stored ---
@pytest.mark.parametrize("k", [1, 7, 64, V - 1, V])
def test_the_kept_and_the_tail_are_the_teachers(k):
    teacher, hidden_ND, _, _, read = stored(k)
    logp_NV = true_logp(teacher, hidden_ND)
    assert torch.equal(read.ids_NK.sort(-1).values, logp_NV.topk(k, -1).indices.sort(-1).values)
    assert (read.logp_NK.diff(dim=-1) <= 0).all()
    both_NS = torch.cat([read.logp_NK.double(), read.tail_logp_N.double()[:, None]], -1).exp()
    torch.testing.assert_close(both_NS, merged(logp_NV, read.ids_NK), rtol=6e-3, atol=1e-6)
    torch.testing.assert_close(both_NS.sum(-1), torch.ones(len(both_NS), dtype=torch.float64), rtol=0, atol=1e-6)


def test_with_all_tokens_kept_no_tail_is_left():
    *_, read = stored(V)
    assert (read.tail_logp_N == -math.inf).all()


def test_a_tail_that_float32_cannot_see_in_one_minus_the_sum_is_kept():
    """The first token has all but 1e-9 of the mass: 1 - p is 0 in float32, the tail's logarithm is -20.7."""
    weight_VD = torch.zeros(4, 1)
    weight_VD[0] = 20.7 + math.log(3)
    teacher = Head(weight_VD=weight_VD, bias_V=None, n_vocabulary=4)
    *_, read = stored(1, teacher=teacher, hidden_ND=torch.ones(2, 1), rows=synthetic.positions((2,), vocabulary=4))
    torch.testing.assert_close(read.tail_logp_N, torch.full((2,), -20.7), rtol=0, atol=0.01)


def test_tokens_without_any_probability_stay_without():
    teacher = Head(weight_VD=torch.tensor([[0.0], [0.0], [-1e30], [-1e30]]), bias_V=None, n_vocabulary=4)
    rows = synthetic.positions((3,), vocabulary=2)
    *_, read = stored(3, teacher=teacher, hidden_ND=torch.ones(3, 1), rows=rows)
    assert (read.logp_NK[:, 2] == -math.inf).all() and (read.tail_logp_N == -math.inf).all()
    torch.testing.assert_close(read.logp_NK[:, :2], torch.full((3, 2), -math.log(2.0)))


def test_without_tail_the_kept_are_normalised_alone():
    teacher, hidden_ND, _, _, read = stored(5, tail=False)
    kept_NK = true_logp(teacher, hidden_ND).gather(-1, read.ids_NK).softmax(-1)
    torch.testing.assert_close(read.logp_NK.double().exp(), kept_NK, rtol=5e-3, atol=1e-6)
    assert (read.tail_logp_N == -math.inf).all()


@given(st.lists(st.floats(-30, 0), min_size=2, max_size=30), st.floats(1e-9, 1.0), st.integers(0, 2**31))
def test_rounding_the_merged_row_costs_at_most_what_hoeffding_allows(logits, spread, seed):
    """KL(p || read) <= (max d - min d)**2 / 8 over the K + 1 numbers, d = stored - true (O3.2)."""
    jitter = np.random.default_rng(seed).normal(size=len(logits)) * spread
    logp_S = torch.log_softmax(torch.tensor(logits, dtype=torch.float64) + torch.from_numpy(jitter), -1)
    kept_1K, tail_1 = logp_S[None, :-1].half(), logp_S[-1:].half()
    read = topk._normalised(torch.arange(len(logits) - 1)[None], kept_1K, tail_1, temperature=1.0)
    difference_S = torch.cat([kept_1K[0], tail_1]).double() - logp_S
    bound = (difference_S.max() - difference_S.min()) ** 2 / 8
    read_S = torch.cat([read.logp_NK[0], read.tail_logp_N]).double()
    assert (logp_S.exp() * (logp_S - read_S)).sum() <= bound + 1e-6  # the reader's float32


# --- bytes ---
@pytest.mark.parametrize("vocabulary", [2**n + d for n in (15, 16, 17, 18) for d in (-1, 0, 1)])
@pytest.mark.parametrize("k", [1, 3])
def test_a_row_has_exactly_the_bytes_that_the_page_says(vocabulary, k):
    bits = len(bin(vocabulary - 1)) - 2
    teacher = synthetic.head(vocabulary=vocabulary, hidden=2)
    rows = synthetic.positions((3, 0), vocabulary=vocabulary)
    *_, data, _ = stored(k, teacher=teacher, hidden_ND=synthetic.states(3, hidden=2), rows=rows)
    assert [len(row) for row in data] == [-(-3 * k * bits // 8) + 3 * (2 * k + 3) + 6, 6]


@given(st.integers(1, 40), st.lists(st.integers(0, 2**40 - 1), max_size=50))
def test_packed_ids_come_back(bits, ids):
    ids_M = np.array([i % 2**bits for i in ids], np.int64)
    data = _row.packed(ids_M, bits=bits)
    assert len(data) == _row.packed_bytes(len(ids), bits=bits)
    assert _row.unpacked(np.frombuffer(data, np.uint8), len(ids), bits=bits).tolist() == ids_M.tolist()


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 2**16 - 1, 2**16, 2**16 + 1, 151_936])
def test_the_width_of_an_id_is_the_least_that_holds_the_last(vocabulary):
    bits = _row.id_bits(vocabulary)
    assert vocabulary - 1 < 2**bits and (bits == 1 or vocabulary - 1 >= 2 ** (bits - 1))


# --- refusal ---
def reseal(row: np.ndarray) -> np.ndarray:
    """The row with its checksum made right again: what is left to notice is in the numbers."""
    return np.frombuffer(row[:-4].tobytes() + zlib.crc32(row[:-4].tobytes()).to_bytes(4, "little"), np.uint8)


@pytest.mark.parametrize("kept", [True, False])
def test_a_witness_that_contradicts_the_numbers_is_refused(kept):
    teacher, hidden_ND = synthetic.head(), synthetic.states(48)
    logp_NV = true_logp(teacher, hidden_ND)
    rows = synthetic.positions(COUNTS)
    next_ids_N = logp_NV.argsort(-1, descending=True)[:, 0 if kept else 20].numpy()
    rows = type(rows)(
        current_ids_N=rows.current_ids_N, next_ids_N=next_ids_N, counts_R=rows.counts_R, seeds_R=rows.seeds_R
    )
    _, _, _, data, _ = stored(4, teacher=teacher, hidden_ND=hidden_ND, rows=rows)
    wrong = data[2].copy()
    wrong[-6 - 5] = 0  # "the next token is certain"
    with pytest.raises(Mismatch, match="witness") as refused:
        synthetic.decoded(topk, chosen(4), [*data[:2], reseal(wrong)], rows=rows, vocabulary=V)
    assert refused.value.row == 2 and not refused.value.damaged


def test_ids_beyond_the_vocabulary_are_refused():
    _, _, rows, data, _ = stored(4)
    wrong = data[0].copy()
    wrong[0:2] = 255
    with pytest.raises(Mismatch, match="vocabulary"):
        synthetic.decoded(topk, chosen(4), [reseal(wrong), *data[1:]], rows=rows, vocabulary=V)


def test_a_teacher_with_nan_is_refused_when_the_cache_is_made():
    hidden_ND = synthetic.states(48)
    hidden_ND[20] = math.nan
    with pytest.raises(NumericError, match="NONFINITE"):
        stored(4, hidden_ND=hidden_ND)


# --- fit ---
def sampled_fit(**budget) -> Fitted:
    teacher, rows = synthetic.head(), synthetic.positions(COUNTS)
    return synthetic.fitted(topk, hidden_ND=synthetic.states(48), teacher=teacher, rows=rows, budget=Budget(**budget))


def test_the_default_is_sixty_four_and_the_tail():
    assert sampled_fit().settings == {"k": 64, "tail": True}


@pytest.mark.parametrize("n_bytes", [8, 30, 100, 401.5])
def test_the_most_that_the_bytes_hold_is_chosen(n_bytes):
    k = sampled_fit(bytes_per_token=n_bytes).settings["k"]
    sizes = [sum(len(row) for row in stored(k + more)[3]) / 48 for more in (0, 1)]
    assert sizes[0] <= n_bytes < sizes[1] + 0.1


def test_the_least_k_that_meets_the_error_is_chosen():
    k = sampled_fit(error=0.1).settings["k"]
    for kept, meets in ((k, True), (k - 1, False)):
        teacher, hidden_ND, _, _, read = stored(kept)
        assert (measure(read, hidden_ND=hidden_ND, head=teacher).per_position <= 0.1) == meets


def test_no_tail_warns_and_says_how_much_is_dropped(capsys):
    fitted = sampled_fit(fixed={"k": 3, "tail": False})
    assert fitted.settings == {"k": 3, "tail": False}
    said = capsys.readouterr().err
    assert "warning[BIASED_LOSS]: top-3 without tail has another minimiser" in said and "dropped mass 0." in said


@pytest.mark.parametrize(
    "budget",
    [
        {"bytes_per_token": 4.0}, {"error": 1e-9}, {"fixed": {"k": 0}}, {"fixed": {"k": V + 1}}, {"fixed": {"k": 2.5}},
        {"fixed": {"top": 3}},
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_met_says_what_can(budget):
    with pytest.raises(ConfigError, match=r"cache"):
        sampled_fit(**budget)


def test_the_temperature_is_that_of_the_cache():
    teacher, rows, hidden_ND = synthetic.head(), synthetic.positions(COUNTS), synthetic.states(48)
    encoded = topk.encode(
        hidden_ND, head=teacher, positions=rows, temperature=2.0, settings={"k": 6, "tail": True}, tables={}
    )
    read = topk.decode(
        synthetic.bytes_of(encoded), positions=rows, n_vocabulary=V, temperature=2.0,
        settings={"k": 6, "tail": True}, tables={},
    )  # fmt: skip
    assert isinstance(read, TopKTargets) and read.temperature == 2.0
    logp_NV = torch.log_softmax(teacher.logits(hidden_ND) / 2.0, -1)
    torch.testing.assert_close(read.logp_NK, logp_NV.gather(-1, read.ids_NK), rtol=1e-3, atol=2e-3)
