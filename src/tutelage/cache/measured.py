"""A cache's error, measured now on the positions that it keeps in full.

A merged cache keeps those of its parts: the same rows, each part's hidden states in a space of their own.

Shape legend: N positions of the probe, R rows, D hidden size.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tutelage.cache import manifest as manifests
from tutelage.cache.error import Accumulator, CacheError, measure, probe_of_average
from tutelage.cache.given import is_given
from tutelage.cache.head import full_head, head_of_part
from tutelage.cache.reader import TeacherCache, read_tensors
from tutelage.types import CachedTargets, DenseTargets


def measured(cache: TeacherCache) -> tuple[CacheError | None, str]:
    """The error on the probe, or why there is none."""
    if is_given(cache.manifest):
        return None, "not measured: an endpoint gave the numbers, and no position is known in full"
    if cache.manifest.members:
        return _of_average(cache)
    if manifests.PROBE not in cache.manifest.files:
        return None, "not measured: no positions were kept in full here (held-out rows)"
    head = full_head(cache)
    if head is None:
        return None, "not measured: no head is stored; label again with this version"
    probe = read_tensors(cache.folder, manifests.PROBE, cache.manifest)
    temperature = cache.manifest.asked.temperature
    return measure(_targets(cache, probe), hidden_ND=probe["hidden"], head=head, temperature=temperature), ""


def _of_average(cache: TeacherCache) -> tuple[CacheError | None, str]:
    members = cache.manifest.members
    names = [manifests.of_part(manifests.PROBE, n) for n in range(len(members))]
    heads = [head_of_part(cache, n) for n in range(len(members))]
    if not all(name in cache.manifest.files for name in names) or any(head is None for head in heads):
        return None, "not measured: not every part kept positions in full; label the parts with this version"
    probes = [read_tensors(cache.folder, name, cache.manifest) for name in names]
    if not _same_rows(probes):
        return None, "not measured: the parts kept different rows in full (one of them has grown); label them anew"
    parts = [
        DenseTargets(hidden_ND=probe["hidden"], head=head)
        for probe, head in zip(probes, heads, strict=True)
        if head is not None
    ]
    sums = Accumulator()
    average = probe_of_average(
        parts, weights=[member.weight for member in members], temperature=cache.manifest.asked.temperature
    )
    sums.add(_targets(cache, probes[0]), probe=average)
    return sums.result(), ""


def _same_rows(probes: Sequence[Mapping[str, Tensor]]) -> bool:
    return all(
        torch.equal(probe[name], probes[0][name]) for probe in probes for name in ("keys", "current_ids", "next_ids")
    )


def _targets(cache: TeacherCache, probe: Mapping[str, Tensor]) -> CachedTargets:
    """What the cache holds at the probe's positions, of the first draw."""
    keys = [key.numpy().tobytes() for key in probe["keys"]]
    return cache.targets(
        keys,
        current_ids_N=probe["current_ids"].numpy().astype(np.int64),
        next_ids_N=probe["next_ids"].numpy().astype(np.int64),
        draws=[0] * len(keys),
    )
