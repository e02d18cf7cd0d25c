"""Hidden states to gradients, without trunks: the loss against the bare products of its heads.

    python -m benchmarks.loss_alone

4,096 positions, vocabulary 49,152, teacher width 576, student width 320, bfloat16 products.  `floor` makes the four
products a chunk (teacher, student, into the hidden states, into the weight, the last summed in float32) with reused
buffers and nothing else; `floor_fresh` the same with a new tensor for each product; `floor_grouped` makes the last two
once for four chunks, the cheapest way found.  `naive` holds all logits; `liger` is its compiled chunked loss, where
installed.  Gradient errors are relative to float64 over the same bfloat16 inputs.

Shape legend: N positions, V vocabulary, D student's width, E teacher's width.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import measure
from tutelage.losses.chunked import CHUNK_POSITIONS, GROUP_POSITIONS, chunked_loss
from tutelage.losses.gradients import Workspace
from tutelage.losses.terms import Scale, Term
from tutelage.types import DenseTargets, Head

N_POSITIONS, N_VOCABULARY, TEACHER_WIDTH, STUDENT_WIDTH = 4096, 49_152, 576, 320
N_CHECKED = 512  # positions of the gradient check: float64 is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The inputs of a loss; logits have a spread of about 2, as a trained model's."""

    hidden_ND: Tensor
    weight_VD: Tensor
    teacher_hidden_NE: Tensor
    teacher_weight_VE: Tensor
    next_ids_N: Tensor

    @classmethod
    def random(cls, n_positions: int, dtype: torch.dtype) -> "Problem":
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        return cls(
            hidden_ND=normal(n_positions, STUDENT_WIDTH).to(dtype).requires_grad_(),
            weight_VD=(normal(N_VOCABULARY, STUDENT_WIDTH) * 2 / STUDENT_WIDTH**0.5).to(dtype).requires_grad_(),
            teacher_hidden_NE=normal(n_positions, TEACHER_WIDTH).to(dtype),
            teacher_weight_VE=(normal(N_VOCABULARY, TEACHER_WIDTH) * 2 / TEACHER_WIDTH**0.5).to(dtype),
            next_ids_N=torch.randint(0, N_VOCABULARY, (n_positions,), generator=draw),
        )

    def in_dtype(self, dtype: torch.dtype) -> "Problem":
        values = {name: getattr(self, name).detach() for name in self.__dataclass_fields__}
        changed = {name: t.to(dtype) if t.is_floating_point() else t for name, t in values.items()}
        for name in ("hidden_ND", "weight_VD"):
            changed[name].requires_grad_()
        return Problem(**changed)

    def gradients(self, loss: Callable[["Problem"], Tensor]) -> tuple[Tensor, Tensor]:
        gradient_ND, gradient_VD = torch.autograd.grad(loss(self), (self.hidden_ND, self.weight_VD))
        return gradient_ND, gradient_VD


WORKSPACE = Workspace()  # one for all steps, as `Family` keeps it


def ours(problem: Problem) -> Tensor:
    n_vocabulary = problem.weight_VD.shape[0]
    teacher_head = Head(weight_VD=problem.teacher_weight_VE, bias_V=None, n_vocabulary=n_vocabulary)
    total, _ = chunked_loss(
        problem.hidden_ND,
        student_head=Head(weight_VD=problem.weight_VD, bias_V=None, n_vocabulary=n_vocabulary),
        targets=DenseTargets(hidden_ND=problem.teacher_hidden_NE, head=teacher_head),
        next_ids_N=problem.next_ids_N,
        terms=(Term(kind="divergence", divergence="forward_kl"),),
        scales={"forward_kl": Scale(factor=1 / problem.hidden_ND.shape[0])},
        workspace=WORKSPACE,
    )
    return total


def naive(problem: Problem) -> Tensor:
    """All logits at once, softmax in at least float32."""
    wide = torch.promote_types(problem.hidden_ND.dtype, torch.float32)
    student_logp_NV = functional.log_softmax((problem.hidden_ND @ problem.weight_VD.T).to(wide), -1)
    with torch.no_grad():
        teacher_NV = problem.teacher_hidden_NE @ problem.teacher_weight_VE.T
        teacher_logp_NV = functional.log_softmax(teacher_NV.to(wide), -1)
    return functional.kl_div(student_logp_NV, teacher_logp_NV, log_target=True, reduction="batchmean")


class Floor:
    """The four head products and the weight gradient's sum in float32: what no exact loss can avoid."""

    def __init__(
        self,
        *,
        reuse: bool = True,
        chunks_per_group: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self._dtype, self._device = dtype, device
        self._buffers: dict[str, Tensor] = {}
        self._reuse = reuse
        self._group_positions = chunks_per_group * CHUNK_POSITIONS

    @torch.no_grad()
    def __call__(self, problem: Problem) -> tuple[Tensor, Tensor]:
        n_positions = problem.hidden_ND.shape[0]
        gradient_ND = torch.empty_like(problem.hidden_ND)
        gradient_VD = torch.empty_like(problem.weight_VD, dtype=torch.float32)
        for start in range(0, n_positions, self._group_positions):
            group = slice(start, min(start + self._group_positions, n_positions))
            group_NV = self._forward_products(problem, group)
            gradient_ND[group] = group_NV @ problem.weight_VD
            part_VD = self._tensor("weight", *problem.weight_VD.shape)
            torch.mm(group_NV.T, problem.hidden_ND[group], out=part_VD)
            gradient_VD = gradient_VD.add_(part_VD) if start else gradient_VD.copy_(part_VD)
        return gradient_ND, gradient_VD

    def _forward_products(self, problem: Problem, group: slice) -> Tensor:
        """The student's products of a group; the teacher's are made a chunk at a time and forgotten."""
        n_columns = problem.weight_VD.shape[0]
        group_NV = self._tensor("student", group.stop - group.start, n_columns)
        for start in range(group.start, group.stop, CHUNK_POSITIONS):
            chunk = slice(start, min(start + CHUNK_POSITIONS, group.stop))
            teacher_NV = self._tensor("teacher", chunk.stop - chunk.start, n_columns)
            torch.mm(problem.teacher_hidden_NE[chunk], problem.teacher_weight_VE.T, out=teacher_NV)
            own_NV = group_NV[chunk.start - group.start : chunk.stop - group.start]
            torch.mm(problem.hidden_ND[chunk], problem.weight_VD.T, out=own_NV)
        return group_NV

    def _tensor(self, name: str, rows: int, columns: int) -> Tensor:
        kept = self._buffers.get(name)
        if kept is None or not self._reuse or kept.shape != (rows, columns):
            kept = self._buffers[name] = torch.empty(rows, columns, dtype=self._dtype, device=self._device)
        return kept


def liger() -> Callable[[Problem], Tensor] | None:
    """Liger's chunked loss: beta 0 is forward KL.  Pure PyTorch, compiled by Inductor (needs a C++ compiler)."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=True)

    def run(problem: Problem) -> Tensor:
        student, teacher = (
            (problem.hidden_ND, problem.weight_VD),
            (problem.teacher_hidden_NE, problem.teacher_weight_VE),
        )
        value: Tensor = loss(*student, *teacher, problem.next_ids_N)
        return value

    return run


def losses() -> dict[str, Callable[[Problem], Tensor]]:
    found: dict[str, Callable[[Problem], Tensor]] = {"ours": ours, "naive": naive}
    rival = liger()
    return {**found, "liger": rival} if rival is not None else found


def gradient_errors(dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Relative error of both gradients in the 2-norm, against float64 over the same inputs."""
    problem = Problem.random(N_CHECKED, dtype)
    expected = problem.in_dtype(torch.float64).gradients(naive)
    errors = {}
    for name, loss in losses().items():
        found = problem.gradients(loss)
        pairs = zip(("hidden", "weight"), found, expected, strict=True)
        errors[name] = {part: ((f.double() - e).norm() / e.norm()).item() for part, f, e in pairs}
    return errors


def contenders(problem: Problem) -> dict[str, Callable[[], object]]:
    floors = {
        "floor": Floor(),
        "floor_fresh": Floor(reuse=False),
        "floor_grouped": Floor(chunks_per_group=GROUP_POSITIONS // CHUNK_POSITIONS),
    }
    calls: dict[str, Callable[[], object]] = {name: partial(f, problem) for name, f in floors.items()}
    for name, loss in losses().items():
        calls[name] = partial(problem.gradients, loss)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--positions", type=int, default=N_POSITIONS)
    parser.add_argument("--memory", metavar="NAME", help="print one contender's peak bytes, nothing else")
    arguments = parser.parse_args()
    problem = Problem.random(arguments.positions, torch.bfloat16)
    if arguments.memory:
        call = contenders(problem)[arguments.memory]

        def twice() -> None:
            call()
            call()

        print(measure.memory_above(lambda: None, twice))
        return
    config = {
        "n_positions": arguments.positions,
        "n_vocabulary": N_VOCABULARY,
        "teacher_width": TEACHER_WIDTH,
        "student_width": STUDENT_WIDTH,
        "dtype": "bfloat16",
        "chunk_positions": CHUNK_POSITIONS,
        "loss": "forward_kl",
    }
    environment = measure.environment(config)
    calls = contenders(problem)
    timings = measure.interleaved(calls, rounds=arguments.rounds)
    extra = ["--positions", str(arguments.positions)]
    result = {
        "environment": environment,
        "timings": measure.summary(timings, base="floor", n_tokens=arguments.positions),
        "gradient_errors": {str(d).split(".")[-1]: gradient_errors(d) for d in (torch.float32, torch.bfloat16)},
        "peak_bytes_above_inputs": {
            name: measure.memory_in_new_process("benchmarks.loss_alone", name, extra) for name in calls
        },
    }
    print(measure.write("loss_alone", result))


if __name__ == "__main__":
    main()
