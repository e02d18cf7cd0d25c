"""`training.compile`: the same numbers but for roundings, whatever the shapes, and nothing stays compiled."""

import copy
from functools import partial

import pytest
import torch
from transformers import BlenderbotConfig, BlenderbotForCausalLM

import tutelage
from tests import tiny
from tests.instruments import faults
from tests.verbs.tiny_runs import assert_equal_weights, call, family_folder, recipe, weights_of, written
from tutelage import io
from tutelage.errors import ConfigError
from tutelage.models.head import trunk
from tutelage.models.layers import decoder_layers
from tutelage.recipe import load_recipe
from tutelage.training.compiling import compiled
from tutelage.types import TokenView

COMPILED = {"precision": "float64", "compile": True, "micro_batch": 2, "batch_tokens": 128}
WIDE = {"max_length": 64}


@pytest.fixture
def graphs_alone(monkeypatch):
    """Everything of torch.compile but the C++ compiler, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()


def view(*, rows, length, documents):
    """Rows of as many documents each, whose positions begin again."""
    ids_BT = tiny.batch(rows=rows, length=length).view.ids_BT
    starts_B1 = torch.tensor([length // documents + b for b in range(rows)])[:, None]
    positions_BT = torch.arange(length).expand(rows, length)
    positions_BT = torch.where(positions_BT >= starts_B1, positions_BT - starts_B1, positions_BT)
    return TokenView.of(ids_BT, ids_BT, positions_BT if documents > 1 else None)


def states_and_gradients(model, batch):
    hidden_BTD = trunk(model, batch)
    hidden_BTD.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"hidden": hidden_BTD.detach(), **gradients}


def test_compiled_layers_give_the_models_own_numbers_for_every_shape_from_few_graphs(graphs_alone):
    """One row and several, longer and shorter; equal layers share a graph.  (Norms compute in float32.)"""
    model = tiny.llama(layers=3).train()
    eager = copy.deepcopy(model)
    torch._dynamo.utils.counters.clear()
    with compiled([model]):
        for rows, length, documents in ((3, 12, 2), (2, 9, 2), (3, 11, 2), (1, 7, 2), (1, 10, 2)):
            batch = view(rows=rows, length=length, documents=documents)
            found, expected = states_and_gradients(model, batch), states_and_gradients(eager, batch)
            assert len(found) > 20
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model)[1])


def test_a_run_is_the_one_without_but_for_roundings_and_one_that_was_stopped_ends_in_the_same_bits(tmp_path):
    """A GPT-2 with its dropout of 0.1: compiled, it draws what it drew."""
    asked = {"teacher": str(family_folder(tmp_path / "gpt2", "gpt2")), "data": WIDE}
    plain = tutelage.train(
        recipe(tmp_path, **asked, training={**COMPILED, "compile": False}), run_dir=tmp_path / "plain"
    )
    chosen = recipe(tmp_path, **asked, training=COMPILED)
    whole = tutelage.train(chosen, run_dir=tmp_path / "whole")
    for name, value in weights_of(whole.path / "student").items():
        torch.testing.assert_close(value, weights_of(plain.path / "student")[name], rtol=0, atol=1e-4)

    def stops(operation: io.Operation) -> None:
        if operation.kind == "rename" and "step-000003" in str(operation.target):
            raise KeyboardInterrupt

    torch._dynamo.reset()  # as in a process of its own: the shapes of step 3 come first then
    with faults.hooked(stops), pytest.raises(KeyboardInterrupt):
        tutelage.train(chosen, run_dir=tmp_path / "stopped")
    torch._dynamo.reset()
    again = tutelage.train(chosen, run_dir=tmp_path / "stopped")
    assert_equal_weights(weights_of(again.path / "student"), weights_of(whole.path / "student"))


def test_a_run_compiles_teacher_and_student(tmp_path, graphs_alone, monkeypatch):
    asked = []
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **how: (asked.append(m), compile_module(m, **how)))
    torch._dynamo.utils.counters.clear()
    tutelage.train(recipe(tmp_path, data=WIDE, training=COMPILED), run_dir=tmp_path / "run")
    learning = [all(p.requires_grad for p in layer.parameters()) for layer in asked]
    assert learning.count(True) == 2 and learning.count(False) == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


def test_a_callback_gets_models_that_are_not_compiled(tmp_path, graphs_alone):
    """Which generates: every length and layer of that would be compiled."""
    (tmp_path / "watch.py").write_text(
        "def on_event(event):\n"
        "    model = event.models['student']\n"
        "    ids = model.generate(model.dummy_inputs['input_ids'], max_new_tokens=4, do_sample=False)\n"
        "    assert ids.shape[1] > 4 and all(m._compiled_call_impl is None for m in model.modules())\n"
    )
    watching = {**COMPILED, "callbacks": [f"{tmp_path / 'watch.py'}:on_event"]}
    torch._dynamo.utils.counters.clear()
    tutelage.train(recipe(tmp_path, data=WIDE, training=watching), run_dir=tmp_path / "run")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_a_model_without_one_list_of_layers_is_one_line():
    config = BlenderbotConfig(
        vocab_size=48,
        d_model=16,
        decoder_layers=2,
        decoder_ffn_dim=16,
        encoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    with (
        pytest.raises(ConfigError, match=r"error\[COMPILE\]: .* no list of layers .*; set training.compile=false"),
        compiled([BlenderbotForCausalLM(config)]),
    ):
        pass


def test_without_a_compiler_it_is_said_before_anything_is_loaded(tmp_path):
    torch._dynamo.reset()
    path = written(tmp_path, training={"compile": True})
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        code, _, err = call("train", path, "--run-dir", tmp_path / "run")
        examined, out, more = call("doctor", path)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("error[COMPILE]: training.compile: torch.compile does not work here on cpu (")
    assert "a C++ compiler: install it, or set training.compile=false" in last
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert examined != 0 and "COMPILE" in out + more


def test_features_and_compiled_layers_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"and training.compile exclude each other: what a compiled layer computes"):
        load_recipe(recipe(tmp_path, training={"compile": True}, loss=["forward_kl", {"hidden_states": 0.1}]))


def test_a_layer_that_cannot_be_compiled_is_one_line_with_the_way_on():
    model = tiny.llama(layers=2)

    def refuses(*_arguments, **_more):
        raise RuntimeError("no such kernel")

    with (
        torch._dynamo.config.patch(suppress_errors=False),
        pytest.raises(ConfigError, match=r"a layer cannot be compiled .*; set training.compile=false"),
        compiled([model]),
    ):
        model.model.layers[0].compile(backend=refuses)
        trunk(model, view(rows=2, length=8, documents=1))
