"""What a model in memory is known by."""

import hashlib

import torch
from torch import nn

from tutelage.models.quantized import parts


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers; of rounded ones, of their integers and scales."""
    digest = hashlib.sha256()
    for name, tensor in (part for item in sorted(model.state_dict().items()) for part in parts(*item)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().to("cpu").contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
