"""What is made and checked before the first step, with objects in memory."""

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from tests import tiny
from tests.models.tiny_models import tokenizer
from tutelage.errors import ConfigError
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.recipe import load_recipe
from tutelage.training.prepare import InMemory, Prepared, prepare

TEXTS = [f"{i} ab cd abcd efgh {i * i} ijkl mnop" for i in range(40)]


def prepared(*, teacher: nn.Module, student: nn.Module, precision: str = "float32", max_length: int = 32) -> Prepared:
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
    return prepare(recipe, memory=memory)


def llama(*, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny.llama(seed=seed, vocabulary=len(tokenizer()), dtype=dtype)


def opt() -> nn.Module:
    config = OPTConfig(
        vocab_size=len(tokenizer()), hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_neither_teacher_nor_student_may_mix_packed_documents(role):
    models = {"teacher": llama(seed=0), "student": llama(seed=1), role: opt()}
    with pytest.raises(ConfigError) as caught:
        prepared(**models)
    assert caught.value.code == "PACKING"


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
