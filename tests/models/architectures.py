"""Tiny random models of the families that people distil, in float64: four layers, 48 tokens."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from tutelage.models.cast import cast

V = 48
_COMMON = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_GPT2 = {
    "vocab_size": V, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SLIDING = {"sliding_window": 6}


def _of(kind: Any, **fields: Any) -> Callable[[], Any]:
    return lambda: kind(**{**_COMMON, **fields})


def _gemma3_with_images() -> Any:
    text = _of(tf.Gemma3TextConfig, head_dim=8, query_pre_attn_scalar=8, **_SLIDING, layer_types=_mixed())()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    return tf.Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=1)


def _mixed() -> list[str]:
    return ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _of(tf.LlamaConfig),
    "qwen2": _of(tf.Qwen2Config, use_sliding_window=True, max_window_layers=2, **_SLIDING),
    "qwen3": _of(tf.Qwen3Config, head_dim=8, use_sliding_window=True, max_window_layers=2, **_SLIDING),
    "gemma2": _of(tf.Gemma2Config, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0,
                  attn_logit_softcapping=2.0, **_SLIDING),
    "gemma3": _of(tf.Gemma3TextConfig, head_dim=8, query_pre_attn_scalar=8, layer_types=_mixed(),
                  final_logit_softcapping=5.0, **_SLIDING),
    "gemma3 with images": _gemma3_with_images,
    "mistral": _of(tf.MistralConfig, head_dim=8, **_SLIDING),
    "phi": _of(tf.PhiConfig, num_key_value_heads=2),
    "phi3": _of(tf.Phi3Config, **_SLIDING),
    "olmo": _of(tf.OlmoConfig, clip_qkv=1.0),
    "olmo2": _of(tf.Olmo2Config),
    "olmo3": _of(tf.Olmo3Config, **_SLIDING),
    "smollm3": _of(tf.SmolLM3Config, no_rope_layers=[1, 0, 1, 0]),
    "cohere": _of(tf.CohereConfig, logit_scale=0.25),
    "granite": _of(tf.GraniteConfig, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "gpt2": lambda: tf.GPT2Config(**_GPT2),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}),
    "mixtral": _of(tf.MixtralConfig, num_local_experts=4, num_experts_per_tok=2, **_SLIDING),
    "qwen2_moe": _of(tf.Qwen2MoeConfig, shared_expert_intermediate_size=16, decoder_sparse_step=2, **_EXPERTS),
    "qwen3_moe": _of(tf.Qwen3MoeConfig, head_dim=8, decoder_sparse_step=1, mlp_only_layers=[1, 2], **_EXPERTS),
    "deepseek_v3": _of(tf.DeepseekV3Config, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
                       qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=4, n_group=2, topk_group=1,
                       num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=2, n_shared_experts=1),
    "llama4": _of(tf.Llama4TextConfig, head_dim=8, intermediate_size_mlp=32, num_local_experts=2,
                  num_experts_per_tok=1, attention_chunk_size=32, interleave_moe_layer_step=2,
                  no_rope_layers=[1, 0, 1, 0]),
}  # fmt: skip
# Those that mix the documents of a row: they get one document a row.
UNPACKED: dict[str, Callable[[], Any]] = {
    "bloom": lambda: tf.BloomConfig(vocab_size=V, hidden_size=16, n_layer=4, n_head=2, initializer_range=0.3),
    "opt": lambda: tf.OPTConfig(vocab_size=V, hidden_size=16, ffn_dim=32, num_hidden_layers=4, num_attention_heads=2,
                                max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3),
    "falcon": lambda: tf.FalconConfig(vocab_size=V, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                                      initializer_range=0.3),
    "mamba": lambda: tf.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=4, state_size=4),
    "lfm2": _of(tf.Lfm2Config, layer_types=["conv", "full_attention", "conv", "full_attention"]),
    "gpt_oss": _of(tf.GptOssConfig, num_local_experts=4, num_experts_per_tok=2, head_dim=8, **_SLIDING),
}  # fmt: skip


def made(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A model of a family, eval mode."""
    torch.manual_seed(seed)
    config = {**FAMILIES, **UNPACKED}[name]()
    return cast(tf.AutoModelForCausalLM.from_config(config), dtype).eval()
