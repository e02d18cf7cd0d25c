"""Layers are chosen by what the whole model's output loses without them."""

import copy

import pytest
import torch

from tests import tiny
from tests.models.architectures import made
from tutelage.errors import ConfigError
from tutelage.losses.divergences import forward_kl
from tutelage.losses.support import log_softmax
from tutelage.models import student
from tutelage.training.importance import choose_layers

V = 48


def costs_by_hand(teacher, batches, kept):
    """KL of a model really built from the layers kept, at every trained position."""
    built = student.from_layers(teacher, kept)
    total = n = 0
    for batch in batches:
        for row in range(batch.view.ids_BT.shape[0]):
            ids = batch.view.ids_BT[row : row + 1]
            trained = batch.view.labels_BT[row, 1:] != -100
            p, q = (log_softmax(m(input_ids=ids).logits[0, :-1][trained]) for m in (teacher, built))
            total, n = total + forward_kl(p, q).sum().item(), n + int(trained.sum())
    return total / n


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_the_measured_cost_of_each_removal_is_that_of_a_model_built_without_the_layer(make):
    teacher, batches = make(layers=5, seed=3), [tiny.batch(seed=1), tiny.batch(seed=2)]
    with torch.no_grad():
        choice = choose_layers(teacher, batches, n_kept=3, n_vocabulary=V)
        first, second = choice.dropped
        assert len(choice.kept) == 3
        assert first[1] == pytest.approx(
            costs_by_hand(teacher, batches, [i for i in range(5) if i != first[0]]), abs=1e-9
        )
        assert second[1] == pytest.approx(costs_by_hand(teacher, batches, list(choice.kept)), abs=1e-9)
        others = [costs_by_hand(teacher, batches, [i for i in range(5) if i != dropped]) for dropped in range(5)]
    assert first[1] == pytest.approx(min(others), abs=1e-9)


@torch.no_grad()
def test_layers_that_return_more_than_hidden_states_are_measured_alike():
    teacher, batches = made("bloom"), [tiny.batch(seed=1)]
    choice = choose_layers(teacher, batches, n_kept=2, n_vocabulary=V)
    assert choice.dropped[1][1] == pytest.approx(costs_by_hand(teacher, batches, list(choice.kept)), abs=1e-6)


def test_a_layer_that_does_nothing_is_dropped_first():
    teacher = tiny.llama(layers=4, seed=1)
    with torch.no_grad():
        idle = teacher.model.layers[2]
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    choice = choose_layers(teacher, [tiny.batch()], n_kept=3, n_vocabulary=V)
    assert choice.dropped == ((2, pytest.approx(0.0, abs=1e-12)),)


def test_measuring_leaves_the_teacher_as_it_was():
    teacher = tiny.llama(layers=4)
    ids = tiny.batch().view.ids_BT
    before, weights = teacher(input_ids=ids).logits, copy.deepcopy(teacher.state_dict())
    choose_layers(teacher, [tiny.batch()], n_kept=2, n_vocabulary=V)
    assert torch.equal(teacher(input_ids=ids).logits, before)
    assert all(torch.equal(weights[n], w) for n, w in teacher.state_dict().items())
    assert all("forward" not in vars(layer) for layer in teacher.model.layers)


def test_evenly_keeps_first_and_last():
    assert student.evenly(30, 15)[0] == 0
    assert student.evenly(30, 15)[-1] == 29
    assert len(set(student.evenly(30, 20))) == 20
    assert student.evenly(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("layers", [[0, 0], [-1, 2], [0, 7], []])
def test_an_impossible_list_of_layers_is_refused(layers):
    with pytest.raises(ConfigError, match="student.layers"):
        student.from_layers(tiny.llama(layers=4), layers)


def test_a_student_of_all_layers_is_the_teacher_bitwise_and_cut_config_lists_follow():
    teacher = tiny.gemma2(layers=4, seed=2)
    ids = tiny.batch().view.ids_BT
    assert torch.equal(student.from_layers(teacher, range(4))(input_ids=ids).logits, teacher(input_ids=ids).logits)
    kept = student.from_layers(teacher, [0, 3])
    assert kept.config.layer_types == [teacher.config.layer_types[0], teacher.config.layer_types[3]]
    assert kept.config.num_hidden_layers == 2


def test_a_student_from_a_config_has_the_real_vocabulary_and_repeats_with_its_seed():
    base = tiny.llama(vocabulary=64).config

    def make(seed: int):
        config = {"hidden_size": 8, "num_hidden_layers": 3}
        return student.from_config(config, base=base, n_vocabulary=48, seed=seed)

    a, b, c = make(0), make(0), make(1)
    assert a.get_output_embeddings().weight.shape == (48, 8)
    assert a.config.num_hidden_layers == 3
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))
    with pytest.raises(ConfigError, match="student.config: unknown for LlamaConfig: hiden_size"):
        student.from_config({"hiden_size": 8}, base=base, n_vocabulary=48, seed=0)
