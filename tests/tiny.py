"""Tiny real models: seeded Llama, Gemma-2 and GPT-2 types in float64 with a vocabulary of a few dozen."""

import torch
from transformers import Gemma2Config, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import Gemma2ForCausalLM

from tutelage.types import IGNORED, Batch, TokenView


def llama(
    *, seed: int = 0, layers: int = 2, vocabulary: int = 48, hidden: int = 16, tied: bool = True,
    dropout: float = 0.0, dtype: torch.dtype = torch.float64,
):  # fmt: skip
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, max_position_embeddings=128,
        attention_dropout=dropout, initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def gemma2(*, seed: int = 0, layers: int = 2, vocabulary: int = 48, dtype: torch.dtype = torch.float64):
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=8, final_logit_softcapping=5.0, max_position_embeddings=128,
        initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).to(dtype).eval()


def gpt2(*, seed: int = 0, layers: int = 2, vocabulary: int = 48, dropout: float = 0.0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=layers, n_head=2, n_positions=128, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(dtype).eval()


def batch(*, seed: int = 0, rows: int = 2, length: int = 12, vocabulary: int = 48, masked: float = 0.3) -> Batch:
    """A batch of random ids of which a share is not trained."""
    g = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(2, vocabulary, (rows, length), generator=g)
    labels_BT = torch.where(torch.rand(rows, length, generator=g) < masked, IGNORED, ids_BT)
    keys = tuple(f"row-{seed}-{i}" for i in range(rows))
    return Batch(views={"tiny": TokenView.of(ids_BT, labels_BT)}, row_keys=keys)
