"""The head and the trunk: what is checked about a model before anything is trained on it."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from tests import tiny
from tutelage.errors import ConfigError, NumericError
from tutelage.models.head import refuse_too_long, verify_head, verify_packing

V = 48


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3))


def opt():
    config = OPTConfig(vocab_size=V, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
                       max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3)  # fmt: skip
    return OPTForCausalLM(config)


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize("make", [bloom, opt, mamba])
def test_a_model_that_mixes_packed_documents_is_refused(make):
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="see each other") as caught:
        verify_packing(make().eval(), n_vocabulary=V)
    assert caught.value.code == "PACKING"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2, tiny.gpt2])
def test_a_model_that_keeps_packed_documents_apart_is_accepted(make, dtype):
    verify_packing(make().to(dtype), n_vocabulary=V)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2, tiny.gpt2])
def test_windows_longer_than_the_models_positions_are_refused(make):
    refuse_too_long(make(), max_length=128)
    with pytest.raises(ConfigError, match="data.max_length: 129, and .* has 128 positions; set data.max_length=128"):
        refuse_too_long(make(), max_length=129)


def test_a_model_with_nan_weights_is_said_to_be_broken():
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericError, match="gives NaN logits"):
        verify_head(model, n_vocabulary=V)
