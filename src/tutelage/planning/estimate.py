"""The plan: every technique's operations, hours, disk and money, beside what a teacher cache takes in each codec."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tutelage.planning import storage
from tutelage.planning.facts import Facts
from tutelage.planning.machines import Machine
from tutelage.planning.memory import Memory, Step, memory_of
from tutelage.planning.pace import Pace
from tutelage.planning.storage import Form, Stored
from tutelage.planning.work import Flops, Technique, Work, by_name, dollars_of, flops_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One technique; a number is None where it cannot be told, `impossible` is "" where it can be done."""

    name: str
    title: str
    impossible: str = ""
    work: Work | None = None
    flops: Flops | None = None
    seconds: float | None = None
    disk_bytes: float | None = 0.0  # of what the teacher said, checkpoints aside
    endpoint_usd: float | None = 0.0
    machine_usd: float | None = None
    memory: Memory | None = None

    @property
    def usd(self) -> float | None:
        """Of the endpoint and of the machine; None where a price is unknown."""
        if self.endpoint_usd is None or self.machine_usd is None:
            return None
        return self.endpoint_usd + self.machine_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known before anything is spent."""

    facts: Facts
    estimates: tuple[Estimate, ...]
    stored: tuple[Stored, ...]
    whole_bytes: float | None  # of all distributions in float16; None without a vocabulary
    pace: Pace | None
    machine: Machine | None
    memory_bytes: float | None = None  # that the machine has

    @property
    def possible(self) -> dict[str, Estimate]:
        """The techniques that can be done, by name."""
        return {e.name: e for e in self.estimates if not e.impossible}


def plan_of(
    facts: Facts,
    *,
    form: Form,
    machine: Machine | None = None,
    pace: Pace | None = None,
    step: Step | None = None,
    memory_bytes: float | None = None,
    forms: Sequence[Form] = storage.USUAL,
) -> Plan:
    """All techniques; `form` is how a teacher cache would be written, `pace` what a token takes (None: unknown).

    With a `step` each one's memory; one that needs more than `memory_bytes` is not possible.
    """
    size = facts.teacher or next(iter(facts.students.values()), None)
    stored: Sequence[Stored] = ()
    if size is not None:
        stored = storage.table(
            forms,
            positions=facts.text.learned,
            n_vocabulary=size.vocabulary,
            hidden_size=size.hidden or None,
            row_positions=facts.text.row_positions,
        )
    return Plan(
        facts=facts,
        estimates=tuple(
            _fitted(estimate, facts, step=step, memory_bytes=memory_bytes)
            for estimate in _estimates(facts, form=form, machine=machine, pace=pace)
        ),
        stored=tuple(stored),
        whole_bytes=storage.whole_bytes(size.vocabulary) * facts.text.learned if size is not None else None,
        pace=pace,
        machine=machine,
        memory_bytes=memory_bytes,
    )


def _fitted(estimate: Estimate, facts: Facts, *, step: Step | None, memory_bytes: float | None) -> Estimate:
    """With its memory, and why it is not possible where that is not there."""
    if step is None or estimate.work is None:
        return estimate
    memory = memory_of(estimate.work, facts, step)
    why = ""
    if memory_bytes is not None and memory.peak > memory_bytes:
        why = (
            f"needs {memory.peak / 1e9:.3g} GB of memory at its peak, and the machine has {memory_bytes / 1e9:.3g} GB; "
            "give a smaller training.micro_batch, training.gradient_checkpointing, or smaller models"
        )
    return replace(estimate, memory=memory, impossible=why)


def _estimates(facts: Facts, *, form: Form, machine: Machine | None, pace: Pace | None) -> list[Estimate]:
    found: Mapping[str, tuple[Technique, Work | None]] = by_name(facts)
    return [
        Estimate(name=name, title=technique.TITLE, impossible=technique.impossible(facts))
        if work is None
        else _estimate(name, technique.TITLE, work, facts=facts, form=form, machine=machine, pace=pace)
        for name, (technique, work) in found.items()
    ]


def _estimate(
    name: str, title: str, work: Work, *, facts: Facts, form: Form, machine: Machine | None, pace: Pace | None
) -> Estimate:
    seconds = pace.seconds(work) if pace is not None else None
    price = machine.price_usd if machine is not None else None
    return Estimate(
        name=name,
        title=title,
        work=work,
        flops=flops_of(work, facts),
        seconds=seconds,
        disk_bytes=_disk(work, facts, form=form),
        endpoint_usd=dollars_of(work, facts),
        machine_usd=None
        if seconds is None or price is None or machine is None
        else seconds / 3600 * price * machine.count,
    )


def _disk(work: Work, facts: Facts, *, form: Form) -> float | None:
    """Bytes of the cache that a technique writes, with held-out rows (hidden states), head and probe."""
    size = facts.teacher or next(iter(facts.students.values()), None)
    if not work.stored or size is None:
        return 0.0

    def each(one: Form) -> float | None:
        return storage.bytes_per_token(
            one,
            n_vocabulary=size.vocabulary,
            hidden_size=size.hidden,
            row_positions=facts.text.row_positions,
        )

    rows = each(form)
    if rows is None or facts.teacher is None:
        return None if rows is None else rows * work.stored / form.draws
    held_out = each(storage.HELD_OUT) if facts.text.held_out else 0.0
    held_out_positions = facts.text.held_out * facts.text.trained_share
    assert held_out is not None, "the bytes of hidden states follow from their number"
    heads = 2 if form.codec == "hidden" and facts.text.held_out else 1  # in the tables of every cache of that codec
    probe = min(facts.text.unique, storage.PROBE_POSITIONS) * (
        size.hidden * facts.number_bytes + storage.PROBE_IDS_BYTES
    )
    beside = heads * size.head * facts.number_bytes + probe
    return rows * work.stored / form.draws + held_out * held_out_positions + beside
