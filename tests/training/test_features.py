"""Terms that compare layers: references in float64, who is asked, what does not change, and a resume to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tutelage.errors import ConfigError
from tutelage.losses.features import attention_relations
from tutelage.losses.schedules import Schedule, constant
from tutelage.losses.terms import Feature, Term
from tutelage.models import taps
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.teachers.live import LiveTeacher
from tutelage.training.features import learned_of, settled
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer, one_model
from tutelage.types import IGNORED, Batch, Tap, TokenView

V = 48
SOFT = Term(kind="divergence", divergence="forward_kl")


def hidden(weight: float = 0.5, *, layers=None, distance: str = "cosine", projection: bool = False) -> Term:
    feature = Feature(name="hidden_states", settings={"distance": distance, "projection": projection}, layers=layers)
    return Term(kind="feature", feature=feature, weight=constant(weight))


def relations(weight: float = 0.5, *, layers=None, heads: int | str = "auto") -> Term:
    feature = Feature(name="attention_relations", settings={"relation_heads": heads}, layers=layers)
    return Term(kind="feature", feature=feature, weight=constant(weight))


def trainer(student: nn.Module, teacher: nn.Module, *terms: Term, data=None, dtype=torch.float64, **changes) -> Trainer:
    options = {
        "optimizer": OptimizerSettings(schedule=Schedule(start=1e-2), n_steps=4),
        "chunk_positions": 7,
        **changes,
    }
    return one_model(
        student, terms=settled(terms, student=student, teacher=teacher, kept=None),
        teacher=LiveTeacher(teacher, n_vocabulary=V), microbatches=data or (lambda step: [tiny.batch(seed=step)]),
        compute=ComputePath(device="cpu", weight_dtype=dtype, threads=1), n_vocabulary=V, seed=0, **options,
    )  # fmt: skip


def weights(t: Trainer) -> dict[str, Tensor]:
    beside = t.only.beside.state() if t.only.beside is not None else {}
    return {n: p.clone() for n, p in {**t.only.masters.state(), **beside}.items()}


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[n] - b[n]).abs().max().item() for n in a)


def one_step(t: Trainer, *batches: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and the student's gradients of a first step, which are dropped by it otherwise."""
    found = {}
    t.only.optimizer.clip = lambda: (
        found.update(  # type: ignore[method-assign]
            {n: p.grad.clone() for n, p in t.only.masters.parameters.items() if p.grad is not None}
        )
        or torch.zeros((), dtype=torch.float64)
    )
    return t.train_step(list(batches)).losses, found


# --- the reference ---
def states(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Of each layer its output, by transformers' own way to show them; the last one before the final norm."""
    shown = model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1]
    last = []
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
    model(input_ids=ids)
    handle.remove()
    return [*shown, last[0]]


REFERENCES = {
    "cosine": lambda s, t: 1.0 - torch.cosine_similarity(s, t, dim=-1),
    "mse": lambda s, t: ((s - t) ** 2).mean(-1) / (t**2).mean(-1),
}


@pytest.mark.parametrize(("width", "distance"), [(16, "cosine"), (24, "cosine"), (24, "mse")])
def test_hidden_states_equal_the_formula_and_so_do_all_gradients(width, distance):
    """Two micro-batches with other numbers of trained positions, of which the scale knows the sum."""
    student, teacher = tiny.llama(seed=1, hidden=width), tiny.llama(seed=2, layers=4)
    by_hand = copy.deepcopy(student)
    batches = [tiny.batch(seed=1), tiny.batch(seed=2, rows=1, length=9, masked=0.6)]
    t = trainer(student, teacher, SOFT, hidden(0.3, layers=((0, 1), (1, 3)), distance=distance))
    soft = trainer(copy.deepcopy(by_hand), teacher, SOFT)
    matrices = {
        n: p.detach().clone().requires_grad_() for n, p in (t.only.beside.parameters if width == 24 else {}).items()
    }
    sums, count = torch.zeros((), dtype=torch.float64), sum(b.n_trained for b in batches)
    for batch in batches:
        view = batch.view
        for (own, its), matrix in zip(((0, 1), (1, 3)), matrices.values() or (None, None), strict=True):
            s, t_ = states(by_hand, view.ids_BT)[own], states(teacher, view.ids_BT)[its].detach()
            s = s @ matrix.T if matrix is not None else s
            kept = torch.zeros_like(view.ids_BT, dtype=torch.bool)
            kept[:, :-1] = view.labels_BT[:, 1:] != IGNORED
            sums = sums + REFERENCES[distance](s, t_)[kept].sum() / 2
    (0.3 * sums / count).backward()
    losses, gradients = one_step(t, *batches)
    _, of_soft = one_step(soft, *batches)
    assert losses["student/hidden_states"] == pytest.approx(sums.item() / count, abs=1e-12)
    for name, parameter in by_hand.named_parameters():
        expected = of_soft[name] + (parameter.grad if parameter.grad is not None else 0.0)
        assert (gradients[name] - expected).abs().max() < 2e-7, name  # Llama's norm rounds to float32 on its way
    assert (width == 24) == bool(matrices)
    assert weights_fingerprint(teacher) == weights_fingerprint(tiny.llama(seed=2, layers=4))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def relation_of(model: nn.Module, name: str, ids: Tensor, *, layer: int, heads: int) -> list[list[Tensor]]:
    """Of each row and relation head the log-probabilities of the causal relations, by the papers' formula."""
    found = []
    modules = dict(model.model.layers[layer].self_attn.named_modules())
    handle = modules[name].register_forward_hook(lambda _m, _i, out: found.append(out))
    model(input_ids=ids)
    handle.remove()
    rows = []
    for x_TW in found[0]:
        split = x_TW.chunk(heads, dim=-1)
        scores = [x @ x.T / x.shape[-1] ** 0.5 for x in split]
        rows.append([[torch.log_softmax(s[i, : i + 1], -1) for i in range(len(s))] for s in scores])
    return rows


@pytest.mark.parametrize("at_once", [2**21, 3 * 12])
def test_attention_relations_equal_the_formula_and_so_do_all_gradients(monkeypatch, at_once):
    """Other widths and numbers of heads; `at_once`: also with one or two positions a block."""
    monkeypatch.setattr(attention_relations, "_ENTRIES", at_once)
    student, teacher = tiny.llama(seed=1, hidden=24), tiny.llama(seed=2, layers=3)
    by_hand, batch = copy.deepcopy(student), tiny.batch(seed=1)
    view, heads = batch.view, 2
    t = trainer(student, teacher, SOFT, relations(0.3, layers=((0, 1),), heads=heads))
    soft = trainer(copy.deepcopy(by_hand), teacher, SOFT)
    total = torch.zeros((), dtype=torch.float64)
    for name in ("q_proj", "k_proj", "v_proj"):
        with torch.no_grad():
            of_teacher = relation_of(teacher, name, view.ids_BT, layer=1, heads=heads)
        own = relation_of(by_hand, name, view.ids_BT, layer=0, heads=heads)
        for place in view.index_N.tolist():
            row, i = divmod(place, view.ids_BT.shape[1])
            for head in range(heads):
                logp, logq = of_teacher[row][head][i], own[row][head][i]
                total = total + (logp.exp() * (logp - logq)).sum() / heads / 3
    (0.3 * total / batch.n_trained).backward()
    losses, gradients = one_step(t, batch)
    _, of_soft = one_step(soft, batch)
    assert total > 0.1
    assert losses["student/attention_relations"] == pytest.approx(total.item() / batch.n_trained, abs=1e-12)
    for name, parameter in by_hand.named_parameters():
        expected = of_soft[name] + (parameter.grad if parameter.grad is not None else 0.0)
        assert (gradients[name] - expected).abs().max() < 2e-7, name
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_gradient_reaches_a_projection_and_is_that_of_finite_differences():
    student, teacher = tiny.llama(seed=1, hidden=8, layers=1), tiny.llama(seed=2, layers=1)
    t = trainer(student, teacher, SOFT, hidden(1.0, layers=((0, 0),)))
    batch = tiny.batch(seed=4)
    (matrix,) = t.only.beside.parameters.values()
    assert torch.allclose(matrix.T @ matrix, torch.eye(8, dtype=torch.float64), atol=1e-12)
    scales = t._scales(batch.n_trained, [t.only])
    targets = {"teacher": t._teacher.targets(batch)}

    def total() -> Tensor:
        return t.family(batch, targets, scales).total

    total().backward()
    for place in ((0, 0), (15, 7), (3, 5)):
        with torch.no_grad():
            matrix[place] += 1e-6
            above = total().item()
            matrix[place] -= 2e-6
            below = total().item()
            matrix[place] += 1e-6
        assert matrix.grad[place].item() == pytest.approx((above - below) / 2e-6, abs=1e-8)


# --- what changes nothing ---
def packed(seed: int, *lengths: int) -> Batch:
    """One row of several documents, each from position 0, and a mask on the labels."""
    whole = tiny.batch(seed=seed, rows=1, length=sum(lengths)).view
    labels = whole.labels_BT.clone()
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    labels[:, starts] = IGNORED  # the last token of a document predicts nothing of the next
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return Batch(views={"tiny": TokenView.of(whole.ids_BT, labels, positions)})


def unpacked(batch: Batch, *lengths: int) -> Batch:
    """The same documents a row each, padded at the end."""
    view, longest, start = batch.view, max(lengths), 0
    ids, labels = torch.zeros(len(lengths), longest, dtype=torch.int64), torch.full((len(lengths), longest), IGNORED)
    for row, n in enumerate(lengths):
        ids[row, :n], labels[row, :n] = view.ids_BT[0, start : start + n], view.labels_BT[0, start : start + n]
        start += n
    return Batch(views={"tiny": TokenView.of(ids, labels)})


ALL = (SOFT, hidden(0.5), relations(0.5, heads=2))


def test_packing_padding_micro_batches_and_checkpointing_change_nothing():
    lengths = (5, 9, 7)
    row = packed(3, *lengths)
    rows = unpacked(row, *lengths)
    each = [
        Batch(views={"tiny": TokenView.of(rows.view.ids_BT[i : i + 1], rows.view.labels_BT[i : i + 1])})
        for i in range(3)
    ]
    found = []
    for batches, more in (([row], {}), ([rows], {}), (each, {}), ([row], {"gradient_checkpointing": True})):
        t = trainer(tiny.llama(seed=1, hidden=24), tiny.llama(seed=2, layers=3), *ALL, **more)
        assert sum(b.n_trained for b in batches) == row.n_trained
        found.append(one_step(t, *batches))
    for losses, gradients in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-12)
        assert differ(gradients, found[0][1]) < 1e-12


def test_weight_zero_is_bitwise_the_run_without_the_term_and_is_logged():
    still = tuple(replace(term, weight=constant(0.0)) if term.feature else term for term in ALL)
    results = []
    for terms in ((SOFT,), still):
        student = tiny.gpt2(seed=1, dropout=0.3)
        t = trainer(student, tiny.llama(seed=2, layers=3, hidden=24), *terms)
        results.append(
            ([s.losses for s in t.steps()], dict(t.only.masters.state()), [t.evaluate([tiny.batch(seed=9)])])
        )
    for plain, logged in zip(results[0][0], results[1][0], strict=True):
        extra = {name: logged.pop(f"student/{name}") for name in ("hidden_states", "attention_relations")}
        assert plain == logged
        assert min(extra.values()) > 0
    assert differ(results[0][1], results[1][1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_copy_of_the_teacher_stays_bitwise(dtype):
    teacher = tiny.llama(seed=1, dtype=dtype)
    student = copy.deepcopy(teacher).to(torch.float32 if dtype != torch.float64 else dtype)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    t = trainer(student, teacher, SOFT, *ALL[1:], dtype=dtype)
    for stats in t.steps():
        assert set(stats.losses.values()) == {0.0}
    assert differ(before, t.only.masters.state()) == 0.0


# --- the state ---
def test_a_resume_with_projections_is_bitwise_and_one_that_forgets_them_is_not():
    def fresh() -> Trainer:
        optimizer = OptimizerSettings(schedule=Schedule(kind="cosine", start=1e-2), n_steps=4, ema=0.9)
        student = tiny.gpt2(seed=1, dropout=0.3)
        return trainer(student, tiny.llama(seed=2, hidden=24), *ALL, optimizer=optimizer)

    def resumed(*, forgets: bool) -> Trainer:
        half, again = fresh(), fresh()
        for _ in range(2):
            next(half.steps())
        again.only.masters.load(half.only.masters.state())
        again.only.optimizer.load(half.only.optimizer.state())
        if not forgets:
            again.only.beside.load(copy.deepcopy(half.only.beside.state()))
        again.step = 2
        list(again.steps())
        return again

    whole = fresh()
    start = {n: p.detach().clone() for n, p in whole.only.beside.parameters.items()}
    list(whole.steps())
    assert differ(start, whole.only.beside.parameters) > 1e-3
    assert differ(weights(whole), weights(resumed(forgets=False))) == 0.0
    assert differ(weights(whole), weights(resumed(forgets=True))) > 1e-6
    assert not any("hidden_states" in name for name in whole.only.masters.state())


# --- the choice of layers ---
def pairs(student: nn.Module, teacher: nn.Module, *, kept=None, layers=None):
    (term,) = settled((hidden(layers=layers),), student=student, teacher=teacher, kept=kept)
    return term.feature.layers


def test_auto_takes_the_layers_that_a_student_was_made_of_else_even_ones_last_to_last():
    student, teacher = tiny.llama(layers=2), tiny.llama(layers=5)
    assert pairs(student, teacher, kept=(0, 2)) == ((0, 0), (1, 2))
    assert pairs(student, teacher) == ((0, 1), (1, 4))
    assert pairs(teacher, student)[-1] == (4, 1)
    assert pairs(teacher, teacher) == tuple((n, n) for n in range(5))


def heads_of(student: nn.Module, teacher: nn.Module, heads: int | str = "auto") -> int:
    (term,) = settled((relations(heads=heads),), student=student, teacher=teacher, kept=None)
    return term.feature.settings["relation_heads"]


def test_relation_heads_divide_every_width_of_both_models():
    wide, narrow = tiny.llama(hidden=192, layers=1), tiny.llama(hidden=128, layers=1)
    assert heads_of(wide, narrow) == 4  # of 192, 96, 128, 64: common 32, of which 4 heads leave 16 of the 64
    assert heads_of(tiny.gpt2(layers=1), wide, 8) == 8
    with pytest.raises(
        ConfigError, match="relation_heads 3 do not divide the width 128 of the teacher's query.*1, 2, 4"
    ):
        heads_of(wide, narrow, 3)
    assert pairs_of_relations(tiny.llama(layers=2), tiny.llama(layers=5)) == ((1, 4),)


def pairs_of_relations(student: nn.Module, teacher: nn.Module):
    (term,) = settled((relations(),), student=student, teacher=teacher, kept=None)
    return term.feature.layers


def test_a_projection_of_a_narrowed_student_begins_at_the_places_of_its_channels():
    student, teacher = tiny.llama(hidden=4, layers=1), tiny.llama(layers=1)
    terms = settled((hidden(),), student=student, teacher=teacher, kept=None, channels=(1, 3, 8, 15))
    (start,) = learned_of(terms, seed=0, name="student", dtype=torch.float64, device="cpu").values()
    state = torch.arange(16.0, dtype=torch.float64)
    assert torch.equal((start @ state[[1, 3, 8, 15]])[[1, 3, 8, 15]], state[[1, 3, 8, 15]])
    assert start.sum() == 4


def test_layers_and_states_that_are_not_there_are_refused():
    student, teacher = tiny.llama(layers=2), tiny.llama(layers=3)
    with pytest.raises(ConfigError, match="FEATURES.*layer 2 of the student, which has 0 to 1"):
        pairs(student, teacher, layers=((2, 0),))
    with pytest.raises(ConfigError, match="FEATURES.*layer 3 of the teacher, which has 0 to 2"):
        pairs(student, teacher, layers=((0, 3),))
    with pytest.raises(ConfigError, match="FEATURES.*one live teacher"):
        settled((hidden(),), student=student, teacher=None, kept=None)
    with pytest.raises(ConfigError, match="FEATURES.*no q_proj of its own"):
        odd = tiny.llama(layers=1)
        odd.model.layers[0].self_attn.rename = odd.model.layers[0].self_attn.q_proj
        del odd.model.layers[0].self_attn.q_proj
        taps.widths(odd, [Tap(layer=0, part="query")])
