"""A model whose dtype is changed is the model that loading it in that dtype gives."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from tutelage.models.cast import cast
from tutelage.models.save import with_weights
from tutelage.training.precision import MasterWeights
from tutelage.types import CausalLM

V = 48


def by_masters(model: CausalLM) -> CausalLM:
    return MasterWeights(model, weight_dtype=torch.bfloat16).model


def by_saving(model: CausalLM) -> CausalLM:
    return with_weights(model, dict(model.named_parameters()), dtype=torch.bfloat16)


@pytest.mark.parametrize("convert", [lambda model: cast(model, torch.bfloat16), by_masters, by_saving])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma2, tiny.gpt2])
def test_bfloat16_by_conversion_is_bitwise_bfloat16_by_loading(make, convert, tmp_path: Path):
    model = make(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded, read = (
        AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=dtype, attn_implementation=model.config._attn_implementation
        ).eval()
        for dtype in (torch.bfloat16, torch.float32)
    )
    converted = convert(read).eval()
    ids = (torch.arange(120)[None] * 7) % V
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, loaded(ids).logits)
    assert {p.dtype for p in converted.parameters()} == {torch.bfloat16}
