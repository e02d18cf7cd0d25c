"""Divergences between teacher and student: plain functions of two log-probability tensors on one support.

Each takes `teacher_logp_NS` and `student_logp_NS`, shape [N, S], in nats, float32 or wider; S is the vocabulary, or the
kept ids plus one tail bucket.  Each returns one value per position, shape [N]; D(p, p) = 0 and D >= 0.  Entries
of -inf (probability zero, e.g. a padded vocabulary) are allowed on both sides and contribute nothing there.

To add one: write the function here and add its name, with the names of its parameters, to `losses/names.py`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _expectation(weight_logp_NS: Tensor, value_NS: Tensor) -> Tensor:
    """Sum over S of exp(weight) * value, shape [N], where entries of weight zero count as zero (0 * inf = 0).

    The value is replaced before the product as well, or the gradient of a masked inf would be NaN.
    """
    present_NS = weight_logp_NS > -math.inf
    safe_value_NS = torch.where(present_NS, value_NS, torch.zeros_like(value_NS))
    return (weight_logp_NS.exp() * safe_value_NS).sum(-1)


def _difference(a_logp_NS: Tensor, b_logp_NS: Tensor) -> Tensor:
    """a - b, shape [N, S], with 0 where a is -inf; inf where only b is -inf."""
    absent_NS = a_logp_NS == -math.inf
    a_NS = torch.where(absent_NS, torch.zeros_like(a_logp_NS), a_logp_NS)
    b_NS = torch.where(absent_NS, torch.zeros_like(b_logp_NS), b_logp_NS)
    return a_NS - b_NS


def forward_kl(teacher_logp_NS: Tensor, student_logp_NS: Tensor) -> Tensor:
    """KL(teacher || student) per position, shape [N], in nats; inf where only the student gives zero.

    Mean-seeking: the student covers all that the teacher does.  Hinton et al., arXiv:1503.02531.
    """
    return _expectation(teacher_logp_NS, _difference(teacher_logp_NS, student_logp_NS))


def reverse_kl(teacher_logp_NS: Tensor, student_logp_NS: Tensor) -> Tensor:
    """KL(student || teacher) per position, shape [N], in nats; inf where only the teacher gives zero.

    Mode-seeking: the student may drop modes of the teacher.  MiniLLM, arXiv:2306.08543.
    """
    return _expectation(student_logp_NS, _difference(student_logp_NS, teacher_logp_NS))


def _mixture(a_logp_NS: Tensor, b_logp_NS: Tensor, *, a_share: float) -> Tensor:
    """log(a_share * exp(a) + (1 - a_share) * exp(b)), shape [N, S]; -inf where both are, without a NaN gradient."""
    absent_NS = (a_logp_NS == -math.inf) & (b_logp_NS == -math.inf)
    a_NS = torch.where(absent_NS, torch.zeros_like(a_logp_NS), a_logp_NS)
    b_NS = torch.where(absent_NS, torch.zeros_like(b_logp_NS), b_logp_NS)
    mixed_NS = torch.logaddexp(a_NS + math.log(a_share), b_NS + math.log1p(-a_share))
    return torch.where(absent_NS, torch.full_like(mixed_NS, -math.inf), mixed_NS)


def jensen_shannon(teacher_logp_NS: Tensor, student_logp_NS: Tensor, *, beta: float = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; shape [N], in nats, in [0, H(beta)].

    ValueError unless 0 < beta < 1 (the ends are `forward_kl` and `reverse_kl` by name).  JSD / beta tends to forward KL
    as beta -> 0, JSD / (1 - beta) to reverse KL as beta -> 1.  GKD, arXiv:2306.13649.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta {beta}, expected 0 < beta < 1; at 0 use forward_kl, at 1 reverse_kl")
    mixture_logp_NS = _mixture(teacher_logp_NS, student_logp_NS, a_share=beta)
    from_teacher_N = forward_kl(teacher_logp_NS, mixture_logp_NS)
    return beta * from_teacher_N + (1.0 - beta) * forward_kl(student_logp_NS, mixture_logp_NS)


def _require_share(alpha: float, *, end: str) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha}, expected 0 < alpha < 1; at 0 use {end}")


def skew_kl(teacher_logp_NS: Tensor, student_logp_NS: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) per position, shape [N], in nats, at most -log(alpha); 0 < alpha < 1.

    ValueError for another alpha.  DistiLLM's skew KL, arXiv:2402.03898.
    """
    _require_share(alpha, end="forward_kl")
    return forward_kl(teacher_logp_NS, _mixture(teacher_logp_NS, student_logp_NS, a_share=alpha))


def skew_reverse_kl(teacher_logp_NS: Tensor, student_logp_NS: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p) per position, shape [N], in nats, at most -log(alpha); 0 < alpha < 1.

    ValueError for another alpha.  DistiLLM's skew reverse KL, arXiv:2402.03898.
    """
    _require_share(alpha, end="reverse_kl")
    return forward_kl(student_logp_NS, _mixture(student_logp_NS, teacher_logp_NS, a_share=alpha))


def total_variation(teacher_logp_NS: Tensor, student_logp_NS: Tensor) -> Tensor:
    """Half the L1 distance, shape [N], in [0, 1] (no unit)."""
    return 0.5 * (teacher_logp_NS.exp() - student_logp_NS.exp()).abs().sum(-1)


def temperature_power(name: str) -> int:
    """k of the factor T**k that keeps the gradient's size as T changes.

    2 for divergences that are smooth where p = q, 1 for `total_variation`.
    """
    return 1 if name == "total_variation" else 2


def function(name: str) -> Callable[..., Tensor]:
    """The divergence of that name."""
    divergence: Callable[..., Tensor] = globals()[name]
    return divergence
