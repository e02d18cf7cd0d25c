"""What the runs of a comparison leave on disk: of each the newest checkpoint, and the models that it has trained.

A checkpoint holds 4 bytes of a learned parameter as a master and 8 of AdamW's moments; a saved model two a parameter.
Metrics, raw scores and tokenizers are not counted.
"""

from tutelage.planning.facts import Facts
from tutelage.planning.flops import Size
from tutelage.planning.work import Work

_OF_CHECKPOINT, _OF_MODEL = 12, 2


def checkpoint_bytes(facts: Facts, work: Work) -> float:
    """Of one checkpoint of a run: all models that train in it."""
    return float(sum(_OF_CHECKPOINT * _learned(size) for size in _trained(facts, work)))


def kept_bytes(facts: Facts, work: Work) -> float:
    """Of a finished run whose older checkpoints are gone."""
    return checkpoint_bytes(facts, work) + sum(_OF_MODEL * size.parameters for size in _trained(facts, work))


def _trained(facts: Facts, work: Work) -> list[Size]:
    teacher = [facts.teacher] if facts.teacher is not None and work.teacher_training else []
    return [*facts.students.values(), *teacher]


def _learned(size: Size) -> int:
    return size.parameters if size.learned is None else size.learned
