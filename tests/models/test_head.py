"""The head and the trunk: what is checked about a model before anything is trained on it."""

import pytest
import torch

from tests import tiny
from tutelage.errors import ConfigError, NumericError
from tutelage.models.head import refuse_too_long, verify_head

V = 48


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
