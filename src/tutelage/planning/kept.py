"""What the runs of a comparison leave on disk: of each the newest checkpoint, and the models that it has trained.

A checkpoint holds 4 bytes of a learned parameter as a master, 8 of AdamW's moments, and 4 of the moving average where
the recipe has one.  Models are saved as their masters are, in float32; `training.save_dtype` adds 2 bytes a parameter
of a student, and a weight on a grid of integers one for its code.  Metrics, raw scores, tokenizers, projections of
feature terms and adapters beside a merged model are not counted.
"""

from collections.abc import Sequence

from tutelage.planning.facts import Facts
from tutelage.planning.flops import Size
from tutelage.planning.work import Work
from tutelage.recipe import Training

_OF_CHECKPOINT, _OF_AVERAGE, _OF_MODEL, _OF_SMALLER, _OF_CODE = 12, 4, 4, 2, 1


def checkpoint_bytes(facts: Facts, work: Work, training: Training) -> float:
    """Of one checkpoint of a run: all models that train in it."""
    of_each = _OF_CHECKPOINT + (_OF_AVERAGE if training.ema is not None else 0)
    return float(sum(of_each * _learned(size) for size in _trained(facts, work)))


def kept_bytes(facts: Facts, work: Work, training: Training) -> float:
    """Of a finished run whose older checkpoints are gone."""
    models = sum(_OF_MODEL * size.parameters for size in _trained(facts, work))
    smaller = 0 if training.save_dtype is None else sum(_OF_SMALLER * s.parameters for s in facts.students.values())
    codes = sum(_OF_CODE * size.rounded for size in facts.students.values())
    return checkpoint_bytes(facts, work, training) + models + smaller + codes


def older_bytes(facts: Facts, work: Work, training: Training) -> float:
    """Of the checkpoints that lie beside the newest while a run trains: `keep`, as one is written, and the best."""
    beside = training.keep + (training.evaluate_every is not None)
    return beside * checkpoint_bytes(facts, work, training)


def room(runs: Sequence[tuple[float, float, float]]) -> float:
    """Bytes that must be free for runs that train one after the other: of each (kept, older, what is there now).

    What is there of a run that was stopped is not asked for twice; its older checkpoints go when it has ended.
    """
    used = start = sum(there for _, _, there in runs)
    peak = start
    for kept, older, there in runs:
        peak = max(peak, used - there + max(kept + older, there))
        used += kept - there
    return peak - start


def _trained(facts: Facts, work: Work) -> list[Size]:
    teacher = [facts.teacher] if facts.teacher is not None and work.teacher_training else []
    return [*facts.students.values(), *teacher]


def _learned(size: Size) -> int:
    return size.parameters if size.learned is None else size.learned
