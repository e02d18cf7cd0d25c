"""Folders and GGUF files of tiny real models, with tiny real tokenizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import llama

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")


def tokenizer(
    *, words: tuple[str, ...] = ("ab", "cd"), placeholders: int = 0, template: str | None = CHATML, merged: bool = True
) -> Any:
    """Byte-level BPE with one merge a word (or none); `placeholders` adds what a GGUF tokenizer invents at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL, *alphabet, *words])}
    for _ in range(placeholders):
        vocab[f"[PAD{len(vocab)}]"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(word[0], word[1]) for word in words if merged]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    made.chat_template = template
    return made


def folder(path: Path, *, own: Any = None, rows: int | None = None, seed: int = 0, tied: bool = True) -> Path:
    """A Llama folder of 262 or so rows in float32, safetensors, with its tokenizer."""
    own = own if own is not None else tokenizer()
    model = llama(seed=seed, vocabulary=rows or len(own), dtype=torch.float32, tied=tied)
    model.save_pretrained(path)
    own.save_pretrained(path)
    return path


def gguf(path: Path, *, architecture: str = "llama", tied: bool = True, kind: str = "F32", seed: int = 0) -> Path:
    """A GGUF file as llama.cpp lays it out: hidden 64, two layers, four heads, two for keys and values."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

    words = tokenizer(template=None)
    tokens = [words.convert_ids_to_tokens(number) for number in range(len(words))]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture == "llama":
        writer.add_rope_dimension_count(16)
        writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHATML)
    draw = np.random.default_rng(seed)
    for name, shape in _shapes(architecture, len(tokens), tied=tied).items():
        values = draw.standard_normal(shape).astype(np.float32)
        if kind != "F32" and len(shape) == 2:
            quantized = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(architecture: str, n_tokens: int, *, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_tokens, 64), "output_norm.weight": (64,)}
    if not tied:
        shapes["output.weight"] = (n_tokens, 64)
    for layer in range(2):
        one = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
        one |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96), "attn_norm": (64,), "ffn_norm": (64,)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in one.items()}
        if architecture == "qwen2":
            shapes |= {f"blk.{layer}.attn_{part}.bias": (size,) for part, size in (("q", 64), ("k", 32), ("v", 32))}
    return shapes


def edit_json(path: Path, **fields: Any) -> None:
    """Changes fields of a JSON file in place."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
