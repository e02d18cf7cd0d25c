"""The teacher's head, wherever a cache has it: beside its probe, beside its held-out rows, or in its own tables.

Shape legend: D hidden size.
"""

import numpy as np

from tutelage.cache import manifest as manifests
from tutelage.cache.codec import Positions
from tutelage.cache.reader import TeacherCache, read_tensors
from tutelage.types import DenseTargets, Head


def full_head(cache: TeacherCache) -> Head | None:
    """What turns the probe's hidden states into logits; None where no head is stored."""
    if manifests.HEAD in cache.manifest.files:
        return _beside_probe(cache, manifests.HEAD)
    if cache.codec.KIND == "hidden":
        return _in_tables(cache)
    return full_head(cache.held_out) if cache.held_out is not None else None


def head_of_part(cache: TeacherCache, n: int) -> Head | None:
    """Of a merged cache, the head of its part n: beside that part's probe or its held-out rows."""
    name, held_out = manifests.of_part(manifests.HEAD, n), cache.manifest.members[n].held_out
    if name in cache.manifest.files:
        return _beside_probe(cache, name)
    return full_head(TeacherCache(cache.folder / held_out)) if held_out else None


def _beside_probe(cache: TeacherCache, name: str) -> Head:
    tensors = read_tensors(cache.folder, name, cache.manifest)
    scale, soft_cap = tensors["form"].tolist()
    return Head(
        weight_VD=tensors["weight"],
        bias_V=tensors.get("bias"),
        n_vocabulary=cache.manifest.asked.n_vocabulary,
        scale=scale,
        soft_cap=soft_cap or None,
    )


def _in_tables(cache: TeacherCache) -> Head:
    """Targets of the hidden codec bring their head along, also those of no rows."""
    nothing = np.zeros(0, dtype=np.int64)
    targets = cache.codec.decode(
        [],
        positions=Positions(
            current_ids_N=nothing, next_ids_N=nothing, counts_R=nothing, seeds_R=np.zeros(0, dtype=np.uint64)
        ),
        n_vocabulary=cache.manifest.asked.n_vocabulary,
        temperature=cache.manifest.asked.temperature,
        settings=cache.manifest.settings,
        tables=cache.tables,
    )
    assert isinstance(targets, DenseTargets), "codec hidden gives hidden states and their head"
    return targets.head
