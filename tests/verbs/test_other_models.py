"""doctor, plan and train on models that are no Llama: without attention, of experts, not causal, of other tokens."""

import pytest
import torch
import transformers

import tutelage
from tests.verbs.tiny_runs import call, family_folder, recipe, tokenizer, written
from tutelage.planning.flops import size_of


def test_a_model_without_attention_is_examined_planned_and_trained(tmp_path):
    path = written(tmp_path, teacher=str(family_folder(tmp_path / "mamba", "mamba")))
    for verb in (("doctor", path), ("plan", path), ("train", path, "--run-dir", tmp_path / "run")):
        code, out, err = call(*verb)
        assert code == 0, out + err


def test_a_model_whose_heads_differ_from_layer_to_layer_is_planned(tmp_path):
    """Gemma 4: its config has no one dimension of the heads."""
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    config = transformers.Gemma4TextConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8, global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=48,
        hidden_size_per_layer_input=8,
    )  # fmt: skip
    assert size_of(config).attention_width == 2 * (8 + 16) // 2


def test_a_model_that_is_not_causal_is_one_line(tmp_path):
    own = tokenizer()
    config = transformers.T5Config(vocab_size=len(own), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    own.save_pretrained(tmp_path / "t5")
    path = written(tmp_path, teacher=str(tmp_path / "t5"))
    for verb in (("doctor", path), ("plan", path), ("train", path, "--run-dir", tmp_path / "run")):
        code, out, err = call(*verb)
        (line,) = [line for line in (out + err).splitlines() if line.startswith("error[")]
        assert code in (2, 3) and line.startswith("error[MODEL_LOAD]") and "such as Llama, Qwen, Gemma or GPT-2" in line


def test_a_tokenizer_with_more_tokens_than_the_head_has_rows_is_one_line(tmp_path):
    path = family_folder(tmp_path / "small", "llama")
    rows, larger = len(tokenizer()), tokenizer(words=90)
    larger.save_pretrained(path)
    asked = written(tmp_path, teacher=str(path), student={"layers": 2})  # which are measured: tokens are looked up
    for verb in (("doctor", asked), ("plan", asked), ("train", asked, "--run-dir", tmp_path / "run")):
        code, out, err = call(*verb)
        lines = [line for line in (out + err).splitlines() if line.startswith("error[")]
        assert code in (2, 3) and len(lines) == 1, out + err
        assert lines[0].startswith(f"error[VOCAB_PAD]: the head has {rows} rows, the tokenizer {len(larger)} tokens")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_trains_in_float64_too(family, tmp_path):
    """torch groups the products of experts in narrower formats only."""
    chosen = recipe(
        tmp_path, teacher=str(family_folder(tmp_path / "mixture", family)), training={"precision": "float64"}
    )
    run = tutelage.train(chosen, run_dir=tmp_path / "run")
    assert run.student().dtype == torch.float64
