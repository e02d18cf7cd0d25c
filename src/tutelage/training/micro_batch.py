"""`training.micro_batch: auto`: how many windows of a forward pass fit, found before the first step.

On CUDA by trying: two whole steps of copies of the models on the longest windows, from the whole batch down by halves.
Elsewhere memory that runs out ends the process or makes it crawl, so there it is worked out: what one window keeps for
the backward pass is measured, and divides what is free.  The number is recorded: a run that goes on has the same one.
"""

import copy
import gc
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from tutelage import console
from tutelage.data.loader import Loader
from tutelage.errors import ResourceError, is_out_of_memory
from tutelage.losses.terms import Term
from tutelage.models import adapters, grid
from tutelage.recipe import Recipe
from tutelage.roles import TEACHER
from tutelage.training import features
from tutelage.training.member import Member
from tutelage.training.plan import n_steps_of, student_member, teacher_member
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Teacher, Trainer
from tutelage.types import Batch, CausalLM

_USED = 0.8  # of what is free; the rest is left to others and to fragments
# What a window takes at its peak, against what it keeps: 2.2 was measured (7 layers of SmolLM2, 512 tokens, float32).
_PEAK = 2.5
_WIDE = 4  # bytes of a number in float32
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a step is made of; `longest(n)` gives the n longest windows as one batch."""

    members: Sequence[Member]  # they are copied
    teacher: Teacher | None
    longest: Callable[[int], Batch]
    compute: ComputePath
    n_vocabulary: int
    chunk_positions: int
    gradient_checkpointing: bool

    def trainer(self) -> Trainer:
        """Copies that train from the first step on: nothing of the run changes."""
        members = [replace(m, model=copy.deepcopy(m.model), first_step=0) for m in self.members]
        return Trainer(
            members, teacher=self.teacher, microbatches=lambda _: [], compute=self.compute,
            n_vocabulary=self.n_vocabulary, seed=0, chunk_positions=self.chunk_positions,
            gradient_checkpointing=self.gradient_checkpointing,
        )  # fmt: skip


def of_recipe(
    recipe: Recipe,
    loader: Loader,
    *,
    starts: Mapping[str, CausalLM],
    teacher: Teacher | None,
    compute: ComputePath,
    n_vocabulary: int,
    terms: Mapping[str, tuple[Term, ...]],
) -> int:
    """As many windows of a step of the recipe as fit at once; `starts` are the models that train, by name.

    `terms` are those of each student.
    """
    training = recipe.training
    n_steps = n_steps_of(training, loader)
    members = [
        teacher_member(recipe, model, n_steps=n_steps)
        if name == TEACHER
        else student_member(recipe, name, model, n_steps=n_steps, terms=terms[name])
        for name, model in starts.items()
    ]
    probe = Probe(
        members=members, teacher=teacher, longest=partial(loader.longest, n_steps=n_steps), compute=compute,
        n_vocabulary=n_vocabulary, chunk_positions=training.chunk,
        gradient_checkpointing=training.gradient_checkpointing,
    )  # fmt: skip
    return find(probe, n_windows=loader.rows_per_step)


def find(probe: Probe, *, n_windows: int) -> int:
    """The most windows, up to the `n_windows` of a step, that fit at once; ResourceError[MEMORY] if none does."""
    if probe.compute.device.startswith("cuda"):
        found = largest(n_windows, lambda n: try_steps(probe, n))
        how = "tried"
    else:
        kept, fixed, free = kept_bytes(probe), fixed_bytes(probe), free_bytes()
        found = most_windows(n_windows, kept=kept, fixed=fixed, free=free)
        how = f"{kept / 1e6:,.0f} MB each, {free / 1e9:,.1f} GB free, {fixed / 1e9:,.1f} GB for the weights"
    console.tell(f"training.micro_batch: auto is {found} of {n_windows} windows ({how})")
    return found


def largest(n_windows: int, attempt: Callable[[int], None]) -> int:
    """The first of n, n/2, n/4, … that `attempt` does without running out of memory."""
    n = n_windows
    while True:
        if _does(attempt, n):
            return n
        if n == 1:
            raise ResourceError(
                "MEMORY",
                "not even one window fits into memory; set training.gradient_checkpointing=true, training.chunk=128, a "
                "shorter data.max_length, or teacher.quantize=int8",
            )
        n = (n + 1) // 2


def _does(attempt: Callable[[int], None], n: int) -> bool:
    try:
        attempt(n)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False  # the traceback, which holds what was allocated, ends with this function
    return True


def try_steps(probe: Probe, n: int) -> None:
    """Two steps of two micro-batches: in the second one everything is there, moments and gradients too."""
    gc.collect()  # what the attempt before has left
    torch.cuda.empty_cache()
    trainer, batch = probe.trainer(), probe.longest(n)
    for _ in range(min(2, trainer.n_steps)):
        trainer.train_step([batch, batch])


def kept_bytes(probe: Probe) -> int:
    """What the longest window keeps between its forward and its backward pass, of all models, without their weights."""
    trainer, batch = probe.trainer(), probe.longest(1)
    own = {p.untyped_storage().data_ptr() for peer in trainer.peers.values() for p in peer.masters.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _itself):
        trainer.train_step([batch])
    return sum(kept.values())


def _itself(tensor: Any) -> Any:
    return tensor


def fixed_bytes(probe: Probe) -> int:
    """Masters, gradients and moments of all models, the averaged weights, and what they compute with if it is less."""
    working = probe.compute.weight_dtype.itemsize
    total = 0
    for member in probe.members:
        wide = 3 + (1 if member.optimizer.ema is not None else 0)
        each = wide * max(_WIDE, working) + (working if working < _WIDE else 0)
        learned = sum(p.numel() for p in adapters.learned_parameters(member.model).values())
        held = max(_WIDE, working) + (working if working < _WIDE else 0)
        total += each * learned + held * sum(p.numel() for p in member.model.parameters())
        if member.quantize is not None and working >= _WIDE:  # rounded weights and their gradients, beside the masters
            on_grid = grid.rounding_of(member.model, member.quantize).inputs_first
            total += 2 * working * sum(member.model.get_parameter(name).numel() for name in on_grid)
        total += 4 * max(_WIDE, working) * features.n_learned(member.terms)
    return total


def most_windows(n_windows: int, *, kept: int, fixed: int, free: int) -> int:
    """How many windows go into what the weights leave free, at least one."""
    room = _USED * free - fixed
    return max(1, min(n_windows, int(room // max(1.0, _PEAK * kept))))


def free_bytes() -> int:
    """Memory that this process may still take: of the machine, of its container, of its own limit."""
    process = psutil.Process()
    limits = [int(psutil.virtual_memory().available)]
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        limits.append(own - int(process.memory_info().vms))
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        limits.append(int(text) - int(used.read_text()))
    return max(0, min(limits))
