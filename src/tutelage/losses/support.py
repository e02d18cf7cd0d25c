"""Two distributions on one support S: the whole vocabulary, or K kept ids and one bucket for the rest.

By the data-processing inequality a divergence on the merged support is at most the full one, and grows with K.

Shape legend: N positions, V vocabulary, K kept ids.
"""

import math

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 where it is narrower: losses and their sums are never narrower than that."""
    return torch.promote_types(dtype, torch.float32)


def log_softmax(logits_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, V] in nats at a temperature, in float32 or wider."""
    wide_NV = logits_NV.to(wide(logits_NV.dtype))
    return torch.log_softmax(wide_NV / temperature if temperature != 1.0 else wide_NV, dim=-1)


def merge_tail(logp_NV: Tensor, kept_ids_NK: Tensor) -> Tensor:
    """Log-probabilities of the kept ids and of all others together, shape [N, K + 1].

    The tail is a logsumexp over what is left, never log(1 - sum p), which is the log of a rounding error.
    """
    kept_logp_NK = logp_NV.gather(-1, kept_ids_NK)
    rest_NV = logp_NV.scatter(-1, kept_ids_NK, -math.inf)
    nothing_left_N = (rest_NV == -math.inf).all(-1, keepdim=True)
    safe_NV = torch.where(nothing_left_N, torch.zeros_like(rest_NV), rest_NV)  # logsumexp(-inf, …) has a NaN gradient
    tail_N1 = torch.where(nothing_left_N, -math.inf, safe_NV.logsumexp(-1, keepdim=True))
    return torch.cat([kept_logp_NK, tail_N1], dim=-1)
