"""What a model in memory is known by."""

import hashlib

import torch
from torch import nn

from tutelage.models.placement import numbers
from tutelage.models.quantized import parts


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers; of rounded ones, of their integers and scales.

    Those that lie on the disk are read one after the other.
    """
    digest = hashlib.sha256()
    entries = sorted(model.state_dict().items())
    for name, tensor in (part for entry, held in entries for part in parts(entry, numbers(model, entry, held))):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().to("cpu").contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
