"""The verb `plan`: what each technique computes, stores, takes and costs, before anything is spent.

From a recipe (its text is tokenised as training would, no weight is loaded), or from numbers alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError
from tutelage.planning import show
from tutelage.planning.advice import Advice, advise
from tutelage.planning.estimate import Plan, plan_of
from tutelage.planning.facts import Facts, Text
from tutelage.planning.flops import Size
from tutelage.planning.machines import Device, Machine, device_of
from tutelage.planning.of_recipe import facts_of, form_of
from tutelage.planning.pace import described
from tutelage.planning.storage import Form
from tutelage.recipe import Recipe, load_recipe

_ROW = 2_048.0  # tokens of a row where no text says it


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a plan needs where there is no recipe: tokens of text, the vocabulary, and sizes in parameters."""

    tokens: float
    vocabulary: int
    parameters: float
    student_parameters: float | None = None
    hidden_size: int | None = None


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
            "techniques": {e.name: {**asdict(e), "usd": e.usd} for e in plan.estimates},
            "stored": [asdict(one) for one in plan.stored],
            "whole_bytes": plan.whole_bytes,
            "advice": asdict(self.advice),
        }

    def __str__(self) -> str:
        return "\n".join(show.lines(self.plan, self.advice))


def plan(source: "Recipe | Mapping[str, Any] | str | Path | Numbers", *, machine: Machine | None = None) -> Planned:
    """Plan a recipe, or numbers alone; hours and money of a described machine, if one is given.

    Raises what `load_recipe` and the reading of the recipe's text and configs raise.
    """
    if isinstance(source, Numbers):
        facts, form = _facts_of_numbers(source), Form(name="threshold", codec="threshold")
    else:
        recipe = source if isinstance(source, Recipe) else load_recipe(source)
        facts, form = facts_of(recipe), form_of(recipe)
    pace = described(machine, facts) if machine is not None else None
    made = plan_of(facts, form=form, machine=machine, pace=pace)
    return Planned(plan=made, advice=advise(made))


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
