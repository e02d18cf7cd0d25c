"""The verb `plan`: what each technique computes, stores, takes and costs, before anything is spent.

From a recipe (its text is tokenised as training would, no weight is loaded), or from numbers alone.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tutelage import console
from tutelage.errors import ConfigError
from tutelage.planning import show
from tutelage.planning.advice import Advice, advise
from tutelage.planning.calibration import Clock, Models, calibrate, tokens_of_a_step
from tutelage.planning.estimate import Plan, plan_of
from tutelage.planning.facts import Facts, Text
from tutelage.planning.flops import Size
from tutelage.planning.machines import Device, Machine, device_of
from tutelage.planning.memory import bare_step
from tutelage.planning.of_recipe import Known, form_of, known_of
from tutelage.planning.on_machine import memory_here, step_of
from tutelage.planning.pace import Pace, described, here, products_here
from tutelage.planning.storage import Form
from tutelage.recipe import Recipe, load_recipe
from tutelage.training.precision import ComputePath, choose_compute_path

_ROW = 2_048.0  # tokens of a row where no text says it


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a plan needs where there is no recipe: tokens of text, the vocabulary, and sizes in parameters."""

    tokens: float
    vocabulary: int
    parameters: float
    student_parameters: float | None = None
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "vocabulary", "parameters", "student_parameters", "hidden_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError("CONFIG", f"--{name.replace('_', '-')} {value:g}; expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What `plan` gives back."""

    plan: Plan
    advice: Advice

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        plan = self.plan
        return {
            "text": asdict(plan.facts.text),
            "teacher": asdict(plan.facts.teacher) if plan.facts.teacher is not None else None,
            "students": {name: asdict(size) for name, size in plan.facts.students.items()},
            "machine": plan.pace.where if plan.pace is not None else None,
            "memory_bytes": plan.memory_bytes,
            "techniques": {
                e.name: {**asdict(e), "usd": e.usd, "peak_bytes": e.memory.peak if e.memory is not None else None}
                for e in plan.estimates
            },
            "stored": [asdict(one) for one in plan.stored],
            "whole_bytes": plan.whole_bytes,
            "advice": asdict(self.advice),
        }

    def __str__(self) -> str:
        return "\n".join(show.lines(self.plan, self.advice))


def plan(
    source: "Recipe | Mapping[str, Any] | str | Path | Numbers",
    *,
    machine: Machine | None = None,
    calibration: bool = True,
    clock: Clock = time.perf_counter,
) -> Planned:
    """Plan a recipe, or numbers alone; for a described machine, or for this one, on which short models are measured.

    The measurement takes at most about 30 seconds, and loads no weights; `calibration` False leaves it, and the hours,
    out; `clock` is what it measures by (`time.process_time` where others use the machine too).

    Raises what `load_recipe` and the reading of the recipe's text and configs raise.
    """
    if isinstance(source, Numbers):
        facts = _facts_of_numbers(source)
        made = plan_of(
            facts,
            form=Form(name="threshold", codec="threshold"),
            machine=machine,
            pace=described(machine, facts) if machine is not None else None,
            step=bare_step(facts.number_bytes) if facts.students else None,
            memory_bytes=machine.device.memory_bytes if machine is not None else None,
        )
    else:
        recipe = source if isinstance(source, Recipe) else load_recipe(source)
        made = _of_recipe(recipe, machine=machine, clock=clock if calibration else None)
    return Planned(plan=made, advice=advise(made))


def _of_recipe(recipe: Recipe, *, machine: Machine | None, clock: Clock | None) -> Plan:
    known, form = known_of(recipe), form_of(recipe)
    if machine is not None:
        dtype = {"float32": torch.float32, "float64": torch.float64}.get(recipe.training.precision, torch.bfloat16)
        step = step_of(recipe, known, dtype=dtype, on_host=False)
        return plan_of(
            known.facts, form=form, machine=machine, pace=described(machine, known.facts), step=step,
            memory_bytes=machine.device.memory_bytes,
        )  # fmt: skip
    training = recipe.training
    compute = choose_compute_path(training.precision, device=training.device, threads=training.threads)
    facts = replace(known.facts, number_bytes=compute.weight_dtype.itemsize)
    step = step_of(recipe, known, dtype=compute.weight_dtype, on_host=compute.device == "cpu")
    memory_bytes = memory_here(compute.device)
    pace = _measured(recipe, known, compute, memory_bytes=memory_bytes, clock=clock) if clock is not None else None
    return plan_of(facts, form=form, pace=pace, step=step, memory_bytes=memory_bytes)


def _measured(recipe: Recipe, known: Known, compute: ComputePath, *, memory_bytes: float | None, clock: Clock) -> Pace:
    """Of this machine: from steps of short models, or where these are too large for it from bare products."""
    models = Models(
        facts=known.facts,
        students=known.students,
        teacher=known.teacher,
        n_vocabulary=known.n_vocabulary,
        positions_per_token=known.positions_per_token,
    )
    products = products_here(
        precision=str(compute.weight_dtype).removeprefix("torch."), device=compute.device, threads=compute.threads
    )
    n_tokens = tokens_of_a_step(models, training_per_s=products.training_per_s, memory_bytes=memory_bytes)
    if not n_tokens:
        console.note("NOT_MEASURED", "even short models of this recipe take too long or too much to be measured here; "
                     "the hours follow from bare products, right within a factor of about two")  # fmt: skip
        return here(known.facts, products)
    return calibrate(recipe, models, compute=compute, n_tokens=n_tokens, clock=clock)


def described_machine(
    gpu: str | None,
    *,
    count: int = 1,
    price_usd: float | None = None,
    flops: float | None = None,
    memory: float | None = None,
    utilisation: float | None = None,
) -> Machine | None:
    """A machine from the flags of the command; None where none is described.

    Raises ConfigError for an unknown device, for figures that lack one another, and for flags without a device.
    """
    if gpu is None and flops is None:
        if memory is not None or price_usd is not None or utilisation is not None or count != 1:
            raise ConfigError("CONFIG", "a machine's price, memory, count or utilisation, and no machine; give --gpu")
        return None
    if gpu is not None and flops is not None:
        raise ConfigError("CONFIG", "--gpu and --flops both name a machine; give one of them")
    if flops is not None and memory is None:
        raise ConfigError("CONFIG", "--flops without --memory; give both, such as --flops 400e12 --memory 48e9")
    for name, value in (("flops", flops), ("memory", memory), ("count", count)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError("CONFIG", f"--{name} {value:g}; expected a number above 0")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise ConfigError("CONFIG", f"--utilisation {utilisation:g}, expected a share such as 0.4")
    device = (
        device_of(gpu)
        if gpu is not None
        else Device(name="a described device", peak_flops=float(flops or 0), memory_bytes=float(memory or 0))
    )
    return Machine(device=device, count=count, price_usd=price_usd, utilisation=utilisation)


def _facts_of_numbers(numbers: Numbers) -> Facts:
    def size(parameters: float) -> Size:
        hidden = numbers.hidden_size or 0
        return Size(
            parameters=round(parameters),
            multiplying=round(parameters),  # attention and embeddings are not told apart without a config
            head=hidden * numbers.vocabulary,
            layers=0,
            attention_width=0,
            hidden=hidden,
            vocabulary=numbers.vocabulary,
        )

    students = {} if numbers.student_parameters is None else {"student": size(numbers.student_parameters)}
    return Facts(
        text=Text(trained=numbers.tokens, unique=numbers.tokens, held_out=0.0, window=_ROW),
        students=students,
        teacher=size(numbers.parameters),
    )
