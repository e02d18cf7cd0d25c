"""`teacher: {ensemble: [...]}`: several frozen models in memory, whose distributions are averaged."""

from collections.abc import Sequence

from tutelage.teachers.live import LiveTeacher
from tutelage.types import Batch, MixtureTargets


class EnsembleTeacher:
    """Frozen models with one tokenizer, asked together; their probabilities are averaged by weight."""

    def __init__(self, members: Sequence[LiveTeacher], *, weights: Sequence[float]) -> None:
        """`weights` are relative: they are made to sum to 1."""
        assert len(members) == len(weights) > 0, "a weight for each member"
        self.members = tuple(members)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    @property
    def n_parameters(self) -> int:
        """Of all members together, tied ones once."""
        return sum(p.numel() for member in self.members for p in member.model.parameters())

    @property
    def parameter_bytes(self) -> int:
        """Their bytes as they run."""
        return sum(p.numel() * p.element_size() for member in self.members for p in member.model.parameters())

    @property
    def fingerprint(self) -> str:
        """Who takes part, and with which weight."""
        return " + ".join(
            f"{weight:.6g} {member.fingerprint}" for member, weight in zip(self.members, self.weights, strict=True)
        )

    def targets(self, batch: Batch) -> MixtureTargets:
        """The average at the batch's trained positions; no graph."""
        return MixtureTargets(parts=tuple(member.targets(batch) for member in self.members), weights=self.weights)

    def stop_if_changed(self, *, step: int) -> None:
        """Raise IntegrityError[TEACHER_CHANGED] when a weight of a member differs from when it was handed over."""
        for member in self.members:
            member.stop_if_changed(step=step)
