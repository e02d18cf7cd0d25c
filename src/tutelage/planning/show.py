"""A plan as text for people, at most 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence

from tutelage.planning.advice import Advice
from tutelage.planning.estimate import Estimate, Plan

_WIDTH, _NAMES = 100, 10
_MEMORY = (
    "memory: weights, gradients, AdamW's moments, activations of one micro-batch, a chunk of logits, a frozen teacher, "
    "and on a CPU the program; not what an allocator loses in pieces (--json has the parts)"
)
_STEPS = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def lines(plan: Plan, advice: Advice) -> Iterator[str]:
    """The whole plan."""
    yield from _named("text", [_text(plan)])
    yield from _named("models", _models(plan))
    if plan.pace is not None:
        yield from _named("machine", [plan.pace.where])
    yield ""
    yield from _techniques(plan)
    if any(e.memory for e in plan.estimates):
        yield from _named("", [_MEMORY])
    yield ""
    yield from _stored(plan)
    yield ""
    yield from _named("advice", [f"{advice.technique}: {'; '.join(advice.reasons)}"])
    yield from _named("doubt", advice.doubts)


def amount(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 6.06 EB."""
    for step, prefix in _STEPS:
        if number >= step:
            return f"{number / step:.3g} {prefix}{unit}".rstrip()
    return f"{number:.3g} {unit}".rstrip()


def parameters(number: float) -> str:
    """As the field counts them: 17 B."""
    for step, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= step:
            return f"{number / step:.3g} {name}"
    return f"{number:.3g}"


def dollars(usd: float) -> str:
    """With cents where they count."""
    return f"${usd:,.2f}" if usd < 1000 else f"${usd:,.0f}"


def duration(seconds: float) -> str:
    """In the largest unit that gives at least one."""
    for step, name in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= step:
            return f"{seconds / step:,.3g} {name}"
    return f"{seconds:.2g} s"


def _named(name: str, texts: Sequence[str]) -> Iterator[str]:
    folded = [line for text in texts for line in textwrap.wrap(text, _WIDTH - _NAMES) or [""]]
    for n, line in enumerate(folded):
        yield f"{name if n == 0 else '':<{_NAMES}}{line}".rstrip()


def _text(plan: Plan) -> str:
    text = plan.facts.text
    again = f" ({text.epochs:.3g} times {amount(text.unique)})" if text.epochs > 1 else ""
    return f"{amount(text.trained)} tokens to train on{again}, in rows of {text.window:,.0f}"


def _models(plan: Plan) -> list[str]:
    facts, found = plan.facts, []
    if facts.teacher is not None:
        found.append(
            f"teacher {parameters(facts.teacher.parameters)} parameters, vocabulary {facts.teacher.vocabulary:,}"
        )
    elif facts.endpoint is not None:
        found.append("teacher behind an endpoint")
    for name, size in facts.students.items():
        part = f", {size.parameters / facts.teacher.parameters:.2g} of the teacher" if facts.teacher is not None else ""
        learned = f", {parameters(size.learned)} beside them learn" if size.learned is not None else ""
        packed = f", {amount(size.packed_bytes, 'B')} once packed" if size.packed_bytes is not None else ""
        found.append(f"{name} {parameters(size.parameters)} parameters{part}{learned}{packed}")
    return found


def _techniques(plan: Plan) -> Iterator[str]:
    with_time = plan.pace is not None
    yield f"{'technique':<10}{'operations: teacher':>20}{'students':>10}{'time' if with_time else '':>12}" + (
        f"{'memory' if any(e.memory for e in plan.estimates) else '':>10}{'disk':>10}{'cost':>12}"
    )
    for estimate in plan.estimates:
        if not estimate.impossible:
            yield _row(estimate, with_time=with_time)
    for estimate in plan.estimates:
        if estimate.impossible:
            yield from _named(estimate.name, [f"not possible: {estimate.impossible}"])


def _row(estimate: Estimate, *, with_time: bool) -> str:
    assert estimate.flops is not None, "what is possible has operations"
    time = duration(estimate.seconds) if with_time and estimate.seconds is not None else ""
    held = estimate.memory
    memory = "" if held is None else f"{'' if held.whole else '> '}{amount(held.peak, 'B')}"
    disk = "?" if estimate.disk_bytes is None else amount(estimate.disk_bytes, "B") if estimate.disk_bytes else "-"
    known = estimate.usd if estimate.usd is not None else estimate.endpoint_usd or None  # the machine's may be unknown
    cost = "?" if known is None else dollars(known)
    teacher = amount(estimate.flops.teacher) if estimate.flops.teacher else "-"
    students = amount(estimate.flops.students)
    return f"{estimate.name:<10}{teacher:>20}{students:>10}{time:>12}{memory:>10}{disk:>10}{cost:>12}"


def _stored(plan: Plan) -> Iterator[str]:
    text = plan.facts.text
    yield f"{f'stored for {amount(text.learned)} tokens':<38}{'bytes a token':>14}{'in all':>12}"
    if plan.whole_bytes is not None and text.unique:
        yield (
            f"{'whole distributions, float16':<38}{plan.whole_bytes / text.learned:>14,.0f}"
            f"{amount(plan.whole_bytes, 'B'):>12}"
        )
    for one in plan.stored:
        each = (
            "?" if one.bytes_per_token is None else f"{one.bytes_per_token:,.{0 if one.bytes_per_token > 100 else 1}f}"
        )
        total = "?" if one.total_bytes is None else amount(one.total_bytes, "B")
        yield f"{one.name:<38}{each:>14}{total:>12}"
