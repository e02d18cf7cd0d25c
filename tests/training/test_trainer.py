"""O2, O4 (state), O5 and the guards of the step, on tiny real models in float64 on a CPU."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tutelage.errors import IntegrityError, NumericError
from tutelage.losses.schedules import Schedule, constant
from tutelage.losses.terms import Term
from tutelage.models.cast import cast
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import head_of, trunk, verify_head
from tutelage.teachers.live import LiveTeacher
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer, one_model
from tutelage.types import IGNORED, Batch, SampledTargets, Targets, TokenView

V = 48
SOFT = Term(kind="divergence", divergence="forward_kl", weight=constant(0.9), temperature=constant(2.0))
HARD = Term(kind="ground_truth", weight=constant(0.1))
ARGMAX = Term(kind="teacher_argmax", weight=constant(0.2))


def settings(n_steps: int = 4, **changes) -> OptimizerSettings:
    return OptimizerSettings(**{"schedule": Schedule(start=1e-2), "n_steps": n_steps, **changes})


def trainer(
    student: nn.Module, *, teacher=None, terms=(SOFT, HARD), data=None, dtype=torch.float64, **changes
) -> Trainer:
    options = {"optimizer": settings(), "chunk_positions": 7, **changes}
    return one_model(
        student, terms=terms, teacher=teacher, microbatches=data or (lambda step: [tiny.batch(seed=step)]),
        compute=ComputePath(device="cpu", weight_dtype=dtype, threads=1), n_vocabulary=V, seed=0, **options,
    )  # fmt: skip


def live(model: nn.Module) -> LiveTeacher:
    return LiveTeacher(model, n_vocabulary=V)


def weights(t: Trainer) -> dict[str, Tensor]:
    return {n: p.clone() for n, p in t.only.masters.state().items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[n] - b[n]).abs().max().item() for n in a)


# --- the head ---
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2, tiny.gpt2])
def test_trunk_and_head_equal_the_models_own_logits(make):
    model = make()
    ids = tiny.batch().view.ids_BT
    ours = head_of(model, n_vocabulary=V).logits(trunk(model, TokenView.of(ids, ids)))
    assert (model(input_ids=ids).logits - ours).abs().max() < 1e-12
    verify_head(model, n_vocabulary=V)


# --- O2: alignment ---
@pytest.mark.parametrize("terms", [(HARD,), (SOFT,), (ARGMAX,), (SOFT, HARD, ARGMAX)])
def test_gradient_reaches_exactly_the_positions_before_a_label(terms):
    """The trunk is replaced by free hidden states, so that a gradient at (b, t) means that (b, t) was trained."""
    batch = tiny.batch(seed=3)
    hidden_BTD = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    student, teacher = tiny.llama(seed=1), live(tiny.llama(seed=2))
    student.model.forward = lambda **_: type("O", (), {"last_hidden_state": hidden_BTD})()
    t = trainer(student, teacher=teacher, terms=terms)
    scales = t._scales(batch.n_trained, [t.only])
    t.family(batch, {"teacher": teacher.targets(batch)}, scales).total.backward()
    trained = hidden_BTD.grad.abs().sum(-1) > 0
    expected = torch.zeros_like(trained)
    expected[:, :-1] = batch.view.labels_BT[:, 1:] != IGNORED
    assert torch.equal(trained, expected)


def test_a_planted_token_is_learnt_where_it_was_planted():
    """The teacher is sure of one token after each prefix; after training the student says the same there."""
    teacher = tiny.llama(seed=5)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(30)
    batch = tiny.batch(seed=1, rows=1, length=8, masked=0.0)
    t = trainer(tiny.llama(seed=6, hidden=32), teacher=live(teacher), terms=(SOFT,), data=lambda _: [batch],
                optimizer=settings(60))  # fmt: skip
    for _ in t.steps():
        pass
    ids = batch.view.ids_BT
    planted, learnt = (
        teacher(input_ids=ids).logits.argmax(-1),
        t.family.model("student")(input_ids=ids).logits.argmax(-1),
    )
    assert torch.equal(planted[:, :-1], learnt[:, :-1])


# --- O5: split invariance ---
def rows_of(batch: Batch, *cuts: int) -> list[Batch]:
    view, parts, start = batch.view, [], 0
    for stop in (*cuts, view.ids_BT.shape[0]):
        parts.append(Batch(views={"tiny": TokenView.of(view.ids_BT[start:stop], view.labels_BT[start:stop])}))
        start = stop
    return parts


def with_empty_row(batch: Batch) -> list[Batch]:
    ids = batch.view.ids_BT[:1]
    return [*rows_of(batch), Batch(views={"tiny": TokenView.of(ids, torch.full_like(ids, IGNORED))})]


def unequal(step: int) -> Batch:
    """Four rows of which the later ones train far fewer tokens."""
    batch = tiny.batch(seed=step, rows=4, masked=0.0)
    labels = batch.view.labels_BT.clone()
    for row in range(4):
        labels[row, 12 - 3 * row :] = IGNORED
    return Batch(views={"tiny": TokenView.of(batch.view.ids_BT, labels)})


SPLITS = {
    "1x4": lambda step: [unequal(step)],
    "2x2": lambda step: rows_of(unequal(step), 2),
    "4x1": lambda step: rows_of(unequal(step), 1, 2, 3),
    "3+1": lambda step: rows_of(unequal(step), 3),
    "with an empty micro-batch": lambda step: with_empty_row(unequal(step)),
}


@pytest.mark.parametrize("split", list(SPLITS)[1:])
def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(split):
    teacher = live(tiny.llama(seed=2))
    results = []
    for data in (SPLITS["1x4"], SPLITS[split]):
        t = trainer(tiny.llama(seed=1), teacher=teacher, data=data)
        stats = list(t.steps())
        results.append(
            (
                weights(t),
                [s.losses | {"norm": s.gradient_norms["student"], "total": s.totals["student"]} for s in stats],
            )
        )
    assert largest_difference(results[0][0], results[1][0]) < 1e-12
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert a == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize("chunk_positions", [1, 3, 1000])
def test_a_step_does_not_depend_on_the_chunk_length(chunk_positions):
    a = trainer(tiny.llama(seed=1), teacher=live(tiny.llama(seed=2)))
    b = trainer(tiny.llama(seed=1), teacher=live(tiny.llama(seed=2)), chunk_positions=chunk_positions)
    for _ in zip(a.steps(), b.steps(), strict=True):
        pass
    assert largest_difference(weights(a), weights(b)) < 1e-12


def test_gradient_checkpointing_changes_nothing():
    a = trainer(tiny.llama(seed=1), teacher=live(tiny.llama(seed=2)))
    b = trainer(tiny.llama(seed=1), teacher=live(tiny.llama(seed=2)), gradient_checkpointing=True)
    for _ in zip(a.steps(), b.steps(), strict=True):
        pass
    assert largest_difference(weights(a), weights(b)) < 1e-12


# --- B15 / the copy of the teacher ---
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2])
def test_a_teacher_distilled_into_its_own_copy_stays_bitwise(dtype, make):
    teacher = make(seed=1, dtype=torch.float32 if dtype != torch.float64 else dtype)
    student = copy.deepcopy(teacher)
    before = {n: p.clone() for n, p in student.named_parameters()}
    t = trainer(student, teacher=live(cast(teacher, dtype)), terms=(SOFT,), dtype=dtype)
    for stats in t.steps():
        assert stats.losses == {"student/forward_kl": 0.0}
        assert stats.gradient_norms == {"student": 0.0}
    assert all(torch.equal(before[n], p) for n, p in t.only.masters.state().items())


def test_learning_rate_zero_leaves_the_weights_bitwise():
    t = trainer(tiny.llama(seed=1), terms=(HARD,), optimizer=settings(schedule=constant(0.0)))
    before = weights(t)
    list(t.steps())
    assert largest_difference(before, weights(t)) == 0.0


# --- B13: the teacher ---
def test_a_teacher_handed_over_in_train_mode_is_frozen_and_unchanged():
    model = tiny.gpt2(dropout=0.5).train()
    teacher = live(model)
    before, batch = weights_fingerprint(model), tiny.batch()
    assert torch.equal(teacher.targets(batch).hidden_ND, teacher.targets(batch).hidden_ND)
    assert not teacher.targets(batch).hidden_ND.requires_grad
    t = trainer(tiny.llama(seed=1), teacher=teacher)
    list(t.steps())
    assert weights_fingerprint(model) == before
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in t.only.masters.parameters.values()}
    teacher.stop_if_changed(step=4)
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] += 1
    with pytest.raises(IntegrityError, match="sha .* at step 4"):
        teacher.stop_if_changed(step=4)


# --- guards before the update ---
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_number_that_is_not_finite_stops_before_the_update(where):
    teacher_model, student = tiny.llama(seed=2), tiny.llama(seed=1)
    t = trainer(student, teacher=live(teacher_model))
    next(t.steps())
    target = t.only.masters.parameters["model.norm.weight"] if where == "student" else teacher_model.model.norm.weight
    with torch.no_grad():
        target[0] = float("nan")
    before = weights(t)
    with pytest.raises(NumericError, match="NONFINITE.*step 1.*weights unchanged"):
        t.train_step([tiny.batch(seed=9)])
    after = weights(t)
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    assert t.step == 1


def test_a_step_without_trainable_tokens_names_the_rows():
    batch = tiny.batch(masked=1.1)
    with pytest.raises(IntegrityError, match="0 trainable tokens in step 0.*row-0-0.*data.max_length"):
        trainer(tiny.llama(), terms=(HARD,)).train_step([batch])


# --- state ---
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_resume_from_every_step_is_bitwise_the_uninterrupted_run(dtype):
    """Dropout, EMA, a schedule and two micro-batches a step; a resume of a resume at each cut."""

    def fresh() -> Trainer:
        student = tiny.gpt2(seed=1, dropout=0.3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        return trainer(
            student, teacher=live(tiny.llama(seed=2, dtype=dtype)), dtype=dtype,
            data=lambda s: [tiny.batch(seed=s), tiny.batch(seed=100 + s)],
            optimizer=settings(6, ema=0.9, schedule=Schedule(kind="cosine", start=1e-2, warmup=0.3)),
        )  # fmt: skip

    whole = fresh()
    losses = [s.losses for s in whole.steps()]
    for cut in range(6):
        again, seen = fresh(), []
        for _ in range(cut):
            seen.append(next(again.steps()).losses)
        for _ in range(2):
            saved = copy.deepcopy((again.only.masters.state(), again.only.optimizer.state(), again.step))
            torch.manual_seed(12345)
            again = fresh()
            again.only.masters.load(saved[0])
            again.only.optimizer.load(saved[1])
            again.step = saved[2]
            if again.step < 6:
                seen.append(next(again.steps()).losses)
        seen += [s.losses for s in again.steps()]
        assert seen == losses
        assert largest_difference(weights(again), weights(whole)) == 0.0
        assert largest_difference(again.only.optimizer.state(), whole.only.optimizer.state()) == 0.0


@pytest.mark.parametrize("dropped", ["masters", "optimizer", "step"])
def test_leaving_a_part_of_the_state_out_of_a_resume_is_noticed(dropped):
    """The negative control of the test above."""

    def fresh() -> Trainer:
        return trainer(tiny.llama(seed=1), teacher=live(tiny.llama(seed=2)),
                       optimizer=settings(4, schedule=Schedule(kind="linear", start=1e-2)))  # fmt: skip

    whole, half, again = fresh(), fresh(), fresh()
    list(whole.steps())
    for _ in range(2):
        next(half.steps())
    if dropped != "masters":
        again.only.masters.load(half.only.masters.state())
    if dropped != "optimizer":
        again.only.optimizer.load(half.only.optimizer.state())
    again.step = 2 if dropped != "step" else 0
    list(again.steps())
    assert largest_difference(weights(again), weights(whole)) > 1e-6


def test_bf16_compute_keeps_float32_masters_that_small_steps_move():
    """A step of 1e-4 on a weight near 1 vanishes in bfloat16; the master keeps it."""
    t = trainer(tiny.llama(seed=1, dtype=torch.float32), terms=(HARD,), dtype=torch.bfloat16,
                optimizer=settings(3, schedule=constant(1e-4)))  # fmt: skip
    before = weights(t)
    list(t.steps())
    assert all(p.dtype == torch.float32 for p in t.only.masters.state().values())
    assert (weights(t)["model.norm.weight"] - before["model.norm.weight"]).abs().max() > 1e-5
    assert next(t.family.parameters()).dtype == torch.bfloat16


def test_held_out_evaluation_is_of_the_average_that_is_saved_and_leaves_the_weights_bitwise():
    teacher = live(tiny.llama(seed=2))
    t = trainer(tiny.llama(seed=1), teacher=teacher, optimizer=settings(4, ema=0.9))
    list(t.steps())
    before, held_out = weights(t), [tiny.batch(seed=50)]
    measured = t.evaluate(held_out)
    assert largest_difference(before, weights(t)) == 0.0
    other = trainer(tiny.llama(seed=1), teacher=teacher)
    other.only.masters.load(t.only.optimizer.average)
    assert measured == other.evaluate(held_out)
    other.only.masters.load(before)
    assert measured != other.evaluate(held_out)


# --- stored targets ---
class Sampled:
    """A teacher whose training targets are the true next tokens as a sample, and whose held-out ones are whole."""

    def __init__(self, whole: LiveTeacher, *, held_out: frozenset[tuple[str, ...]]) -> None:
        self.whole, self.held_out = whole, held_out

    def targets(self, batch: Batch) -> Targets:
        if batch.row_keys in self.held_out:
            return self.whole.targets(batch)
        ids_N = batch.view.next_ids_N
        offsets = torch.arange(len(ids_N) + 1)
        return SampledTargets(ids_M=ids_N, weights_M=torch.ones(len(ids_N)), offsets=offsets, temperature=2.0)


def test_a_sample_is_logged_as_soft_cross_entropy_and_whole_targets_as_forward_kl():
    held_out = tiny.batch(seed=9)
    teacher = Sampled(live(tiny.llama(seed=2)), held_out=frozenset({held_out.row_keys}))
    t = trainer(tiny.llama(seed=1), teacher=teacher)
    kl = trainer(tiny.llama(seed=1), teacher=teacher.whole).evaluate([held_out])
    assert t.evaluate([held_out]) == kl
    assert t.objective(kl) == pytest.approx(0.9 * 4 * kl["student/forward_kl"] + 0.1 * kl["student/cross_entropy"])
    sampled = t.evaluate([tiny.batch(seed=0)])
    assert t.objective(sampled) == pytest.approx(
        0.9 * 4 * sampled["student/soft_cross_entropy"] + 0.1 * sampled["student/cross_entropy"]
    )
    losses = next(t.steps()).losses
    assert losses.keys() == {"student/soft_cross_entropy", "student/cross_entropy"}
    assert losses == pytest.approx(sampled, abs=1e-12)


def test_a_soft_cross_entropy_near_zero_is_no_negative_kl():
    t = trainer(tiny.llama(seed=1), teacher=Sampled(live(tiny.llama(seed=2)), held_out=frozenset()))
    stats = next(t.steps())
    t._stop_if_not_possible(replace(stats, losses={"student/soft_cross_entropy": -1e-5}), [])
    with pytest.raises(NumericError, match="NEGATIVE_KL"):
        t._stop_if_not_possible(replace(stats, losses={"student/forward_kl": -1e-5}), [])
