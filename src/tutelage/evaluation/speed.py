"""How many tokens a second a model reads: a measurement, never an estimate.

Shape legend: N trained positions, D hidden size.
"""

import statistics
import time

import torch
from torch import nn

from tutelage.models.head import head_of, trunk
from tutelage.types import Batch

_CHUNK = 256


@torch.no_grad()
def forward_rates(
    models: dict[str, nn.Module], batch: Batch, *, n_vocabulary: int, repeats: int = 3
) -> dict[str, float]:
    """Tokens a second of each model's forward with its head over one batch: the median of interleaved repeats.

    A first, uncounted pass warms up; models take turns, so that a busy machine slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            seconds[name].append(_forward_s(model, batch, n_vocabulary=n_vocabulary))
    n_tokens = batch.view.ids_BT.numel()
    return {name: n_tokens / statistics.median(times[1:]) for name, times in seconds.items()}


def _forward_s(model: nn.Module, batch: Batch, *, n_vocabulary: int) -> float:
    head = head_of(model, n_vocabulary=n_vocabulary)
    device = head.weight_VD.device
    view = batch.view.to(device)
    _wait(device)
    start = time.perf_counter()
    hidden_ND = trunk(model, view).flatten(0, 1)
    for i in range(0, len(hidden_ND), _CHUNK):
        head.logits(hidden_ND[i : i + _CHUNK])
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
