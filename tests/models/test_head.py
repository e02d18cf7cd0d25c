"""The head and the trunk: what is checked about a model before anything is trained on it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.models.architectures import FAMILIES
from tutelage.errors import ConfigError, NumericError
from tutelage.models.head import refuse_too_long, trunk, verify_head
from tutelage.types import TokenView

V = 48


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2, tiny.gpt2])
def test_windows_longer_than_the_models_positions_are_refused(make):
    refuse_too_long(make(), max_length=128)
    with pytest.raises(ConfigError, match="data.max_length: 129, and .* has 128 positions; set data.max_length=128"):
        refuse_too_long(make(), max_length=129)


def test_windows_that_change_the_frequencies_of_the_rows_beside_them_are_refused():
    """Phi-3 with longrope: beyond its first length every row of a batch gets other positions."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope |= {"factor": 4.0, "original_max_position_embeddings": 24, "partial_rotary_factor": 1.0}
    config = FAMILIES["phi3"]()
    config.rope_parameters, config.max_position_embeddings = rope, 96
    config.original_max_position_embeddings = 24
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    ids_BT = torch.randint(2, V, (2, 32))

    def first_row(length):
        return trunk(model, TokenView.of(ids_BT[:, :length], ids_BT[:, :length]))[0, :16].detach()

    torch.testing.assert_close(first_row(24), first_row(16), rtol=0, atol=1e-12)
    assert (first_row(32) - first_row(16)).abs().max() > 0.1
    refuse_too_long(model, max_length=24)
    with pytest.raises(
        ConfigError, match=r"data.max_length: 25, and beyond 24 tokens Phi3.* set data.max_length=24 or"
    ):
        refuse_too_long(model, max_length=25)


def test_a_model_with_nan_weights_is_said_to_be_broken():
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericError, match="gives NaN logits"):
        verify_head(model, n_vocabulary=V)
