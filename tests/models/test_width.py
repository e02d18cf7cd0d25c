"""A narrow model computes what the wide one did wherever what was taken out was nothing."""

import copy
from types import MethodType

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests import tiny
from tutelage.errors import ConfigError
from tutelage.models.anatomy import Sizes, anatomy_of
from tutelage.models.width import Kept, narrow_config, narrowed, wanted_sizes
from tutelage.training import widths

IDS = tiny.batch(rows=2, length=12).view.ids_BT
SMALL = dict(
    vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=64, initializer_range=0.3, pad_token_id=1,
)  # fmt: skip
EPSILON = {"rms_norm_eps": 0.01}  # large, so that a wrong one is seen


def made(kind: str):
    torch.manual_seed(3)
    if kind.startswith("llama"):
        return LlamaForCausalLM(
            LlamaConfig(**SMALL, **EPSILON, head_dim=8, tie_word_embeddings=kind == "llama")
        ).double()
    if kind == "qwen2":  # biases
        model = Qwen2ForCausalLM(Qwen2Config(**SMALL, **EPSILON)).double()
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                torch.nn.init.normal_(getattr(layer.self_attn, name).bias)
        return model
    if kind == "qwen3":  # norms of each head share the epsilon, and keep their width
        return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8, rms_norm_eps=1e-30)).double()
    return tiny.gemma2(seed=3).double()


def exact_norms(model):
    """The norms in float64: transformers computes them in float32 whatever the weights are."""
    offset = 1.0 if "Gemma" in type(model).__name__ else 0.0

    def forward(self, x):
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (offset + self.weight)

    for name, module in model.named_modules():
        if "norm" in name.rpartition(".")[2]:
            if module.weight.std() == 0:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.forward = MethodType(forward, module)
    return model.eval()


def with_nothing_in(model, *, channels, neurons, heads):
    """Channels that nobody writes, neurons that never fire, heads whose output nobody reads."""
    anatomy = anatomy_of(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, channels] = 0
        for layer in model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight[channels] = 0
            layer.mlp.gate_proj.weight[neurons] = 0
            for head in heads:
                start = head * anatomy.head_dim
                layer.self_attn.o_proj.weight[:, start : start + anatomy.head_dim] = 0
    return model


@pytest.mark.parametrize("kind", ["llama", "llama untied", "qwen2", "qwen3", "gemma2"])
@torch.no_grad()
def test_what_carries_nothing_is_taken_out_and_the_logits_stay(kind):
    channels, neurons = [1, 4, 5, 11], [0, 7, 30]
    heads = [] if kind == "gemma2" else [2, 3]  # a whole group
    wide = exact_norms(with_nothing_in(made(kind), channels=channels, neurons=neurons, heads=heads))
    own = anatomy_of(wide).sizes
    sizes = Sizes(
        hidden=own.hidden - 4, mlp=own.mlp - 3, heads=own.heads - len(heads), groups=own.groups - len(heads) // 2
    )
    importance = widths.measure_widths(wide, [tiny.batch(seed=1), tiny.batch(seed=2)])
    kept = widths.choose_widths(wide, importance, sizes=sizes)
    assert set(kept.hidden) == set(range(own.hidden)) - set(channels)
    assert all(set(layer) == set(range(own.mlp)) - set(neurons) for layer in kept.mlp)
    narrow = narrowed(wide, kept)
    narrow = exact_norms(narrow)
    assert narrow.config.hidden_size == sizes.hidden and anatomy_of(narrow).sizes == sizes
    largest = (wide(IDS).logits - narrow(IDS).logits).abs().max().item()
    assert largest < 1e-12, largest
    tied = narrow.get_output_embeddings().weight is narrow.get_input_embeddings().weight
    assert tied == (wide.get_output_embeddings().weight is wide.get_input_embeddings().weight)


@torch.no_grad()
def test_without_the_factor_of_the_norms_the_logits_change():
    wide = exact_norms(with_nothing_in(made("llama"), channels=[1, 4, 5, 11], neurons=[], heads=[]))
    kept = widths.choose_widths(
        wide, widths.measure_widths(wide, [tiny.batch()]), sizes=Sizes(hidden=20, mlp=40, heads=6, groups=3)
    )
    assert list(kept.norm_factors.values()) == pytest.approx([(24 / 20) ** 0.5] * 5, rel=1e-12)
    plain = Kept(hidden=kept.hidden, mlp=kept.mlp, heads=kept.heads, norm_factors=dict.fromkeys(kept.norm_factors, 1.0))
    assert (wide(IDS).logits - exact_norms(narrowed(wide, plain))(IDS).logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "llama untied", "qwen2", "qwen3", "gemma2"])
@torch.no_grad()
def test_keeping_everything_is_the_teacher_bitwise(kind):
    wide = made(kind).eval()
    before = copy.deepcopy(wide.state_dict())
    kept = widths.choose_widths(wide, widths.measure_widths(wide, [tiny.batch()]), sizes=anatomy_of(wide).sizes)
    narrow = narrowed(wide, kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.state_dict().items())
    assert torch.equal(wide(IDS).logits, narrow(IDS).logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in wide.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in wide.modules())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_a_model_is_understood_alike_in_bfloat16(kind):
    assert anatomy_of(made(kind).bfloat16()) == anatomy_of(made(kind))


@torch.no_grad()
def test_the_importance_of_a_head_is_the_size_of_what_it_adds():
    wide, batch = made("llama").eval(), tiny.batch(seed=5)
    importance = widths.measure_widths(wide, [batch])
    out = wide.model.layers[1].self_attn.o_proj
    seen = []
    hook = out.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].flatten(0, 1)[batch.view.index_N]))
    wide(batch.view.ids_BT)
    hook.remove()
    for head in range(6):
        own = slice(8 * head, 8 * head + 8)
        added = seen[0][:, own] @ out.weight[:, own].T
        assert importance.heads_LH[1, head].item() == pytest.approx(
            added.square().sum(-1).mean().sqrt().item(), rel=1e-12
        )


@torch.no_grad()
def test_as_many_heads_of_each_group_stay_and_the_best_of_them():
    wide = made("llama").eval()
    importance = widths.measure_widths(wide, [tiny.batch()])
    kept = widths.choose_widths(wide, importance, sizes=Sizes(hidden=24, mlp=40, heads=3, groups=3))
    for layer, heads in enumerate(kept.heads):
        pairs = importance.heads_LH[layer].unflatten(0, (3, 2)).argmax(-1)
        assert heads == tuple(2 * group + int(best) for group, best in enumerate(pairs))
    assert anatomy_of(narrowed(wide, kept)).sizes.heads == 3


def test_what_was_kept_survives_json():
    kept = Kept(hidden=(0, 3, 70), mlp=((1,), (5, 9)), heads=((0, 1), (2, 3)), norm_factors={"model.norm": 1 / 3})
    assert widths.from_json(widths.to_json(kept)) == kept


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"hidden": 0.5, "mlp": 0.5, "heads": 0.5}, (16, 24, 4, 2)),  # 12, 20 and 3 in steps of 8, 8 and 2
        ({"hidden": 18}, (18, 40, 6, 3)),
        ({"hidden": 0.7}, (18, 40, 6, 3)),  # 16 in steps of 8, which 6 heads do not divide
        ({"heads": 4}, (24, 40, 4, 2)),
        ({"heads": 3, "key_value_heads": 3}, (24, 40, 3, 3)),
        ({"key_value_heads": 1}, (24, 40, 2, 1)),
    ],
)
def test_what_a_recipe_asks_in_numbers(asked, expected):
    sizes = wanted_sizes(LlamaConfig(**SMALL), **asked)
    assert (sizes.hidden, sizes.mlp, sizes.heads, sizes.groups) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"hidden": 25}, "student.width.hidden: 25, and the teacher has 24; give 1 to 24"),
        ({"mlp": 4000}, "student.width.mlp: 4000, and the teacher has 40"),
        ({"heads": 3}, "share keys and values by 2; give a multiple of 2, or student.width.key_value_heads too"),
        ({"heads": 4, "key_value_heads": 3}, "give at most 3 key_value_heads, and heads that are 1 to 2 times as many"),
        ({"key_value_heads": 4}, "the teacher has 6 on 3"),
        ({"heads": 5, "key_value_heads": 1}, "the teacher has 6 on 3"),
        ({"hidden": 20}, "LlamaConfig takes no 20 channels and 6 heads together; give hidden=18 or 24"),
    ],
)
def test_more_than_the_teacher_has_or_uneven_groups_are_refused(asked, said):
    with pytest.raises(ConfigError) as caught:
        wanted_sizes(LlamaConfig(**SMALL), **asked)
    assert caught.value.code == "WIDTH" and said in caught.value.message


def mixtral():
    config = MixtralConfig(**{**SMALL, "num_local_experts": 2, "head_dim": 4})
    return MixtralForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny.gpt2, "GPT2Config cannot be narrowed: its config has no intermediate_size"),
        (mixtral, "MixtralForCausalLM cannot be narrowed: model.layers.0.mlp."),
    ],
)
def test_an_architecture_that_is_not_understood_is_refused(make, said):
    with pytest.raises(ConfigError) as caught:
        anatomy_of(make())
    assert caught.value.code == "WIDTH"
    assert said in caught.value.message and "give the student as {layers: …}" in caught.value.message


def test_the_config_of_a_narrow_model_is_known_without_its_weights():
    config = narrow_config(LlamaConfig(**SMALL, rms_norm_eps=1e-5), Sizes(hidden=12, mlp=16, heads=2, groups=1))
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (12, 16, 4)
    assert config.rms_norm_eps == pytest.approx(2e-5)
