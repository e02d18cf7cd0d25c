"""A GGUF file with other weights: keys, tokenizer and template of one that is there, the tensors of a trained student.

For Llama models whose shapes are those of the file; matrices become float16, all else float32.  llama.cpp turns halves
of each head's query and key rows into pairs, so their rows are put in its order.
"""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

_OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type")
_F16 = 1  # of general.file_type


def write_like(source: Path, model: PreTrainedModel, target: Path) -> Path:
    """`model` as GGUF at `target`."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name not in _OWN:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(_F16)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    there = {tensor.name for tensor in reader.tensors}
    for name, weight in model.state_dict().items():
        own = names.get_name(name, try_suffixes=(".weight",))
        if own not in there:
            continue  # the head, where it is the embedding
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        n_heads = next((n for part, n in heads.items() if part in name), None)
        writer.add_tensor(own, _array(weight, n_heads=n_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _array(weight: Tensor, *, n_heads: int | None) -> npt.NDArray[np.float16 | np.float32]:
    plain = weight.detach().float()
    if n_heads is not None:
        plain = plain.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(plain.shape)
    numbers: npt.NDArray[np.float16 | np.float32] = plain.half().numpy() if plain.dim() == 2 else plain.numpy()
    return numbers
