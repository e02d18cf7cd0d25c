"""Seconds a token, by what is done with it: of a described machine from its figures, of this one as measured.

Shape of the sum: every technique's hours are its tokens (`work.py`) times these.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.planning.facts import Facts
from tutelage.planning.machines import FORWARD_SHARE, TRAINING_SHARE, WRITING_SHARE, Machine
from tutelage.planning.work import Work

_MEASURE_S, _MEASURE_SIZE = 0.3, 1024
# Of a bare product's rate, what training and what writing a batch of texts reach on a CPU, measured on two cores: some
# processors make products in bfloat16 several times faster, and nothing else of a step.
_SHARES = {"bfloat16": (0.23, 0.03), "float32": (0.6, 0.08)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Operations a second of bare products here, and the shares of them that training and writing are to reach."""

    per_s: float
    share: float
    writing_share: float

    @property
    def training_per_s(self) -> float:
        """Operations a second of a training."""
        return self.per_s * self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds a token; `where` says in words where the numbers come from."""

    where: str
    student_training: Mapping[str, float]
    teacher_forward: float = 0.0
    teacher_training: float = 0.0
    prompt: float = 0.0
    answer: float = 0.0

    def seconds(self, work: Work) -> float:
        """Of all tokens of a technique, one thing done after the other."""
        return (
            work.student_training * sum(self.student_training.values())
            + (work.teacher_forward + work.sampled) * self.teacher_forward
            + work.teacher_training * self.teacher_training
            + work.prompt * self.prompt
            + work.answer * self.answer
        )


def described(machine: Machine, facts: Facts) -> Pace:
    """From the makers' figures and the shares of them that `machines.py` assumes; endpoints take no time of ours."""
    window, peak = facts.text.window, machine.device.peak_flops * machine.count * machine.scale
    teacher = facts.teacher
    forward = teacher.forward_flops(context=window) if teacher is not None else 0.0
    training = teacher.training_flops(context=window) if teacher is not None else 0.0
    many = f"{machine.count} x " if machine.count > 1 else ""
    return Pace(
        where=f"{many}{machine.device.name}, {TRAINING_SHARE * machine.scale:.0%} of its peak in training",
        student_training={
            name: size.training_flops(context=window) / (peak * TRAINING_SHARE) for name, size in facts.students.items()
        },
        teacher_forward=forward / (peak * FORWARD_SHARE),
        teacher_training=training / (peak * TRAINING_SHARE),
        prompt=forward / (peak * FORWARD_SHARE),
        answer=forward / (peak * WRITING_SHARE),
    )


def products_here(*, precision: str = "auto", device: str = "auto", threads: int | None = None) -> Products:
    """Bare products of 1,024 by 1,024 on the path that training would take, by a short look."""
    import torch

    from tutelage.training.precision import choose_compute_path

    compute = choose_compute_path(precision, device=device, threads=threads)
    a = torch.ones(_MEASURE_SIZE, _MEASURE_SIZE, dtype=compute.weight_dtype, device=compute.device)
    float(torch.mm(a, a)[0, 0])
    started, n_products = time.perf_counter(), 0
    while time.perf_counter() - started < _MEASURE_S:
        float(torch.mm(a, a)[0, 0])  # waits for an accelerator
        n_products += 1
    per_s = n_products * 2 * _MEASURE_SIZE**3 / (time.perf_counter() - started)
    share, writing_share = _SHARES.get(str(compute.weight_dtype).removeprefix("torch."), _SHARES["float32"])
    return Products(per_s=per_s, share=share, writing_share=writing_share)


def here(facts: Facts, products: Products) -> Pace:
    """Of this machine, from its `products_here`: right within a factor of about two, before anything is run."""
    window, training, writing = facts.text.window, products.training_per_s, products.per_s * products.writing_share
    teacher = facts.teacher
    forward = teacher.forward_flops(context=window) if teacher is not None else 0.0
    return Pace(
        where=f"this machine, {products.per_s / 1e9:,.0f} G products a second measured, {products.share:.0%} of them "
        "expected",
        student_training={
            name: size.training_flops(context=window) / training for name, size in facts.students.items()
        },
        teacher_forward=forward / training,
        teacher_training=teacher.training_flops(context=window) / training if teacher is not None else 0.0,
        prompt=forward / training,
        answer=forward / writing,
    )
