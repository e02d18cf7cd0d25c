"""What holds for every codec: the file's form, the round trip, and the refusal of bytes that belong elsewhere."""

import re

import numpy as np
import pytest
import torch

from tests.cache import synthetic
from tutelage import plugins
from tutelage.cache.codec import CODECS, Budget, Mismatch, Positions
from tutelage.cache.error import measure
from tutelage.types import DenseTargets, LogitTargets, SampledTargets, TopKTargets

NAMES = plugins.names(CODECS)
TARGETS = {"sample": SampledTargets, "top_k": TopKTargets, "hidden": DenseTargets, "logits": LogitTargets}
COUNTS = (40, 0, 1, 25, 40)
V = 300


class Case:
    """A codec with rows of a teacher, fitted, encoded and ready to be damaged."""

    def __init__(self, name: str, *, counts=COUNTS, vocabulary: int = V) -> None:
        self.codec = plugins.load(CODECS, name)
        self.teacher = synthetic.head(vocabulary=vocabulary)
        self.hidden_ND = synthetic.states(sum(counts))
        rows = synthetic.positions(counts, vocabulary=vocabulary)
        self.rows = synthetic.likely(self.hidden_ND, self.teacher, rows)
        self.fitted = synthetic.fitted(self.codec, hidden_ND=self.hidden_ND, teacher=self.teacher, rows=self.rows)
        self.encoded = self.encode(self.hidden_ND, self.rows)
        self.data = synthetic.bytes_of(self.encoded)

    def encode(self, hidden_ND, rows: Positions):
        return synthetic.encoded(self.codec, self.fitted, hidden_ND=hidden_ND, teacher=self.teacher, rows=rows)

    def decode(self, data=None, *, rows: Positions | None = None):
        data, rows = self.data if data is None else data, self.rows if rows is None else rows
        return synthetic.decoded(self.codec, self.fitted, data, rows=rows, vocabulary=self.teacher.n_vocabulary)


@pytest.fixture(scope="module", params=NAMES)
def case(request) -> Case:
    return Case(request.param)


def with_next(rows: Positions, next_ids_N) -> Positions:
    return Positions(
        current_ids_N=rows.current_ids_N, next_ids_N=next_ids_N, counts_R=rows.counts_R, seeds_R=rows.seeds_R
    )


def shifted(ids_N, rows: Positions):
    """The ids of every row moved by one position inside it."""
    places = np.split(ids_N, np.cumsum(rows.counts_R)[:-1])
    return np.concatenate([np.roll(place, 1) for place in places])


# --- form ---
@pytest.mark.parametrize("name", NAMES)
def test_a_codec_says_its_kind_its_bytes_and_its_error(name):
    codec = plugins.load(CODECS, name)
    assert codec.KIND in TARGETS
    assert all(callable(getattr(codec, function)) for function in ("fit", "encode", "decode"))
    said = codec.__doc__.lower()
    assert re.search(r"bytes a token", said) and "error" in said


def test_the_bytes_are_known_before_anything_is_asked(case):
    """Where they follow from the settings alone; of a sample the budget is what the fit aims at."""
    said = case.codec.expected_bytes(
        Budget(), n_vocabulary=V, hidden_size=case.hidden_ND.shape[1],
        row_positions=sum(COUNTS) / len(COUNTS),
    )  # fmt: skip
    if case.codec.KIND == "sample":
        assert said == 16.0
    else:
        assert said == pytest.approx(sum(map(len, case.data)) / sum(COUNTS), rel=0.002)


def test_bytes_that_the_data_alone_can_tell_are_not_guessed():
    for name, budget in (("topk", Budget(error=0.1)), ("threshold", Budget(error=0.1)),
                         ("threshold", Budget(fixed={"threshold": 0.04}))):  # fmt: skip
        codec = plugins.load(CODECS, name)
        assert codec.expected_bytes(budget, n_vocabulary=V, hidden_size=8, row_positions=100) is None


# --- round trip ---
def test_the_targets_have_the_codecs_kind_and_all_positions(case):
    targets = case.decode()
    assert type(targets) is TARGETS[case.codec.KIND]
    assert measure(targets, hidden_ND=case.hidden_ND, head=case.teacher).n == sum(COUNTS)


def test_the_gradient_of_what_is_read_is_near_the_teachers(case):
    error = measure(case.decode(), hidden_ND=case.hidden_ND, head=case.teacher)
    assert error.per_position < 0.35
    assert error.batch < 0.2


def test_encoding_gives_the_teachers_loss(case):
    logp_NV = torch.log_softmax(case.teacher.logits(case.hidden_ND).double(), -1)
    true_N = logp_NV.gather(-1, torch.from_numpy(case.rows.next_ids_N)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(case.encoded.next_logp_N, true_N, atol=1e-5)
    assert 0 < case.encoded.witness_bytes <= sum(len(row) for row in case.encoded.rows)


def test_encoding_twice_gives_the_same_bytes(case):
    assert case.encode(case.hidden_ND, case.rows).rows == case.encoded.rows


def test_a_row_has_the_same_bytes_alone_as_beside_others(case):
    for row in range(len(COUNTS)):
        place, alone = synthetic.part(case.rows, row)
        assert case.encode(case.hidden_ND[place], alone).rows == case.encoded.rows[row : row + 1]


def test_a_row_has_the_same_targets_alone_as_beside_others(case):
    whole, others = case.decode(), []
    for row in range(len(COUNTS)):
        _, alone = synthetic.part(case.rows, row)
        others.append(case.decode(case.data[row : row + 1], rows=alone))
    for name in ("weights_M", "ids_M", "ids_NK", "logp_NK", "tail_logp_N", "hidden_ND", "logits_NV"):
        if hasattr(whole, name):
            assert torch.equal(torch.cat([getattr(one, name) for one in others]), getattr(whole, name))


def test_rows_without_positions_alone_are_read(case):
    _, empty = synthetic.part(case.rows, 1)
    targets = case.decode(case.data[1:2], rows=empty)
    assert type(targets) is TARGETS[case.codec.KIND]


def test_no_rows_at_all_are_read(case):
    none = synthetic.positions(())
    assert case.encode(case.hidden_ND[:0], none).rows == ()
    assert type(case.decode([], rows=none)) is TARGETS[case.codec.KIND]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocabulary", [2**n + d for n in (15, 16, 17, 18) for d in (-1, 0, 1)])
def test_ids_of_large_vocabularies_never_wrap(name, vocabulary):
    """Every second next token is one of the last ids, which the teacher thinks likely."""
    codec = plugins.load(CODECS, name)
    teacher = synthetic.head(vocabulary=vocabulary, hidden=4)
    teacher.weight_VD[-2:] = torch.tensor([[4.0, 4.0, 4.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    hidden_ND = synthetic.states(12, hidden=4).abs()
    rows = with_next(synthetic.positions((6, 6), vocabulary=vocabulary), np.tile([vocabulary - 1, vocabulary - 2], 6))
    fitted = synthetic.fitted(codec, hidden_ND=hidden_ND, teacher=teacher, rows=rows)
    encoded = synthetic.encoded(codec, fitted, hidden_ND=hidden_ND, teacher=teacher, rows=rows)
    targets = synthetic.decoded(codec, fitted, synthetic.bytes_of(encoded), rows=rows, vocabulary=vocabulary)
    assert measure(targets, hidden_ND=hidden_ND, head=teacher).per_position < 0.2


# --- refusal ---
@pytest.mark.parametrize("n_cut", [1, 2, 7])
def test_cut_bytes_are_refused_as_damage(case, n_cut):
    for row in (0, 2, 4):
        data = list(case.data)
        data[row] = data[row][:-n_cut]
        with pytest.raises(Mismatch) as refused:
            case.decode(data)
        assert refused.value.row == row and refused.value.damaged


def test_flipped_bits_are_refused_as_damage(case):
    data = list(case.data)
    for byte in range(0, len(data[3]), max(1, len(data[3]) // 40)):
        flipped = data[3].copy()
        flipped[byte] ^= 1 << byte % 8
        with pytest.raises(Mismatch) as refused:
            case.decode([*data[:3], flipped, *data[4:]])
        assert refused.value.row == 3 and refused.value.damaged


def test_the_bytes_of_another_row_are_refused_as_foreign(case):
    for bytes_row in (0, 3):  # as long as row 4, and not
        with pytest.raises(Mismatch) as refused:
            case.decode([*case.data[:4], case.data[bytes_row]])
        assert refused.value.row == 4 and not refused.value.damaged


def test_tokens_that_are_shifted_by_one_are_refused_as_foreign(case):
    moved = with_next(case.rows, shifted(case.rows.next_ids_N, case.rows))
    with pytest.raises(Mismatch) as refused:
        case.decode(rows=moved)
    assert refused.value.row == 0 and not refused.value.damaged


def test_one_foreign_token_in_a_row_is_refused(case):
    next_ids_N = case.rows.next_ids_N.copy()
    next_ids_N[-5] = (next_ids_N[-5] + 1) % V
    with pytest.raises(Mismatch) as refused:
        case.decode(rows=with_next(case.rows, next_ids_N))
    assert refused.value.row == 4
