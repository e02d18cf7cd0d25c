"""What is made and checked before the first step, with objects in memory."""

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from tests import tiny
from tests.models.tiny_models import tokenizer
from tutelage.errors import ConfigError
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.head import trunk
from tutelage.recipe import load_recipe
from tutelage.training.prepare import InMemory, Prepared, prepare
from tutelage.types import IGNORED, TokenView

TEXTS = [f"{i} ab cd abcd efgh {i * i} ijkl mnop" for i in range(40)]


def prepared(
    *, teacher: nn.Module, student: nn.Module, precision: str = "float32", max_length: int = 32, earlier=None
) -> Prepared:
    recipe = load_recipe(
        {
            "teacher": {"memory": weights_fingerprint(teacher)},
            "student": {"memory": weights_fingerprint(student)},
            "data": {"sources": [{"memory": "texts"}], "held_out": 0.2, "max_length": max_length},
            "loss": ["forward_kl"],
            "training": {"steps": 1, "batch_tokens": 2 * max_length, "learning_rate": 1e-3, "precision": precision},
        }
    )
    memory = InMemory(teacher=teacher, student=student, tokenizer=tokenizer(), examples={"texts": TEXTS})
    return prepare(recipe, memory=memory, earlier=earlier)


def llama(*, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny.llama(seed=seed, vocabulary=len(tokenizer()), dtype=dtype)


def opt() -> nn.Module:
    config = OPTConfig(
        vocab_size=len(tokenizer()), hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize("role", ["teacher", "student"])
@torch.no_grad()
def test_where_a_model_would_mix_documents_each_has_a_row_of_its_own(role, capsys):
    made = prepared(**{"teacher": llama(seed=0), "student": llama(seed=1), role: opt()}, precision="float64")
    assert "note[PACKING]: OPTForCausalLM does not keep" in capsys.readouterr().err
    assert made.provenance["packed"] is False
    model = made.teacher.model if role == "teacher" else made.students["student"]
    batches = [*made.loader.step(0), *made.held_out()]
    assert all(len(batch.row_keys) == len(batch.view.ids_BT) for batch in batches)
    for ids, labels, hidden in ((b.view.ids_BT, b.view.labels_BT, trunk(model, b.view)) for b in batches):
        for row in range(len(ids)):
            length = int((labels[row] != IGNORED).nonzero().max()) + 1
            alone = ids[row : row + 1, :length]
            assert (trunk(model, TokenView.of(alone, alone))[0] - hidden[row, :length]).abs().max() < 1e-12


def test_a_run_that_goes_on_packs_as_it_did(capsys):
    """What was measured when it began is not measured again: it decides which rows a step sees."""
    models = {"teacher": llama(seed=0), "student": llama(seed=1)}
    for packed in (True, False):
        assert prepared(**models, earlier={"packed": packed}).loader.packed is packed
    assert prepared(**models).loader.packed is True


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_callers_teacher_is_left_as_it_was(precision):
    """Its weights are lent: no other dtype, mode or gradient setting comes back to whoever handed it over."""
    teacher = llama(seed=0).train().requires_grad_(True)
    before = weights_fingerprint(teacher)
    made = prepared(teacher=teacher, student=llama(seed=1), precision=precision)
    assert weights_fingerprint(teacher) == before
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    assert made.teacher is not None and not made.teacher.model.training
    assert not any(p.requires_grad for p in made.teacher.model.parameters())


def test_the_lent_teacher_costs_no_second_copy_of_its_weights():
    teacher = llama(seed=0)
    made = prepared(teacher=teacher, student=llama(seed=1))
    assert made.teacher is not None
    ours = {p.data_ptr() for p in made.teacher.model.parameters()}
    assert ours == {p.data_ptr() for p in teacher.parameters()}


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_neither_teacher_nor_student_gets_more_positions_than_it_has(role):
    models = {"teacher": llama(seed=0), "student": llama(seed=1), role: opt()}
    with pytest.raises(ConfigError, match="OPTForCausalLM has 64 positions"):
        prepared(**models, max_length=65)
