"""The step against what every tutorial writes: the model's own logits, PyTorch's own losses, no chunk, no head."""

import copy

import pytest
import torch
from torch.nn import functional

from tests import tiny
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.models.head import head_of, trunk
from tutelage.teachers.live import LiveTeacher
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import one_model
from tutelage.types import TokenView

V = 48


def trainer(student, *, teacher=None, terms, data, learning_rate=1e-2):
    return one_model(
        student, terms=terms, teacher=teacher and LiveTeacher(teacher, n_vocabulary=V), microbatches=data,
        compute=ComputePath(device="cpu", weight_dtype=torch.float64, threads=1), n_vocabulary=V, seed=0,
        optimizer=OptimizerSettings(schedule=constant(learning_rate), n_steps=3, max_grad_norm=None),
        chunk_positions=5,
    )  # fmt: skip


def test_the_first_step_is_that_of_a_plain_pytorch_loop():
    """0.7 * T**2 * mean KL at T = 2 + 0.3 * mean cross-entropy over both micro-batches: loss and gradient norm."""
    student, teacher = tiny.llama(seed=1), tiny.llama(seed=2)
    batches = [tiny.batch(seed=1, masked=0.2), tiny.batch(seed=2, rows=1, masked=0.6)]
    terms = (
        Term(kind="divergence", divergence="forward_kl", weight=constant(0.7), temperature=constant(2.0)),
        Term(kind="ground_truth", weight=constant(0.3)),
    )
    plain, kl, hard, count = copy.deepcopy(student), 0.0, 0.0, 0
    for batch in batches:
        ids, labels = batch.view.ids_BT, batch.view.labels_BT[:, 1:].reshape(-1)
        zs, zt = (m(input_ids=ids).logits[:, :-1].reshape(-1, V) for m in (plain, teacher))
        kept = labels != -100
        p, log_q = torch.softmax(zt[kept] / 2, -1).detach(), torch.log_softmax(zs[kept] / 2, -1)
        kl = kl + functional.kl_div(log_q, p, reduction="sum")
        hard = hard + functional.cross_entropy(zs, labels, reduction="sum")
        count += int(kept.sum())
    total = (0.7 * 4 * kl + 0.3 * hard) / count
    total.backward()
    norm = torch.cat([p.grad.reshape(-1) for p in plain.parameters()]).norm()

    t = trainer(student, teacher=teacher, terms=terms, data=lambda _: batches)
    stats = next(t.steps())
    assert stats.n_trained == count
    assert stats.totals["student"] == pytest.approx(total.item(), abs=1e-12)
    assert stats.gradient_norms["student"] == pytest.approx(norm.item(), abs=1e-12)
    assert stats.losses["student/forward_kl"] == pytest.approx(kl.item() / count, abs=1e-12)
    assert stats.losses["student/cross_entropy"] == pytest.approx(hard.item() / count, abs=1e-12)


def test_the_head_of_an_untied_model_is_its_output_matrix():
    model = tiny.llama(tied=False)
    ids = tiny.batch().view.ids_BT
    ours = head_of(model, n_vocabulary=V).logits(trunk(model, TokenView.of(ids, ids)))
    assert (model(input_ids=ids).logits - ours).abs().max() < 1e-12


def test_every_step_draws_its_own_dropout():
    """With learning rate 0 and the same batch, only the dropped units can make two steps differ."""
    batch = tiny.batch(seed=4)
    t = trainer(tiny.gpt2(dropout=0.3), terms=(Term(kind="ground_truth"),), data=lambda _: [batch], learning_rate=0.0)
    totals = [stats.totals["student"] for stats in t.steps()]
    assert len(set(totals)) == 3
