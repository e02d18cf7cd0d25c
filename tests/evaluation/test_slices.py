"""Slices, the worst of them and the hardest inputs: parts of the whole, claimed only together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_of_ids
from tests.evaluation.test_stats import sequence
from tutelage.evaluation.cells import CONFIDENCE, NAMES, POSITION, RARITY, TokenFacts, positions_in_row, rarity_classes
from tutelage.evaluation.facts import SetFacts, excerpt
from tutelage.evaluation.score import score_models
from tutelage.evaluation.slices import sliced
from tutelage.evaluation.sums import Cell
from tutelage.evaluation.transfer import transfer_of
from tutelage.types import Batch, TokenView

ROWS = rows_of_ids(9, length=40)
TOKENS = TokenFacts(n_bytes_V=np.arange(N_VOCABULARY) % 5, rarity_V=np.arange(N_VOCABULARY) % 5)
FACTS = SetFacts(sources=("web", "code"), source=(0, 1, 0, 0, 1, 0, 0, 1, 0), length=tuple(map(len, ROWS)))


@pytest.fixture(scope="module")
def scores(teacher, student):
    models = {"teacher": teacher, "student": student}
    return score_models(models, batches_of(ROWS, size=4), teacher="teacher", n_vocabulary=N_VOCABULARY, tokens=TOKENS)


def naive(teacher, student, kind: str, k: int) -> tuple[int, float, float, int]:
    """Tokens, loss, KL and agreement of a cell, position by position in plain float64."""
    n, nll, kl, agree = 0, 0.0, 0.0, 0
    for ids in ROWS:
        p_TV, q_TV = (m(input_ids=ids[None]).logits[0].double().log_softmax(-1) for m in (teacher, student))
        for t in range(1, len(ids)):
            p, q = p_TV[t - 1], q_TV[t - 1]
            cell = {
                POSITION: sum(t >= edge for edge in (16, 64, 256, 1024)),
                RARITY: int(ids[t]) % 5,
                CONFIDENCE: sum(float(p.max().exp()) >= edge for edge in (0.25, 0.5, 0.75, 0.9, 0.99)),
            }[kind]
            if cell == k:
                n, nll, kl = n + 1, nll - float(q[ids[t]]), kl + float((p.exp() * (p - q)).sum())
                agree += int(p.argmax() == q.argmax())
    return n, nll, kl, agree


@pytest.mark.parametrize("kind", [POSITION, RARITY, CONFIDENCE])
def test_a_cell_holds_the_sums_of_its_own_tokens(scores, teacher, student, kind):
    for k in range(len(NAMES[kind])):
        cells = [s.cells[kind][k] for s in scores["student"] if s.cells[kind][k] is not None]
        found = tuple(sum(getattr(c, name) for c in cells) for name in ("n_tokens", "nll_nats", "kl_nats", "n_agree"))
        assert found == pytest.approx(naive(teacher, student, kind, k), rel=1e-10)


def test_the_cells_of_a_kind_are_the_whole_sequence(scores):
    for s in (*scores["teacher"], *scores["student"]):
        for found in s.cells.values():
            present = [c for c in found if c is not None]
            assert sum(c.n_tokens for c in present) == s.n_tokens
            assert sum(c.nll_nats for c in present) == pytest.approx(s.nll_nats, rel=1e-12)
            assert s.worst in {c.worst for c in present}


def test_the_worst_token_is_the_one_with_the_largest_kl(scores, teacher, student):
    for s, ids in zip(scores["student"], ROWS, strict=True):
        p_TV, q_TV = (m(input_ids=ids[None]).logits[0].double().log_softmax(-1) for m in (teacher, student))
        kl_T = (p_TV.exp() * (p_TV - q_TV)).sum(-1)[:-1]
        assert s.worst == int(kl_T.argmax()) + 1


def test_bits_per_byte_counts_the_tokens_that_stand_for_text(scores, student):
    nats = n_bytes = 0.0
    for ids in ROWS:
        q_TV = student(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for t in range(1, len(ids)):
            if int(ids[t]) % 5:
                nats, n_bytes = nats - float(q_TV[t - 1, ids[t]]), n_bytes + int(ids[t]) % 5
    result = transfer_of({"held_out": scores}, "teacher").sets["held_out"]
    assert result.estimates["student"]["bits_per_byte"].value == pytest.approx(nats / n_bytes / np.log(2), rel=1e-12)


def test_documents_of_a_packed_row_count_their_own_positions():
    ids_BT = torch.arange(6)[None]
    packed = TokenView.of(ids_BT, ids_BT, torch.tensor([[0, 1, 2, 0, 1, 2]]))
    assert positions_in_row(Batch(views={"t": packed})).tolist() == [1, 2, 3, 1, 2]
    alone = TokenView.of(ids_BT.reshape(2, 3), ids_BT.reshape(2, 3))
    assert positions_in_row(Batch(views={"t": alone})).tolist() == [1, 2, 1, 2]


def test_rarity_is_by_a_million_tokens_and_never_seen_is_a_class_of_its_own():
    n_seen = np.array([0, 9, 10, 99, 100, 999, 1000, 1_000_000 - 2217])
    assert rarity_classes(n_seen).tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    assert rarity_classes(np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]


def test_slices_by_source_and_length_divide_the_rows(scores):
    found = sliced(scores, FACTS, student="student", with_teacher=True)
    sources = [s for s in found.slices if s.kind == "source"]
    assert [(s.name, s.n_sequences) for s in sources] == [("web", 6), ("code", 3)]
    assert sum(s.n_tokens for s in sources) == sum(s.n_tokens for s in scores["student"])
    assert not [s for s in found.slices if s.kind == "length"]  # all rows are under 64 tokens: nothing is divided
    assert {s.kind for s in found.slices} == {"source", POSITION, RARITY, CONFIDENCE}
    assert sources[0].estimates["teacher"]["kl_to_teacher"].value == 0.0


def rows_of_one_level(rng: np.random.Generator, *, extra: float, n: int = 60):
    """Ten tokens of each of four cells a row; in the last cell KL is higher by `extra`."""
    made = []
    for i in range(n):
        kl = rng.gamma(4.0, 0.25, 4) * 10 + [0.0, 0.0, 0.0, extra * 10]
        cells = tuple(Cell(n_tokens=10, nll_nats=20.0, kl_nats=float(x), n_agree=5, worst=k) for k, x in enumerate(kl))
        whole = replace(sequence(i, n_tokens=40, nll=80.0, agree=20), kl_nats=float(kl.sum()), worst=3)
        made.append(replace(whole, cells={POSITION: (*cells, None)}))
    return made


def test_a_slice_that_is_worse_is_named_and_claimed_and_the_others_are_not():
    found = sliced(
        {"student": rows_of_one_level(np.random.default_rng(1), extra=0.5)}, None, student="student", with_teacher=True
    )
    worst = found.slices[found.worst[0]]
    assert worst.name == "positions 256-1,023"
    assert worst.against_whole is not None
    assert worst.against_whole.is_sure
    assert worst.against_whole.value == pytest.approx(0.5 * 0.75, abs=0.15)
    assert not any(s.against_whole.is_sure and s.against_whole.value > 0 for s in found.slices[:3])
    assert worst.example_position == 3


def test_slices_that_do_not_differ_are_claimed_in_at_most_5_of_100_sets():
    rng = np.random.default_rng(2)
    claimed = 0
    for _ in range(200):
        found = sliced({"student": rows_of_one_level(rng, extra=0.0, n=40)}, None, student="student", with_teacher=True)
        claimed += any(s.against_whole.is_sure for s in found.slices)
    assert claimed / 200 <= 0.05 + 3 * 0.0154  # three standard errors of 200 sets


def test_the_hardest_inputs_come_first_and_carry_every_models_numbers(scores):
    found = sliced(scores, FACTS, student="student", with_teacher=True)
    levels = [h.values["student"]["kl_to_teacher"] for h in found.hardest]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == max(s.kl_nats / s.n_tokens for s in scores["student"])
    assert set(found.hardest[0].values) == {"teacher", "student"}


def test_without_a_student_nothing_is_judged_and_slices_stand(scores):
    found = sliced({"teacher": scores["teacher"]}, FACTS, student=None, with_teacher=True)
    assert (found.worst, found.hardest) == ((), ())
    assert found.slices


class _Words:
    """A tokenizer whose token i is the word i."""

    def decode(self, ids, **_):
        return "".join(f" w{i}" for i in ids)


def test_an_excerpt_marks_its_token_and_says_where_it_is_cut():
    assert excerpt(_Words(), [1, 2, 3], 1) == " w1⟦ w2⟧ w3"
    found = excerpt(_Words(), list(range(200)), 100)
    assert found.startswith("… ") and found.endswith(" …")
    assert "⟦ w100⟧" in found
    assert excerpt(_Words(), [1, 2], 1) == " w1⟦ w2⟧"
