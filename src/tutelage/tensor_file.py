"""safetensors, written piece by piece: header, then each tensor's bytes, little-endian, in the order of the header.

    8 bytes   length of the header, uint64
    header    JSON {NAME: {"dtype", "shape", "data_offsets": [begin, end]}}, padded with spaces to a multiple of 8
    data      tensors without gaps, wide types first, so that each begins at a multiple of its item size

The library's own writer copies all tensors into memory first and leaves no seam for faults; its reader reads this.
"""

import json
import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def size_in_file(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of data, without the header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of the file; one tensor at a time is copied off its device."""
    assert sys.byteorder == "little", "safetensors is little-endian"
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    yield memoryview(_header(ordered))
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries, begin = {}, 0
    for name, tensor in ordered:
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
