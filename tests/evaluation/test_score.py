"""Shape legend: N positions, V vocabulary."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_of_ids, tiny_model
from tutelage.errors import IntegrityError
from tutelage.evaluation import score as score_module
from tutelage.evaluation.metrics import brier, ece, held_out_loss, kl_to_teacher, perplexity, top1_agreement
from tutelage.evaluation.score import N_BINS, SequenceScore, score_models
from tutelage.types import IGNORED, Batch, LogitTargets, MixtureTargets, TokenView

ROWS = rows_of_ids(9)


def score(models: dict[str, nn.Module], *, size: int = 4, chunk: int = 7) -> dict[str, list[SequenceScore]]:
    batches = batches_of(ROWS, size=size)
    return score_models(models, batches, teacher="teacher", n_vocabulary=N_VOCABULARY, chunk=chunk)


def naive(model: nn.Module, teacher: nn.Module) -> dict[str, Any]:
    """The five numbers by an independent loop: one sequence, one position at a time, plain softmax in float64."""
    nll = kl = 0.0
    agree, n = 0, 0
    cells: dict[int, list[tuple[float, bool]]] = {}
    brier_sum = 0.0
    for ids in ROWS:
        p_TV = teacher(input_ids=ids[None]).logits[0].double().softmax(-1)
        q_TV = model(input_ids=ids[None]).logits[0].double().softmax(-1)
        for t in range(len(ids) - 1):
            p, q, true = p_TV[t].tolist(), q_TV[t].tolist(), int(ids[t + 1])
            nll -= math.log(q[true])
            kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            agree += p.index(max(p)) == q.index(max(q))
            brier_sum += sum((b - (i == true)) ** 2 for i, b in enumerate(q))
            cell = min(math.ceil(max(q) * N_BINS), N_BINS) - 1
            cells.setdefault(cell, []).append((max(q), q.index(max(q)) == true))
            n += 1
    gaps = (abs(sum(c for c, _ in cell) - sum(ok for _, ok in cell)) for cell in cells.values())
    return {
        "loss": nll / n,
        "kl": kl / n,
        "agree": agree / n,
        "ece": sum(gaps) / n,
        "brier": brier_sum / n,
        "bins": {k: len(c) for k, c in cells.items()},
    }


def test_every_metric_equals_an_independent_loop_over_positions(teacher, student):
    scores = score({"teacher": teacher, "student": student})["student"]
    expected = naive(student, teacher)
    assert held_out_loss.compute(scores).value == pytest.approx(expected["loss"], rel=1e-12)
    assert perplexity.compute(scores).value == pytest.approx(math.exp(expected["loss"]), rel=1e-12)
    assert kl_to_teacher.compute(scores).value == pytest.approx(expected["kl"], rel=1e-12)
    assert top1_agreement.compute(scores).value == pytest.approx(expected["agree"], rel=1e-12)
    assert ece.compute(scores).value == pytest.approx(expected["ece"], rel=1e-12)
    pooled = [sum(s.bin_n[k] for s in scores) for k in range(N_BINS)]
    assert {k: n for k, n in enumerate(pooled) if n} == expected["bins"]
    assert brier.compute(scores).value == pytest.approx(expected["brier"], rel=1e-12)


def test_a_uniform_model_scores_exactly_log_v(teacher):
    uniform = copy.deepcopy(teacher)
    uniform.get_output_embeddings().weight.zero_()
    scores = score({"teacher": teacher, "uniform": uniform})["uniform"]
    assert held_out_loss.compute(scores).value == pytest.approx(math.log(N_VOCABULARY), rel=1e-15)
    assert perplexity.compute(scores).value == pytest.approx(N_VOCABULARY, rel=1e-14)
    assert held_out_loss.compute(scores).stderr == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_copy_of_the_teacher_has_kl_exactly_zero_and_agreement_one(dtype):
    teacher = tiny_model(1, dtype=dtype)
    scores = score({"teacher": teacher, "copy": copy.deepcopy(teacher)})
    for name in ("teacher", "copy"):
        assert kl_to_teacher.compute(scores[name]).value == 0.0
        assert top1_agreement.compute(scores[name]).value == 1.0


@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (2, 5), (9, 256)])
def test_scores_do_not_depend_on_batch_size_chunk_or_order(teacher, student, size, chunk):
    models = {"teacher": teacher, "student": student}
    expected = score(models)["student"]
    batches = batches_of(ROWS, size=size)[::-1]
    found = score_models(models, batches, teacher="teacher", n_vocabulary=N_VOCABULARY, chunk=chunk)["student"]
    assert [s.row for s in found] == [s.row for s in expected] == list(range(9))
    for a, b in zip(found, expected, strict=True):
        assert (a.n_tokens, a.n_agree, a.n_correct, a.bin_n) == (b.n_tokens, b.n_agree, b.n_correct, b.bin_n)
        assert (a.nll_nats, a.kl_nats) == pytest.approx((b.nll_nats, b.kl_nats), rel=1e-12)


@dataclass(frozen=True)
class _StoredLogits:
    """A teacher that answers with logits, as a small cache does."""

    model: nn.Module
    n_parameters: int = 0
    parameter_bytes: int = 0

    def targets(self, batch: Batch) -> LogitTargets:
        answer = score_module._answer(self.model, batch, n_vocabulary=N_VOCABULARY)
        return LogitTargets(logits_NV=answer.head.logits(answer.hidden_ND))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_of_stored_logits_scores_as_the_live_one(dtype):
    teacher, student = tiny_model(1, dtype=dtype), tiny_model(2, dtype=dtype)
    live, stored = (score({"teacher": t, "student": student}) for t in (teacher, _StoredLogits(teacher)))
    assert live == stored


def test_a_mixture_of_two_copies_is_its_model():
    model = tiny_model(1, dtype=torch.float32)

    @dataclass(frozen=True)
    class Pair:
        n_parameters: int = 0
        parameter_bytes: int = 0

        def targets(self, batch: Batch) -> MixtureTargets:
            part = score_module._answer(model, batch, n_vocabulary=N_VOCABULARY)
            return MixtureTargets(parts=(part, part), weights=(0.5, 0.5))

    found = score({"teacher": Pair(), "student": model})["student"]
    assert kl_to_teacher.compute(found).value == pytest.approx(0.0, abs=1e-6)
    assert top1_agreement.compute(found).value == 1.0


def test_a_soft_capped_head_is_scored_by_its_capped_logits(teacher, student):
    capped = copy.deepcopy(student)
    capped.config.final_logit_softcapping = 2.0
    found = score({"teacher": teacher, "capped": capped})["capped"]
    nll = 0.0
    for ids in ROWS:
        logits_TV = 2.0 * torch.tanh(student(input_ids=ids[None]).logits[0].double() / 2.0)
        nll += float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids[1:], reduction="sum"))
    assert sum(s.nll_nats for s in found) == pytest.approx(nll, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_scores_do_not_depend_on_batch_chunk_or_threads(dtype):
    models = {"teacher": tiny_model(1, dtype=dtype), "student": tiny_model(2, dtype=dtype)}
    assert score(models, size=4, chunk=7)["student"] == score(models, size=4, chunk=3)["student"]


def test_padded_rows_of_a_head_take_no_part(teacher):
    padded = copy.deepcopy(teacher)
    weight = padded.get_output_embeddings().weight
    wide = nn.Parameter(torch.cat([weight, torch.full((4, weight.shape[1]), 5.0, dtype=weight.dtype)]))
    padded.get_output_embeddings().weight = wide
    assert score({"teacher": teacher, "p": padded})["p"] == score({"teacher": teacher, "p": teacher})["p"]


def test_documents_packed_in_one_row_keep_their_own_scores(teacher):
    ids_BT = torch.cat(ROWS[:2])[None]
    labels_BT = ids_BT.clone()
    first = len(ROWS[0])
    labels_BT[0, first] = labels_BT[0, 0] = IGNORED
    positions_BT = torch.cat([torch.arange(len(r)) for r in ROWS[:2]])[None]
    view = TokenView.of(ids_BT, labels_BT, positions_BT)
    packed = [(Batch(views={"tiny": view}), (view.index_N >= first).long())]
    apart = batches_of(ROWS[:2], size=1)
    found, expected = (
        score_models({"teacher": teacher}, b, teacher=None, n_vocabulary=N_VOCABULARY)["teacher"]
        for b in (packed, apart)
    )
    assert [s.nll_nats for s in found] == pytest.approx([s.nll_nats for s in expected], rel=1e-12)


def test_without_a_teacher_there_is_no_kl(student):
    batches = batches_of(ROWS, size=4)
    scores = score_models({"student": student}, batches, teacher=None, n_vocabulary=N_VOCABULARY)["student"]
    assert {s.kl_nats for s in scores} == {s.n_agree for s in scores} == {None}
    assert held_out_loss.compute(scores).value > 0


def test_positions_without_a_number_are_counted_and_their_sequence_left_out(teacher, student):
    broken = copy.deepcopy(student)
    poisoned = int(ROWS[3][0])
    weight = student.get_input_embeddings().weight.clone()
    weight[poisoned] = math.nan
    broken.get_input_embeddings().weight = nn.Parameter(weight, requires_grad=False)  # the head keeps the sound one
    scores = score({"teacher": teacher, "student": broken})["student"]
    touched = {i for i, ids in enumerate(ROWS) if poisoned in ids[:-1].tolist()}
    assert {s.row for s in scores if s.n_unscored} == touched
    assert all(math.isfinite(s.nll_nats) for s in scores)
    assert held_out_loss.compute(scores).n == len(ROWS) - len(touched)


@pytest.mark.parametrize("labels", ["no batch", "all ignored"])
def test_nothing_to_score_is_an_error_and_not_a_zero(teacher, labels):
    batches = batches_of([r[:1] for r in ROWS], size=4) if labels == "all ignored" else []
    with pytest.raises(IntegrityError, match=r"error\[NO_SCORED_TOKENS\]"):
        score_models({"teacher": teacher}, batches, teacher="teacher", n_vocabulary=N_VOCABULARY)


def test_progress_counts_every_scored_position(teacher):
    seen: list[int] = []
    batches = batches_of(ROWS, size=4)
    score_models({"t": teacher}, batches, teacher="t", n_vocabulary=N_VOCABULARY, progress=seen.append)
    assert sum(seen) == sum(len(r) - 1 for r in ROWS)
