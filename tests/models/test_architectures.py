"""One contract for every family of models: head, packing, choice of layers, save and reload."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, RecurrentGemmaConfig

from tests.models.architectures import FAMILIES, UNPACKED, V, made
from tutelage.errors import ConfigError
from tutelage.models import packing
from tutelage.models.head import head_of, trunk, verify_head
from tutelage.models.layers import decoder_layers, skipping
from tutelage.models.student import from_layers
from tutelage.types import TokenView

# These compute a part in float32 whatever their weights are: the softmax of "eager" attention, rotations, states.
PARTS_IN_FLOAT32 = {"gemma2", "gpt_oss", "bloom", "mamba", "deepseek_v3", "llama4"}
LENGTHS = ((9, 3, 12), (5, 15))  # of the documents in the rows of a batch; what is left is padding


def tolerance(name: str) -> float:
    return 1e-5 if name in PARTS_IN_FLOAT32 else 1e-12


def rows() -> torch.Tensor:
    return torch.randint(2, V, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*FAMILIES, *UNPACKED])
def test_our_head_gives_the_models_own_logits(name):
    model, ids_BT = made(name), rows()
    head = head_of(model, n_vocabulary=V)
    ours = head.logits(trunk(model, TokenView.of(ids_BT, ids_BT)))
    with torch.no_grad():
        assert (ours - model(input_ids=ids_BT, use_cache=False).logits).abs().max() < tolerance(name) / 10
    verify_head(model, n_vocabulary=V)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_document_in_a_packed_row_has_the_hidden_states_that_it_has_alone(name):
    model, ids_BT = made(name), rows()
    positions = [torch.cat([torch.arange(n) for n in (*of, 24 - sum(of))]) for of in LENGTHS]
    packed_BTD = trunk(model, TokenView.of(ids_BT, ids_BT, torch.stack(positions)))
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for n in lengths:
            alone = ids_BT[row : row + 1, begin : begin + n]
            difference = trunk(model, TokenView.of(alone, alone))[0] - packed_BTD[row, begin : begin + n]
            assert difference.abs().max() < tolerance(name)
            begin += n
    assert packing.difference(model, n_vocabulary=V) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "qwen3_moe"])
def test_roundings_are_not_taken_for_documents_that_see_each_other(name, dtype):
    assert packing.difference(made(name, dtype=dtype), n_vocabulary=V) == 0.0


@pytest.mark.parametrize("name", UNPACKED)
def test_a_model_that_mixes_packed_documents_is_found_out_and_said(name, capsys):
    models = [made("llama", dtype=torch.bfloat16), made(name, dtype=torch.bfloat16)]
    assert packing.all_pack(models[:1], n_vocabulary=V)
    assert capsys.readouterr().err == ""
    assert not packing.all_pack(models, n_vocabulary=V)
    said = capsys.readouterr().err
    assert said.startswith(f"note[PACKING]: {type(models[1]).__name__} does not keep documents that share a row apart")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", UNPACKED)
@torch.no_grad()
def test_padding_behind_a_document_changes_nothing_for_a_model_that_is_not_packed(name):
    model, ids_BT = made(name), rows()
    padded_BTD = trunk(model, TokenView.of(ids_BT, ids_BT))
    for row, n in ((0, 9), (1, 15)):
        alone = ids_BT[row : row + 1, :n]
        difference = trunk(model, TokenView.of(alone, alone))[0] - padded_BTD[row, :n]
        assert difference.abs().max() < tolerance(name)


@pytest.mark.parametrize("name", [*FAMILIES, "bloom"])
@torch.no_grad()
def test_a_student_of_some_layers_is_the_teacher_without_the_others_and_reads_back_equal(name, tmp_path, capsys):
    teacher, ids_BT = made(name), rows()
    student = from_layers(teacher, [0, 2, 3])
    ours = student(input_ids=ids_BT, use_cache=False).logits
    with skipping(list(decoder_layers(teacher)[1]), {1}):
        skipped = teacher(input_ids=ids_BT, use_cache=False).logits
    assert torch.equal(ours, skipped)
    assert not torch.equal(ours, teacher(input_ids=ids_BT, use_cache=False).logits)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    if student.get_experts_implementation()[""] is not None:
        again.set_experts_implementation("eager")
    assert torch.equal(again(input_ids=ids_BT, use_cache=False).logits, ours)
    assert "LAYERS" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("qwen2", "layer_types", ["full_attention", "sliding_attention", "sliding_attention"]),
        ("gemma3", "layer_types", ["sliding_attention", "sliding_attention", "full_attention"]),
        ("smollm3", "no_rope_layers", [1, 1, 0]),
        ("qwen3_moe", "mlp_only_layers", [1]),  # layers 1 and 2 were plain; 2 is the second now
        ("qwen2_moe", "mlp_only_layers", [0, 1]),  # a step of 2: layers 0 and 2 were plain
        ("deepseek_v3", "first_k_dense_replace", 1),  # layers 0 and 1 were plain
        ("llama4", "moe_layers", [2]),  # layers 1 and 3 are mixtures
    ],
)
def test_what_a_config_says_of_each_layer_follows_the_kept_ones(name, field, expected):
    config = from_layers(made(name), [0, 2, 3]).config.get_text_config()
    assert getattr(config, field) == expected
    assert config.num_hidden_layers == 3


def test_lists_that_are_not_of_layers_stay_whole():
    teacher = made("llama")
    teacher.config.eos_token_id = [1, 2, 3, 4]
    assert from_layers(teacher, [0, 3]).config.eos_token_id == [1, 2, 3, 4]


def test_layers_that_no_config_describes_are_refused_in_one_line():
    config = RecurrentGemmaConfig(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=4, lru_width=16,
                                  num_attention_heads=2, num_key_value_heads=1, attention_window_size=6)  # fmt: skip
    teacher = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match="no RecurrentGemmaConfig describes layers 0, 2, 3 of the teacher") as caught:
        from_layers(teacher, [0, 2, 3])
    assert "keep layers in the pattern" in caught.value.message
    assert "\n" not in caught.value.message


def test_layers_that_compute_by_their_place_are_warned_of(capsys):
    config = GPT2Config(vocab_size=V, n_embd=16, n_layer=4, n_head=2, initializer_range=0.3,
                        bos_token_id=0, eos_token_id=1, scale_attn_by_inverse_layer_idx=True)  # fmt: skip
    from_layers(AutoModelForCausalLM.from_config(config).eval(), [0, 2, 3])
    assert "warning[LAYERS]: GPT2LMHeadModel: layers 0, 2, 3 compute something else" in capsys.readouterr().err


def test_a_model_that_sees_the_tokens_to_predict_is_refused():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                        initializer_range=0.3)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match="sees the tokens that it is to predict"):
        verify_head(model, n_vocabulary=V)
