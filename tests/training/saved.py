"""A tiny checkpoint, and what it must hold when it is read back."""

from pathlib import Path

import torch
from torch import Tensor

from tutelage import io
from tutelage.training import checkpoint

RUN, FOREIGN = "run-a", "run-b"
REQUIRED = ("student", "optimizer", "sampler")


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 5, generator=generator)
    return {
        "student": {"weight": weight.bfloat16(), "head": weight[:, :2].t()},
        "optimizer": {"weight.step": torch.tensor(float(step), dtype=torch.float64), "weight.exp_avg": weight * 1e-30},
    }


def save(folder: Path, step: int, *, run_id: str = RUN) -> Path:
    state: dict[str, io.Json] = {"sampler": {"rows": step * 8}, "best_loss_nats": 0.1 + 0.2}
    return checkpoint.save(folder, step=step, run_id=run_id, tensors=tensors_of(step), state=state, required=REQUIRED)


def newest_step(folder: Path, *, run_id: str = RUN) -> int | None:
    """The step of the newest checkpoint, after comparing it with what was saved, bit by bit."""
    found = checkpoint.newest(folder, run_id=run_id, required=REQUIRED)
    if found is None:
        return None
    for group, tensors in tensors_of(found.step).items():
        for name, expected in tensors.items():
            actual = found.tensors[group][name]
            assert actual.dtype == expected.dtype and actual.shape == expected.shape
            assert torch.equal(bits(actual), bits(expected)), f"{group}.{name} of step {found.step}"
    assert found.state == {"sampler": {"rows": found.step * 8}, "best_loss_nats": 0.1 + 0.2}
    return found.step


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
