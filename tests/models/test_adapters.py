"""Adapters learn beside weights that stay, and are merged into a plain model that computes the same."""

import copy
import sys

import pytest
import torch
from peft import PeftModel

from tests import tiny
from tests.models.architectures import made
from tutelage.errors import ConfigError
from tutelage.losses.schedules import Schedule
from tutelage.losses.terms import Term
from tutelage.models.adapters import (
    Adapter,
    adapted,
    is_adapted,
    learned_parameters,
    merged,
    n_learned,
    save_adapter,
    target_modules,
    tell_what_stays,
)
from tutelage.models.student import partly_random
from tutelage.teachers.live import LiveTeacher
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import one_model

V = 48
IDS = tiny.batch(rows=2, length=12).view.ids_BT
FEW = Adapter(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


def trainer(model, *, dtype=torch.float64):
    return one_model(
        model, terms=(Term(kind="divergence", divergence="forward_kl"),),
        teacher=LiveTeacher(tiny.llama(seed=9), n_vocabulary=V),
        microbatches=lambda step: [tiny.batch(seed=step)], n_vocabulary=V, seed=0,
        compute=ComputePath(device="cpu", weight_dtype=dtype, threads=1),
        optimizer=OptimizerSettings(schedule=Schedule(kind="constant", start=1e-2), n_steps=3, ema=0.9),
    )  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma2])
@torch.no_grad()
def test_an_adapted_model_begins_as_it_was_and_is_merged_into_what_it_became(make, dora):
    plain = make()
    model = adapted(copy.deepcopy(plain), Adapter(rank=3, alpha=6.0, dora=dora), seed=0)
    assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-12) and is_adapted(model)
    if not dora:
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    for parameter in learned_parameters(model).values():
        parameter += 0.1 * torch.randn_like(parameter)
    again = merged(model)
    assert (model(IDS).logits - plain(IDS).logits).abs().max() > 1e-2
    assert torch.allclose(again(IDS).logits, model(IDS).logits, atol=1e-11)
    assert not is_adapted(again) and is_adapted(model)
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert merged(plain) is plain


def test_only_adapters_learn_have_moments_and_stand_in_a_checkpoint():
    model = adapted(tiny.llama(), FEW, seed=0)
    before = copy.deepcopy(model.state_dict())
    training = trainer(model)
    for _ in training.steps():
        pass
    after = model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    learned = learned_parameters(model).keys()
    assert changed == set(learned) and len(learned) == 2 * 2 * 2
    assert all(".lora_" in name and ("q_proj" in name or "down_proj" in name) for name in learned)
    assert training.only.masters.state().keys() == learned
    assert {key.split("/", 1)[1] for key in training.only.optimizer.state()} == set(learned)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_in_bfloat16_the_masters_of_the_adapters_are_float32_and_the_rest_has_none():
    model = adapted(tiny.llama(dtype=torch.float32), FEW, seed=0)
    training = trainer(model, dtype=torch.bfloat16)
    assert {p.dtype for p in training.only.masters.parameters.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    training.train_step(training.microbatches(0))
    for name, working in learned_parameters(model).items():
        assert torch.equal(working, training.only.masters.parameters[name].to(torch.bfloat16))


def test_the_gradient_of_an_adapter_is_that_of_a_model_whose_head_learns_too():
    """A head that stays costs no product; what reaches the trunk must not change by that."""
    gradients = []
    for head_learns in (False, True):
        model = adapted(tiny.llama(tied=False), FEW, seed=0)
        model.get_output_embeddings().weight.requires_grad_(head_learns)
        training = trainer(model)
        scales = training._scales(7, training.peers.values())
        batch = tiny.batch(seed=3)
        training.family(batch, training._targets(batch), scales).total.backward()
        assert (model.get_output_embeddings().weight.grad is not None) == head_learns
        gradients.append({name: p.grad for name, p in learned_parameters(model).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_how_many_parameters_learn_is_known_before(make, dora):
    adapter = Adapter(rank=3, alpha=6.0, dora=dora)
    expected = n_learned(make(), adapter)
    assert sum(p.numel() for p in learned_parameters(adapted(make(), adapter, seed=0)).values()) == expected


ADAPTED = ["falcon", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "llama4", "gpt_oss", "bloom", "lfm2",
           "gemma3 with images"]  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ADAPTED)
@torch.no_grad()
def test_of_every_family_the_linear_layers_learn_and_nothing_else(family, dora):
    """peft itself renames layers of mixtures, and adapts their experts or nothing in place of what was named."""
    adapter, plain = Adapter(rank=3, alpha=6.0, dora=dora), made(family)
    expected, targets = n_learned(plain, adapter), target_modules(plain, adapter)
    assert any(name.endswith("o_proj") or name.endswith("dense") or name.endswith("out_proj") for name in targets)
    model = adapted(copy.deepcopy(plain), adapter, seed=0)
    found = learned_parameters(model)
    assert {name.partition(".lora_")[0] for name in found} == set(targets)
    assert sum(parameter.numel() for parameter in found.values()) == expected
    before = plain(IDS).logits
    for parameter in found.values():
        parameter += 0.1 * torch.randn_like(parameter)
    again = merged(model)
    largest = (model(IDS).logits - again(IDS).logits).abs().max()
    assert (again(IDS).logits - before).abs().max() > 100 * largest  # a part computes in float32 whatever it is given
    assert again.state_dict().keys() == plain.state_dict().keys()


def test_what_cannot_be_adapted_is_refused_with_the_way_on():
    with pytest.raises(ConfigError, match="peft adapts no MambaForCausalLM so .*name other layers in student.lora.tar"):
        adapted(made("mamba"), Adapter(rank=2, alpha=2.0), seed=0)
    within = Adapter(rank=2, alpha=2.0, targets=("in_proj", "x_proj"))
    assert len(learned_parameters(adapted(made("mamba"), within, seed=0))) == 2 * 2 * 4
    model = tiny.llama()
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            owner, _, own = name.rpartition(".")
            setattr(model.model.layers.get_submodule(owner), own, torch.nn.Identity())
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no linear layer but its head; leave lora out"):
        n_learned(model, Adapter(rank=2, alpha=2.0))


@pytest.mark.parametrize(("family", "dense", "alone"), [("qwen3_moe", True, False), ("qwen3_moe", False, True)])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks transformers 5
def test_adapters_that_peft_would_read_as_others_are_not_saved_alone(family, dense, alone, tmp_path, capsys):
    targets = ("q_proj", "down_proj") if dense else ("q_proj",)
    model = adapted(made(family), Adapter(rank=2, alpha=2.0, targets=targets), seed=0)
    save_adapter(model, tmp_path / "adapter", base="base", revision=None)
    assert (tmp_path / "adapter").is_dir() == alone
    assert ("note[ADAPTERS]" in capsys.readouterr().err) == (not alone)
    if alone:
        again = PeftModel.from_pretrained(made(family), tmp_path / "adapter")
        assert len(learned_parameters(again)) == len(learned_parameters(model))


@pytest.mark.parametrize(("family", "said"), [("mixtral", True), ("gpt_oss", True), ("llama", False), ("mamba", False)])
def test_that_experts_stay_as_they_are_is_said(family, said, capsys):
    tell_what_stays(made(family), name="student")
    err = capsys.readouterr().err
    assert ("note[ADAPTERS]: student: the experts of" in err) == said
    assert family != "mixtral" or "of MixtralForCausalLM (24,576 of " in err


def test_adapters_repeat_with_their_seed():
    one, same, other = (learned_parameters(adapted(tiny.llama(), FEW, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_target_that_is_no_layer_is_refused_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"'qproj' is no linear layer of LlamaForCausalLM; it has down_proj, gate_proj"
    ):
        adapted(tiny.llama(), Adapter(rank=2, alpha=2.0, targets=("qproj",)), seed=0)


def test_without_peft_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'run: pip install "tutelage\[lora\]"') as caught:
        adapted(tiny.llama(), FEW, seed=0)
    assert caught.value.code == "MISSING_EXTRA"


def test_gradient_checkpointing_changes_no_gradient_of_an_adapter():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(tiny.llama(), FEW, seed=0)
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train()(IDS).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in learned_parameters(model).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@torch.no_grad()
def test_a_start_is_as_far_between_its_weights_and_random_ones_as_asked():
    own = tiny.llama(seed=1)
    half, quarter, same, other = (
        partly_random(copy.deepcopy(own), share, seed=seed) for share, seed in ((0.5, 0), (0.25, 0), (0.5, 0), (0.5, 1))
    )
    for name, weight in own.named_parameters():
        a, b = half.get_parameter(name), quarter.get_parameter(name)
        assert torch.allclose(a - weight, 2 * (b - weight), atol=1e-12), name
        random = 2 * a - weight
        if random.ndim == 2:
            assert 0.2 < random.std() < 0.4  # the config's initializer_range is 0.3
        else:
            assert torch.allclose(random, torch.ones_like(random), atol=1e-6)
    assert all(torch.equal(half.state_dict()[name], same.state_dict()[name]) for name in half.state_dict())
    assert not torch.equal(half.lm_head.weight, other.lm_head.weight)
    assert half.lm_head.weight is half.model.embed_tokens.weight
