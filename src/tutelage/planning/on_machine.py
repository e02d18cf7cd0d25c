"""A recipe on a machine: how its steps run there, and how much memory there is."""

import math
from pathlib import Path
from typing import Any  # configs of transformers are untyped

import torch

from tutelage.losses import closed_form
from tutelage.losses.terms import Term
from tutelage.planning import activations
from tutelage.planning.memory import Step
from tutelage.planning.of_recipe import Known
from tutelage.recipe import LossTerm, Recipe
from tutelage.roles import TEACHER
from tutelage.training.plan import rows_per_step, terms_of

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


def step_of(recipe: Recipe, known: Known, *, dtype: torch.dtype, on_host: bool) -> Step:
    """One micro-batch of the recipe in weights of a dtype; the activations are counted, nothing is computed."""
    training, length = recipe.training, recipe.data.max_length
    windows = rows_per_step(training, max_length=length)
    at_once = 1 if training.micro_batch == "auto" else training.micro_batch  # auto: it needs no more than a window
    rows = min(at_once or windows, windows)
    configs, sizes = dict(known.students), dict(known.facts.students)
    if known.teacher is not None and known.facts.teacher is not None and known.facts.members == 1:
        configs[TEACHER], sizes[TEACHER] = known.teacher, known.facts.teacher  # it may learn too

    def kept(name: str, config: Any) -> float | None:
        saved = activations.saved_by(config, rows=rows, length=length, dtype=dtype)
        if saved is None:
            return None
        return saved.of(
            sizes[name].layers,
            checkpointing=training.gradient_checkpointing,
            kept_a_layer=float(rows * length * sizes[name].hidden * dtype.itemsize),
        )

    counted = {name: kept(name, config) for name, config in configs.items()}
    capped = any(getattr(c.get_text_config(), "final_logit_softcapping", None) for c in configs.values())
    return Step(
        positions=float(rows * length),
        n_micro=math.ceil(windows / rows),
        chunk=training.chunk,
        number_bytes=dtype.itemsize,
        closed_form=not capped
        and all(closed_form.serves(_soft(learner.loss), heads=()) for learner in recipe.learners.values()),
        activations={name: n_bytes for name, n_bytes in counted.items() if n_bytes is not None},
        whole=None not in counted.values(),
        averaged=training.ema is not None,
        on_host=on_host,
    )


def _soft(loss: tuple[LossTerm, ...]) -> list[Term]:
    """The terms that are computed on the vocabulary."""
    return [term for term in terms_of(loss) if term.feature is None]


def memory_here(device: str) -> float | None:
    """Bytes of this machine's memory, or of its GPU where that is the device; None where nobody tells."""
    if device.startswith("cuda"):
        return float(torch.cuda.get_device_properties(device).total_memory)
    lines = _MEMINFO.read_text().splitlines() if _MEMINFO.is_file() else []
    total = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min([*total, *([float(limit)] if limit.isdecimal() else [])], default=None)
