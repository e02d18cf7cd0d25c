"""What caches must have in common to be averaged, how they are weighted, and what the average is called.

Shape legend: R rows.
"""

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tutelage.cache.manifest import TeacherRecord
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import KEY_BYTES, as_scalars
from tutelage.errors import ConfigError, IntegrityError

MERGED_CODECS = ("threshold", "topk")
_SAME = ("tokenizer", "template", "n_vocabulary", "max_length")


def weights_of(weights: str | Sequence[float], *, n: int) -> tuple[float, ...]:
    """One for each cache, their sum 1; ConfigError for what is none."""
    try:
        given = (
            [float(w) for w in (weights.split(",") if isinstance(weights, str) else weights)] if weights else [1.0] * n
        )
    except ValueError:
        given = []
    if len(given) != n or not all(0 < w < math.inf for w in given):
        raise ConfigError(
            "CONFIG",
            f"--weights: '{weights}', expected {n} positive numbers, one for each cache, such as {','.join(['1'] * n)}",
        )
    return tuple(w / sum(given) for w in given)


def require_mergeable(caches: Sequence[TeacherCache]) -> None:
    """ConfigError or IntegrityError for the first thing in which caches cannot be averaged."""
    if len(caches) < 2:
        raise ConfigError("CONFIG", f"merge: {len(caches)} cache, expected two or more; name those of all teachers")
    first, *others = caches
    for cache in caches:
        if cache.manifest.members:
            raise ConfigError(
                "CONFIG",
                f"{cache.folder} is an average already: a second draw from a draw is noisier, and its parts have no "
                "held-out rows of their own; merge the caches that it was made of, all at once, with --weights",
            )
        codec = cache.manifest.asked.codec
        if codec not in MERGED_CODECS:
            raise ConfigError(
                "CONFIG",
                f"{cache.folder} has codec {codec}: hidden states live in a space of their own and "
                "are not averaged, whole distributions are too large; label again with cache.codec=threshold or topk "
                "and merge these: held-out rows, which are stored whole, are kept side by side and read as an ensemble",
            )
    for cache in others:
        _require_alike(first, cache)
    _require_same_rows(caches)


def _require_alike(first: TeacherCache, other: TeacherCache) -> None:
    one, two = first.manifest.asked, other.manifest.asked
    if one.temperature != two.temperature:
        raise ConfigError(
            "CACHE_TEMPERATURE",
            f"{first.folder} was made at temperature {one.temperature:g}, {other.folder} at {two.temperature:g}; label "
            "one of them again at the other's: what is merged into a tail cannot be heated again",
        )
    differing = [name for name in ("codec", *_SAME) if getattr(one, name) != getattr(two, name)]
    if differing:
        raise ConfigError(
            "CACHE_MISMATCH",
            f"{first.folder} and {other.folder} differ in {', '.join(differing)}; label both with recipes that are "
            "alike but for the teacher",
        )


def keys_of(cache: TeacherCache) -> npt.NDArray[np.uint8]:
    """All keys of a cache, sorted, shape [R, 32]."""
    keys_R = np.concatenate([np.zeros((0, KEY_BYTES), np.uint8), *(shard.keys for shard in cache.shards)])
    return keys_R[np.argsort(as_scalars(keys_R))]


def _require_same_rows(caches: Sequence[TeacherCache]) -> None:
    for one in caches:
        for other in caches:
            n_missing = int((~other.has(keys_of(one))).sum())
            if n_missing:
                raise IntegrityError(
                    "CACHE_MISS",
                    f"{n_missing} of {one.manifest.n_rows} rows of {one.folder} are not in {other.folder}; label both "
                    "from the same data: tutelage label RECIPE adds what is missing",
                )


def ensemble_of(teachers: Sequence[TeacherRecord], weights: Sequence[float]) -> TeacherRecord:
    """All teachers as one: sizes add up, the fingerprint is of all weights and of how they are weighted."""

    def digest(field: str) -> str:
        content = [[getattr(teacher, field), weight] for teacher, weight in zip(teachers, weights, strict=True)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shared(field: str) -> str:
        found = {getattr(teacher, field) for teacher in teachers}
        return str(found.pop()) if len(found) == 1 else "mixed"

    return TeacherRecord(
        name=" + ".join(teacher.name for teacher in teachers),
        saved_weights=digest("saved_weights"),
        weights=digest("weights"),
        dtype=shared("dtype"),
        attention=shared("attention"),
        parameters=sum(teacher.parameters for teacher in teachers),
        parameter_bytes=sum(teacher.parameter_bytes for teacher in teachers),
    )
