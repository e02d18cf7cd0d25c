"""Seconds a token, by what is done with it: of a described machine from its figures, of this one as measured.

Shape of the sum: every technique's hours are its tokens (`work.py`) times these.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.planning.facts import Facts
from tutelage.planning.machines import FORWARD_SHARE, TRAINING_SHARE, WRITING_SHARE, Machine
from tutelage.planning.work import Work


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
            + work.teacher_forward * self.teacher_forward
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
