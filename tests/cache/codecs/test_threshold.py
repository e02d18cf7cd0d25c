"""The threshold codec: exact round trips at any size, its settings from a budget, and what it refuses.

What holds for every codec is in `test_contract.py`; that the sample itself is unbiased, in `test_sampling.py`.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache import synthetic
from tutelage.cache import set_coder
from tutelage.cache._set_coder_cpu import MOST_CANDIDATES, ROW_WITNESS
from tutelage.cache.codec import Budget, Mismatch, Sample
from tutelage.cache.codecs import _row, threshold
from tutelage.cache.sampling import sample
from tutelage.cache.set_tables import learn, model_of, profile
from tutelage.errors import ConfigError

COUNTS = (60, 1, 0, 90, 40, 33, 80, 50, 64, 70)


@functools.cache
def tables(*, vocabulary: int, m: int, grains: int):
    """Tables that fit a random teacher over a part of the vocabulary."""
    teacher = synthetic.head(vocabulary=vocabulary, hidden=4)
    rows, hidden_ND = synthetic.positions((30, 20), vocabulary=vocabulary), synthetic.states(50, hidden=4)
    seen = profile(hidden_ND, head=teacher, positions=rows, temperature=1.0)
    drawn = sample(hidden_ND, head=teacher, positions=rows, temperature=1.0, m=m, grains=grains)
    witness_N = _row.witness_codes(drawn.next_logp_N).astype(np.int64)
    all_R = np.ones(2, bool)
    return learn(seen, drawn, witness_N=witness_N, m=m, grains=grains, list_R=all_R, weight_R=all_R)


def model(*, vocabulary: int, m: int, grains: int = 2):
    """A coder that nobody has used, with those tables."""
    return model_of(tables(vocabulary=vocabulary, m=m, grains=grains), m=m, grains=grains)


def random_sets(draw: np.random.Generator, *, n: int, vocabulary: int, m: int, grains: int, next_ids_n):
    """Any sets that a sampler could make: the last id, next tokens in every place, no head, heads alone."""
    ids, units, heads, lengths, witness = [], [], [], [], []
    for t in range(n):
        n_heads = int(draw.integers(0, min(m, 6) + 1)) if draw.random() < 0.8 else 0
        n_picks = int(draw.integers(0, m - n_heads + 1)) if n_heads else m
        chosen = draw.choice(vocabulary, n_heads + n_picks, replace=False)
        if draw.random() < 0.5 and next_ids_n[t] not in chosen and len(chosen):
            chosen[draw.integers(len(chosen))] = next_ids_n[t]
        if draw.random() < 0.3 and vocabulary - 1 not in chosen and vocabulary - 1 != next_ids_n[t] and len(chosen):
            chosen[-1] = vocabulary - 1
        own = np.full(len(chosen), grains)
        if n_heads:
            left = (m - n_picks) * grains
            own[1:n_heads] = draw.multinomial(left, np.ones(n_heads) / n_heads)[1:]
            own[0] = m * grains - own[1:].sum()
        place = np.concatenate([chosen[:1] if n_heads else [], np.sort(chosen[1:n_heads]), np.sort(chosen[n_heads:])])
        ids.append(place.astype(np.int64))
        units.append(own)
        heads.append(n_heads)
        lengths.append(len(chosen))
        witness.append(int(draw.integers(0, 256)) if next_ids_n[t] not in chosen[:n_heads] else -1)
    return set_coder.Sets(
        ids_M=np.concatenate([np.zeros(0, np.int64), *ids]),
        units_M=np.concatenate([np.zeros(0, np.int64), *units]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        n_heads_N=np.array(heads, np.int64),
        witness_N=np.array(witness, np.int64),
    )


def assert_round_trip(vocabulary: int, *, m: int, grains: int, n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    coder = model(vocabulary=vocabulary, m=m, grains=grains)
    current, upcoming = draw.integers(0, vocabulary, (2, n))
    current[: n // 2] = current[0] if n else 0  # a token that comes again and again
    sets = random_sets(draw, n=n, vocabulary=vocabulary, m=m, grains=grains, next_ids_n=upcoming)
    data = set_coder.encode_row(coder, sets, current_ids_n=current, next_ids_n=upcoming)
    read = set_coder.decode_row(
        coder, np.frombuffer(data, np.uint8), current_ids_n=current, next_ids_n=upcoming, row_number=0
    )
    for name in ("ids_M", "units_M", "offsets", "n_heads_N", "witness_N"):
        assert np.array_equal(getattr(read, name), getattr(sets, name)), name


# --- round trip ---
@settings(max_examples=25)
@given(
    vocabulary=st.integers(60, 400), m=st.integers(4, 40), grains=st.sampled_from([1, 2, 4]), n=st.integers(0, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sets_come_back(vocabulary, m, grains, n, seed):
    assert_round_trip(vocabulary, m=m, grains=grains, n=n, seed=seed)


@pytest.mark.parametrize("power", [15, 16, 17, 18])
def test_any_sets_come_back_around_powers_of_two(power):
    for vocabulary in (2**power - 1, 2**power, 2**power + 1):
        assert_round_trip(vocabulary, m=25, grains=2, n=6, seed=power)


@pytest.mark.parametrize("m", [4, 61, 150, 400])
def test_any_sets_come_back_at_any_m_with_more_candidates_than_there_is_room_for(m):
    assert_round_trip(3000, m=m, grains=2, n=12, seed=m)
    assert m < 150 or 12 * m > MOST_CANDIDATES


def test_a_row_is_coded_without_the_row_before():
    """One memory serves row after row, encoded or read: what stands in it from the one before changes no bit."""
    n, draw = 6, np.random.default_rng(0)
    used, data = model(vocabulary=80, m=8), []
    rows = [draw.integers(0, 80, (2, n)) for _ in range(3)]
    drawn = [random_sets(draw, n=n, vocabulary=80, m=8, grains=2, next_ids_n=upcoming) for _, upcoming in rows]
    for (current, upcoming), sets in zip(rows, drawn, strict=True):
        where = {"current_ids_n": current, "next_ids_n": upcoming}
        data.append(set_coder.encode_row(used, sets, **where))
        assert data[-1] == set_coder.encode_row(model(vocabulary=80, m=8), sets, **where)
    for (current, upcoming), sets, row in zip(rows[::-1], drawn[::-1], data[::-1], strict=True):
        where = {"current_ids_n": current, "next_ids_n": upcoming}
        read = set_coder.decode_row(used, np.frombuffer(row, np.uint8), **where, row_number=0)
        assert np.array_equal(read.ids_M, sets.ids_M)


def test_a_set_with_one_token_twice_is_refused():
    """Its tokens could not be put in order: a place of the answer would keep what memory held."""
    coder, next_ids_n = model(vocabulary=400, m=4), np.array([7])
    listed = np.concatenate([coder.cur_list, coder.next_list]) >> 4
    stranger = int(np.setdiff1d(np.arange(8, 400), listed)[0])
    for picks, n_heads, units in (([stranger], 1, [6, 2]), ([stranger, stranger, 399], 0, [2, 2, 2, 2])):
        sets = set_coder.Sets(
            ids_M=np.array([stranger, *picks]), units_M=np.array(units), offsets=np.array([0, 1 + len(picks)]),
            n_heads_N=np.array([n_heads]), witness_N=np.array([3]),
        )  # fmt: skip
        data = set_coder.encode_row(coder, sets, current_ids_n=next_ids_n, next_ids_n=next_ids_n)
        with pytest.raises(Mismatch, match="position 0 of 1"):
            set_coder.decode_row(
                coder, np.frombuffer(data, np.uint8), current_ids_n=next_ids_n, next_ids_n=next_ids_n, row_number=0
            )


# --- targets ---
class Written:
    """Rows of a random teacher, fitted at m, encoded."""

    def __init__(self, *, m: int = 12, temperature: float = 1.0) -> None:
        self.teacher, self.hidden_ND = synthetic.head(vocabulary=700), synthetic.states(sum(COUNTS))
        self.rows = synthetic.likely(self.hidden_ND, self.teacher, synthetic.positions(COUNTS, vocabulary=700))
        whole = Sample(hidden_ND=self.hidden_ND, head=self.teacher, positions=self.rows)
        self.temperature = temperature
        self.fitted = threshold.fit(whole, budget=Budget(fixed={"m": m}), temperature=temperature)
        self.encoded = threshold.encode(
            self.hidden_ND, head=self.teacher, positions=self.rows, temperature=temperature,
            settings=self.fitted.settings, tables=self.fitted.tables,
        )  # fmt: skip

    def read(self, data=None):
        return threshold.decode(
            synthetic.bytes_of(self.encoded) if data is None else data, positions=self.rows, n_vocabulary=700,
            temperature=self.temperature, settings=self.fitted.settings, tables=self.fitted.tables,
        )  # fmt: skip


@pytest.fixture(scope="module")
def written() -> Written:
    return Written()


def test_the_bytes_of_the_witness_are_those_that_it_takes(written):
    """Against the length of the same rows with one and the same witness everywhere; a row is whole words."""
    m, grains = threshold.grain_settings(written.fitted.settings)
    coder = model_of(written.fitted.tables, m=m, grains=grains)
    drawn = sample(written.hidden_ND, head=written.teacher, positions=written.rows, temperature=1.0, m=m, grains=grains)
    likeliest = int(np.argmax(np.diff(coder.cumulative[ROW_WITNESS]))) * 4
    lengths = []
    for codes_N in (_row.witness_codes(drawn.next_logp_N), np.full(len(written.rows), likeliest)):
        one_row = set_coder.Sets(
            ids_M=drawn.ids_M, units_M=drawn.units_M, offsets=drawn.offsets, n_heads_N=drawn.n_heads_N,
            witness_N=codes_N.astype(np.int64),
        )  # fmt: skip
        where = {"current_ids_n": written.rows.current_ids_N, "next_ids_n": written.rows.next_ids_N}
        said = threshold.witness_bits(one_row, coder, next_ids_N=written.rows.next_ids_N)
        lengths.append((8 * len(set_coder.encode_row(coder, one_row, **where)), said))
    (real, real_said), (flat, flat_said) = lengths
    assert abs((real - flat) - (real_said - flat_said)) <= 64
    assert abs(real_said - flat_said) > 100
    assert written.encoded.witness_bytes == real_said / 8


def test_what_is_read_is_what_was_drawn(written):
    m, grains = threshold.grain_settings(written.fitted.settings)
    drawn = sample(written.hidden_ND, head=written.teacher, positions=written.rows, temperature=1.0, m=m, grains=grains)
    targets = written.read()
    assert np.array_equal(targets.ids_M.numpy(), drawn.ids_M)
    assert np.array_equal(targets.weights_M.numpy() * (m * grains), drawn.units_M.astype(np.float32))
    assert np.array_equal(targets.offsets.numpy(), drawn.offsets)


def test_temperature_two_samples_the_softer_distribution():
    """At temperature 2 the mean weight of the likeliest token is that of p_2, far from that of p_1."""
    warm = Written(temperature=2.0)
    targets, top_N = warm.read(), warm.teacher.logits(warm.hidden_ND).argmax(-1)
    row_M = torch.repeat_interleave(torch.arange(sum(COUNTS)), targets.offsets.diff())
    got = targets.weights_M[targets.ids_M == top_N[row_M]].sum().item() / sum(COUNTS)
    p = {t: torch.softmax(warm.teacher.logits(warm.hidden_ND) / t, -1).amax(-1).mean().item() for t in (1.0, 2.0)}
    assert abs(got - p[2.0]) < 0.01 < abs(p[1.0] - p[2.0])


def test_the_witness_is_stored_exactly_where_the_next_token_is_no_head(written):
    model_ = model_of(written.fitted.tables, m=12, grains=2)
    place, rows = synthetic.part(written.rows, 3)
    sets = set_coder.decode_row(
        model_, synthetic.bytes_of(written.encoded)[3], current_ids_n=rows.current_ids_N,
        next_ids_n=rows.next_ids_N, row_number=3,
    )  # fmt: skip
    next_logp_n = written.encoded.next_logp_N[place]
    is_head_n = next_logp_n >= -np.log(12)
    assert 0 < is_head_n.sum() < len(is_head_n)
    assert np.array_equal(sets.witness_N >= 0, ~is_head_n)
    assert np.array_equal(sets.witness_N[~is_head_n], _row.witness_codes(next_logp_n[~is_head_n]))


def test_every_flipped_byte_is_seen(written):
    data = synthetic.bytes_of(written.encoded)
    for at in range(len(data[4])):
        damaged = data[4].copy()
        damaged[at] ^= 0x10
        with pytest.raises(Mismatch) as reason:
            written.read([*data[:4], damaged, *data[5:]])
        assert reason.value.row == 4 and reason.value.damaged


def test_bytes_that_pass_their_checksum_are_still_refused(written):
    """Whatever the words say, decoding ends: in Mismatch, and never outside of its memory."""
    data, draw = synthetic.bytes_of(written.encoded), np.random.default_rng(0)
    for _ in range(200):
        words = draw.integers(0, 256, len(data[0]) - 2, dtype=np.uint8)
        words[-1] &= 0x7F
        forged = np.frombuffer(set_coder._seal(words.tobytes()) + words.tobytes(), np.uint8)
        with pytest.raises(Mismatch, match="other tokens"):
            written.read([forged, *data[1:]])


def test_a_foreign_token_at_the_last_position_is_refused(written):
    """Few symbols depend on it, so a decoder gets to the row's end: its final state tells."""
    data, (_, rows) = synthetic.bytes_of(written.encoded)[4], synthetic.part(written.rows, 4)
    coder = model_of(written.fitted.tables, m=12, grains=2)
    for token in range(60):
        current = rows.current_ids_N.copy()
        current[-1] = token
        if token != rows.current_ids_N[-1]:
            with pytest.raises(Mismatch, match="other tokens"):
                set_coder.decode_row(coder, data, current_ids_n=current, next_ids_n=rows.next_ids_N, row_number=0)


def test_reading_goes_on_after_a_refused_row(written):
    """The thread's scratch memory is clean again."""
    data = synthetic.bytes_of(written.encoded)
    before = written.read()
    swapped = [data[3], data[1], data[2], data[0], *data[4:]]
    with pytest.raises(Mismatch):
        written.read(swapped)
    assert torch.equal(written.read().ids_M, before.ids_M)


# --- fit ---
def test_a_budget_in_bytes_is_met_by_the_largest_m():
    vocabulary, counts = 2000, (100,) * 12
    teacher, hidden_ND = synthetic.head(vocabulary=vocabulary), synthetic.states(1200)
    rows = synthetic.likely(hidden_ND, teacher, synthetic.positions(counts, vocabulary=vocabulary))
    chosen = {
        wanted: synthetic.fitted(
            threshold, hidden_ND=hidden_ND, teacher=teacher, rows=rows, budget=Budget(bytes_per_token=wanted)
        )
        for wanted in (9.0, 16.0)
    }
    assert chosen[9.0].settings["m"] < chosen[16.0].settings["m"]
    for wanted, fitted in chosen.items():
        encoded = synthetic.encoded(threshold, fitted, hidden_ND=hidden_ND, teacher=teacher, rows=rows)
        assert 0.75 * wanted < sum(map(len, encoded.rows)) / 1200 < wanted
        assert "bytes a token" in fitted.why and "error" in fitted.why


def test_a_smaller_error_needs_a_larger_m(written):
    chosen = [
        synthetic.fitted(
            threshold, hidden_ND=written.hidden_ND, teacher=written.teacher, rows=written.rows,
            budget=Budget(error=error),
        )
        for error in (0.3, 0.15)
    ]  # fmt: skip
    assert chosen[0].settings["m"] < chosen[1].settings["m"]


@pytest.mark.parametrize("fixed", [{"m": 3}, {"m": 401}, {"m": 9.5}, {"threshold": 0}, {"threshold": 0.9}, {"k": 7}])
def test_settings_that_cannot_be_are_refused(written, fixed):
    with pytest.raises(ConfigError):
        synthetic.fitted(
            threshold, hidden_ND=written.hidden_ND, teacher=written.teacher, rows=written.rows,
            budget=Budget(fixed=fixed),
        )  # fmt: skip


def test_tau_is_one_over_m(written):
    fitted = synthetic.fitted(
        threshold, hidden_ND=written.hidden_ND, teacher=written.teacher, rows=written.rows,
        budget=Budget(fixed={"threshold": 0.04}),
    )  # fmt: skip
    assert fitted.settings["m"] == 25


_PROGRAM = """
import hashlib
from tests.cache.codecs.test_threshold import Written
written = Written()
parts = [t.numpy().tobytes() for t in written.fitted.tables.values()] + list(written.encoded.rows)
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_write_the_same_bytes():
    said = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM], cwd=Path(__file__).parents[3], text=True, capture_output=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1 and len(said.pop()) == 65
