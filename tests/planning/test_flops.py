"""The formula against PyTorch's counter, on several architectures, forward and backward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from tutelage.planning.flops import size_of, size_of_model

V, T = 97, 24
SMALL = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MLP = {"intermediate_size": 80, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **MLP, tie_word_embeddings=True),
    "llama with wide heads": LlamaConfig(**SMALL, **MLP, head_dim=16),
    "qwen2": Qwen2Config(**SMALL, **MLP),
    "gemma2": Gemma2Config(**SMALL, **MLP, head_dim=8, sliding_window=T),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=128),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=3, n_head=4),
}


def counted(config, *, backward: bool) -> tuple[int, torch.nn.Module]:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids_BT = torch.arange(2 * T).reshape(2, T) % V
    embedded_BTD = model.get_input_embeddings()(ids_BT).detach().requires_grad_()  # as every inner activation
    with FlopCounterMode(display=False) as counter:
        logits = model(inputs_embeds=embedded_BTD, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops(), model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backward", [False, True])
def test_the_formula_is_what_pytorch_counts(name: str, backward: bool):
    found, model = counted(CONFIGS[name], backward=backward)
    size = size_of_model(model)
    a_token = size.training_flops(context=T) if backward else size.forward_flops(context=T)
    assert found == pytest.approx(2 * T * a_token, rel=0.01)  # the angles of rotary positions are products too


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_enough(name: str):
    assert size_of(CONFIGS[name]) == size_of_model(AutoModelForCausalLM.from_config(CONFIGS[name]))


def test_of_experts_those_that_a_token_meets_count():
    config = MixtralConfig(**SMALL, **MLP, num_local_experts=6, num_experts_per_tok=2)
    dense = LlamaConfig(**SMALL, **MLP)
    experts, one = size_of(config), size_of(dense)
    mlp, router = 3 * 3 * 32 * 80, 3 * 32 * 6
    assert experts.multiplying == one.multiplying + mlp + router  # two experts where the dense model has one
    assert experts.parameters > one.parameters + 4 * mlp


def test_padding_of_the_head_is_not_computed():
    assert size_of(CONFIGS["llama"], n_vocabulary=V - 7).head == (V - 7) * 32


def test_the_head_is_left_out_where_nobody_asks_for_logits():
    size = size_of(CONFIGS["llama"])
    assert size.forward_flops(context=8) - size.forward_flops(context=8, with_head=False) == 2 * V * 32
