"""Peak memory of a technique, by formula: what lies there during a training step, and while its teacher is at work.

Of a model that trains, a parameter takes 4 bytes as a start weight, 4 as a master, 8 of AdamW's moments, 4 of a
gradient, 4 of a moving average where there is one, and where the compute path is narrower than float32 the bytes of a
working weight and of its gradient; so, in any dtype, where it is rounded to integers.  Of a frozen teacher: its weights
on the compute path.  The peak is the end of a backward pass: the room of all activations, which gradients fill as it is
freed, and the head's gradient beside it.

Not covered: memory that the allocator keeps in pieces too small to be used, the loading of a model before the first
step, measuring after the last one (which needs less than a step), and on a GPU what its driver takes (about 0.5 GB).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tutelage.losses.chunked import GROUP_POSITIONS
from tutelage.planning.facts import Facts
from tutelage.planning.flops import Size
from tutelage.planning.work import Work

PROGRAM_BYTES = 0.6e9  # Python, PyTorch, transformers, a tokenizer and the compiled loops; measured on Linux, x86-64
_WIDE = 4  # bytes of a number in float32
_PLAIN_COPIES = 6  # of a chunk's logits that autograd on a divergence without a closed form holds at once
_WRITING_ROWS = 16  # answers that a model on this machine writes at once, by default


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One micro-batch of a training step, and how its models run; `activations` are bytes by student, or `teacher`."""

    positions: float  # tokens of a micro-batch
    n_micro: int  # micro-batches of a step
    chunk: int
    number_bytes: int  # of a working weight
    closed_form: bool  # whether the loss is computed without autograd
    activations: Mapping[str, float]
    averaged: bool = False  # a moving average of the weights
    on_host: bool = True  # computes where the start weights lie
    whole: bool = True  # False: activations are not known, and a peak is a lower bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak, by what they are; `first` is the peak of what the teacher does before any training."""

    parts: Mapping[str, float]
    first: float = 0.0
    whole: bool = True  # False: a lower bound

    @property
    def peak(self) -> float:
        """The larger of the two."""
        return max(sum(self.parts.values()), self.first)


@dataclass(slots=True)
class _Sum:
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, n_bytes: float) -> None:
        if n_bytes:
            self.parts[name] = self.parts.get(name, 0.0) + n_bytes


def memory_of(work: Work, facts: Facts, step: Step) -> Memory:
    """The peak of a technique.  A frozen teacher that is here stays beside the students, to measure with, but for one
    whose answers are read from a cache."""
    found, program = _Sum(), PROGRAM_BYTES if step.on_host else 0.0
    found.add("program", program)
    learning = {**facts.students, **({"teacher": facts.teacher} if work.teacher_training and facts.teacher else {})}
    for name, size in learning.items():
        _add_model(found, size, step)
        found.add("activations", step.activations.get(name, 0.0))
    asked = work.teacher_forward > 0 and not work.stored
    if facts.teacher is not None and not work.teacher_training and not work.stored:
        found.add("teacher", facts.teacher.parameters * step.number_bytes)
    _add_loss(found, learning, facts, step, asked=asked or work.teacher_training > 0)
    _at_the_peak(found, learning, step)
    first = 0.0
    if facts.teacher is not None and (work.stored or work.answer):
        first = program + _first(facts.teacher, facts, step, writes=work.answer > 0)
    return Memory(parts=found.parts, first=first, whole=step.whole)


def bare_step(number_bytes: int) -> Step:
    """Where no config tells the activations: weights, gradients and moments alone, on an accelerator."""
    return Step(
        positions=0.0, n_micro=1, chunk=1, number_bytes=number_bytes, closed_form=True, activations={}, on_host=False,
        whole=False,
    )  # fmt: skip


def _add_model(found: _Sum, size: Size, step: Step) -> None:
    n, narrow = size.parameters, step.number_bytes < _WIDE
    learned = n if size.learned is None else size.learned
    wide = max(_WIDE, step.number_bytes)
    found.add("weights", n * ((wide if step.on_host else 0) + step.number_bytes) + learned * (wide if narrow else 0))
    if not narrow:  # what is rounded is computed with beside what learns, with a gradient of its own for a moment
        found.add("weights", size.rounded * wide)
        found.add("gradients", size.rounded * wide if step.n_micro > 1 else 0)
    found.add("average", learned * wide if step.averaged else 0)
    found.add("moments", 2 * learned * wide)
    found.add("gradients", learned * (wide + (step.number_bytes if narrow and step.n_micro > 1 else 0)))


def _add_loss(found: _Sum, learning: Mapping[str, Size], facts: Facts, step: Step, *, asked: bool) -> None:
    """Products of one group of positions, which all heads alike share, and the teacher's of one chunk."""
    group = min(step.positions, max(1, GROUP_POSITIONS // step.chunk) * step.chunk)
    chunk = min(step.positions, step.chunk)
    vocabularies = {size.vocabulary for size in learning.values()}
    found.add("loss", sum(group * v * step.number_bytes for v in vocabularies))
    if asked and facts.teacher is not None:
        rows = group if "teacher" in learning else chunk
        found.add("loss", rows * facts.teacher.vocabulary * step.number_bytes)
    if not step.closed_form:
        found.add("loss", _PLAIN_COPIES * chunk * max(vocabularies, default=0) * _WIDE)


def _at_the_peak(found: _Sum, learning: Mapping[str, Size], step: Step) -> None:
    """Of activations and gradients what is held together, at the end of a backward pass.

    Gradients take the room that the activations leave, which an allocator keeps; those of the micro-batches before are
    there beside them.  The gradient of a weight that is head and embedding is three tensors for a moment.
    """
    wide = max(_WIDE, step.number_bytes)
    whole = [size for size in learning.values() if size.learned is None]  # the head of an adapted model stays
    heads = sum(size.head for size in whole) * wide
    sums = 2 * sum(size.head for size in whole if _is_tied(size)) * wide
    gradients, activations = found.parts.get("gradients", 0.0), found.parts.get("activations", 0.0)
    if step.n_micro > 1:
        found.parts["gradients"] = gradients + heads + sums
    else:
        found.parts["gradients"] = heads + sums + max(0.0, gradients - heads - activations)


def _is_tied(size: Size) -> bool:
    """Whether the head's weight is the embedding: counted once among the parameters."""
    return size.parameters - size.multiplying < size.head / 2


def _first(teacher: Size, facts: Facts, step: Step, *, writes: bool) -> float:
    """The teacher's weights, and logits and hidden states of what it reads at once; when it writes, its keys too."""
    weights = teacher.parameters * step.number_bytes
    logits = 2.0 * min(step.chunk, step.positions) * teacher.vocabulary * _WIDE
    if writes:
        window = facts.text.window
        keys = 2.0 * _WRITING_ROWS * window * teacher.layers * teacher.attention_width * step.number_bytes
        return weights + keys + _WRITING_ROWS * teacher.vocabulary * _WIDE * 2
    return weights + logits
