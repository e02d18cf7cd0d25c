"""The tables of the set coder, from a sample of the data: who is likely beside whom, and how much each hint says.

    Profile     what the teacher says at the sample's positions, for any m: all tokens with p >= LEAST, the rest summed
    learn       Profile + the sample's sets at one m -> tables (integer tensors, as they are stored)
    model_of    tables -> `Model`, by integer arithmetic alone: every machine decodes with the same numbers

Lists are made from one part of the rows, and their weights from another: on its own rows a list looks too good.

Shape legend: N positions, R rows, C positions of a chunk, V vocabulary, K tokens kept of a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any  # what numba compiled is Any to the checker

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.cache import _set_coder_cpu as c
from tutelage.cache._coder_cpu import START_SHIFT, STATIC
from tutelage.cache._members_cpu import MOST_MEMBERS
from tutelage.cache._profile_cpu import observe
from tutelage.cache._profile_cpu import profile as compiled_profile
from tutelage.cache.codec import Positions, Tables
from tutelage.cache.sampling import Drawn, products
from tutelage.cache.set_coder import Sets, encode_row, memory
from tutelage.types import Head

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
LEAST, MOST_KEPT = 2e-4, 512  # of a profile: tokens that are likely enough for a list
LIST_LENGTH, LIST_ENTRIES, LEAST_RATE = 24, 130_000, 2.0**-6.5
PASSES = 6  # over the sets, to fit the weights: one feature each, and the first two again
OCTAVE = 32  # steps of a log-weight
_TOP_LOG2 = 13.0  # of a weight with rate 1
_TOP_LOG, _TOP_CODE = 15 * OCTAVE, 120  # of an escape's weight, and of a token's among the escapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The sample's distributions: tokens with p >= LEAST (position, id, p), and the sum of the rest by token."""

    position_M: Ints
    ids_M: Ints
    p_M: Floats
    low_V: Floats
    positions: Positions

    def mean(self) -> Floats:
        """The mean distribution of the sample [V]."""
        kept_V = np.bincount(self.ids_M, weights=self.p_M, minlength=len(self.low_V))
        mean_V: Floats = (kept_V + self.low_V) / max(1, len(self.positions))
        return mean_V


@torch.no_grad()
def profile(hidden_ND: Tensor, *, head: Head, positions: Positions, temperature: float) -> Profile:
    """The profile of a sample."""
    low_V, parts = np.zeros(head.n_vocabulary), []
    for place, product_CV in products(hidden_ND, head=head):
        logits_CV = (head.finish(product_CV) / temperature).float().cpu().numpy()
        n_C, most = np.zeros(len(logits_CV), np.int64), min(MOST_KEPT, head.n_vocabulary)
        ids_CK, p_CK = np.zeros((len(n_C), most), np.int64), np.zeros((len(n_C), most))
        compiled_profile(logits_CV, np.float32(1.0), LEAST, most, ids_CK, p_CK, n_C, low_V)
        kept_CK = np.arange(most) < n_C[:, None]
        parts.append((np.repeat(np.arange(place.start, place.stop), n_C), ids_CK[kept_CK], p_CK[kept_CK]))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    position_M, ids_M, p_M = (np.concatenate(arrays) for arrays in zip(nothing, *parts, strict=True))
    return Profile(position_M=position_M, ids_M=ids_M, p_M=p_M, low_V=low_V, positions=positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """Tokens that were seen beside a key, likeliest first, with the level of their rate (1: the highest)."""

    keys: Ints
    start: Ints
    ids: Ints
    levels: Ints
    classes_V: Ints  # of all tokens: how many picks were made beside them, 0: not seen


def _rates(seen: Profile, in_N: npt.NDArray[np.bool_], m: int) -> tuple[Ints, Ints, Floats, Floats]:
    """Position, id and probability to be kept of the profile's tokens in a part, and the mean of the last by token."""
    inside = in_N[seen.position_M]
    position_M, ids_M = seen.position_M[inside], seen.ids_M[inside]
    kept_M = np.minimum(1.0, m * seen.p_M[inside])
    n = max(1, int(in_N.sum()))
    mean_V = np.bincount(ids_M, weights=kept_M, minlength=len(seen.low_V)) / n
    mean_V += np.minimum(1.0, m * seen.low_V / max(1, len(in_N)))
    return position_M, ids_M, kept_M, mean_V


def _lists(seen: Profile, key_N: Ints, in_N: npt.NDArray[np.bool_], *, m: int) -> _Lists:
    position_M, ids_M, kept_M, mean_V = _rates(seen, in_N, m)
    n_vocabulary = len(mean_V)
    times_V = np.bincount(key_N[in_N], minlength=n_vocabulary)
    pair_P, index_M = np.unique(key_N[position_M] * n_vocabulary + ids_M, return_inverse=True)
    key_P, id_P = pair_P // n_vocabulary, pair_P % n_vocabulary
    sum_P = np.bincount(index_M, weights=kept_M, minlength=len(pair_P))
    rate_P = (sum_P + mean_V[id_P]) / (times_V[key_P] + 1)
    order = np.lexsort((id_P, -rate_P, key_P))
    order = order[rate_P[order] > LEAST_RATE]
    start_V = np.searchsorted(key_P[order], np.arange(n_vocabulary + 1))
    rank = np.arange(len(order)) - start_V[key_P[order]]
    worth = times_V[key_P[order]] * rate_P[order]
    keep = rank < LIST_LENGTH
    if keep.sum() > LIST_ENTRIES:
        keep &= worth >= np.partition(worth[keep], -LIST_ENTRIES)[-LIST_ENTRIES]
    key_P, id_P, rate_P = key_P[order][keep], id_P[order][keep], rate_P[order][keep]
    keys, first = np.unique(key_P, return_index=True)
    picks_M = np.where(m * seen.p_M < 1.0, m * seen.p_M, 0.0)
    inside = in_N[seen.position_M]
    picks_V = np.bincount(key_N[seen.position_M[inside]], weights=picks_M[inside], minlength=n_vocabulary)
    return _Lists(
        keys=keys,
        start=np.append(first, len(key_P)),
        ids=id_P,
        levels=1 + np.clip(np.floor(-2 * np.log2(rate_P)), 0, c.LEVELS - 2).astype(np.int64),
        classes_V=_classes_of_means(picks_V, times_V),
    )


def _classes_of_means(sum_V: Any, times_V: Ints) -> Ints:
    """0 for tokens that were not seen, else 1 + the share of the sample with a lower mean, in steps."""
    overall = sum_V.sum() / max(1, times_V.sum())
    mean_V = (sum_V + 2 * overall) / (times_V + 2)
    order = np.argsort(mean_V, kind="stable")
    share_V = np.empty(len(mean_V))
    share_V[order] = np.cumsum(times_V[order]) / max(1, times_V.sum())
    steps_V = np.clip((share_V * (c.CLASSES - 1)).astype(np.int64), 0, c.CLASSES - 2)
    return np.where(times_V > 0, 1 + steps_V, 0)


def _common_classes(mean_V: Floats) -> Ints:
    """How common a token is among the kept ones: 0 the rarest."""
    log = np.log2(np.maximum(mean_V, 1e-12))
    return np.clip(np.floor((log + 15) * 0.6), 0, c.CLASSES - 1).astype(np.int64)


def learn(seen: Profile, drawn: Drawn, *, witness_N: Ints, m: int, grains: int, list_R: Any, weight_R: Any) -> Tables:
    """Tables from the rows `list_R` (lists) and `weight_R` (weights, static tables, escapes); boolean masks."""
    positions = seen.positions
    of_row_N = np.repeat(np.arange(len(positions.counts_R)), positions.counts_R)
    tables = _first_tables(seen, np.asarray(list_R)[of_row_N], m=m)
    rows = [
        (sets_between(drawn, witness_N, *span), span)
        for span, used in zip(spans(positions), weight_R, strict=True)
        if used
    ]
    _fit_weights(tables, rows, positions, m=m, grains=grains)
    _fit_escapes(tables, seen, rows, positions, np.asarray(list_R)[of_row_N], m=m, grains=grains)
    _fit_static(tables, rows, positions, m=m, grains=grains)
    return tables


def relisted(tables: Tables, seen: Profile, in_R: Any, *, m: int) -> Tables:
    """The same weights over lists from more rows."""
    positions = seen.positions
    in_N = np.repeat(np.asarray(in_R), positions.counts_R)
    lists = _first_tables(seen, in_N, m=m)
    return {**tables, **{k: v for k, v in lists.items() if k.startswith(("cur_", "next_", "classes"))}}


def spans(positions: Positions) -> list[tuple[int, int]]:
    """First and last + 1 of each row's positions."""
    ends_R = np.cumsum(positions.counts_R)
    return [(int(end - n), int(end)) for end, n in zip(ends_R, positions.counts_R, strict=True)]


def sets_between(drawn: Drawn, witness_N: Ints, first: int, last: int) -> Sets:
    """The sets of the positions from first to last - 1, as the coder takes them."""
    part = drawn.between(first, last)
    return Sets(
        ids_M=part.ids_M, units_M=part.units_M, offsets=part.offsets, n_heads_N=part.n_heads_N,
        witness_N=witness_N[first:last],
    )  # fmt: skip


def _first_tables(seen: Profile, in_N: npt.NDArray[np.bool_], *, m: int) -> dict[str, Tensor]:
    """Lists and classes; weights that say nothing yet."""
    cur = _lists(seen, seen.positions.current_ids_N, in_N, m=m)
    upcoming = _lists(seen, seen.positions.next_ids_N, in_N, m=m)
    mean_V = _rates(seen, in_N, m)[3]
    classes = np.stack([_common_classes(mean_V), cur.classes_V, upcoming.classes_V])
    flat = np.linspace(0, 1 << STATIC, c.SYMBOLS + 1).astype(np.int64)
    tables = {
        "classes": torch.from_numpy(classes.astype(np.uint8)),
        "weights": torch.zeros(3, c.N_FACTORS + 1, c.N_INDEX, dtype=torch.int16),
        "exp": _powers(),
        "escapes": torch.full((len(mean_V),), 1, dtype=torch.uint8),
        "static": torch.from_numpy(np.tile(flat, (c.STATIC_ROWS, 1)).astype(np.int32)),
    }
    for name, lists in (("cur", cur), ("next", upcoming)):
        tables[f"{name}_keys"] = torch.from_numpy(lists.keys.astype(np.int32))
        tables[f"{name}_start"] = torch.from_numpy(lists.start.astype(np.int32))
        tables[f"{name}_ids"] = torch.from_numpy(lists.ids.astype(np.int32))
        tables[f"{name}_levels"] = torch.from_numpy(lists.levels.astype(np.uint8))
    return tables


def _powers() -> Tensor:
    """2**(i / OCTAVE) of one octave, times 2**23: whole numbers that float32 holds exactly."""
    return torch.from_numpy(np.round(2.0 ** (np.arange(OCTAVE) / OCTAVE + 23)).astype(np.int32))


Rows = Sequence[tuple[Sets, tuple[int, int]]]


def _fit_weights(tables: dict[str, Tensor], rows: Rows, positions: Positions, *, m: int, grains: int) -> None:
    """Iterative scaling: each feature's weights times (found / foretold), one feature a pass."""
    model = model_of(tables, m=m, grains=grains)
    logs = np.zeros((3, c.N_FACTORS, c.N_INDEX))
    escape = np.full((3, c.N_INDEX), 1.0)
    for number in range(PASSES):
        found, foretold, _ = observed(model, rows, positions, logs=logs, escape=escape)
        change = np.log2((found + 0.5) / (foretold + 0.5))
        logs[:, number % c.N_FACTORS] += change[:, number % c.N_FACTORS]
        escape += change[:, c.N_FACTORS]
    level = np.array([_TOP_LOG2 - _highest(logs[kind]) for kind in range(3)])
    logs[:, 0] += level[:, None, None].squeeze(-1)
    weights = np.concatenate([logs, escape[:, None] + level[:, None, None]], 1)
    tables["weights"] = torch.from_numpy(np.clip(np.round(weights * OCTAVE), -4000, 4000).astype(np.int16))


def _highest(logs: Floats) -> float:
    """About the largest log-weight that a candidate has: the best of each feature alone, the others at their mean."""
    return float(sum(np.quantile(feature[feature != 0], 0.9) if (feature != 0).any() else 0.0 for feature in logs))


def observed(model: c.Model, rows: Rows, positions: Positions, *, logs: Any, escape: Any) -> tuple[Any, Any, float]:
    """Found and foretold sums by feature over some rows, and the bits of the members."""
    found, foretold = (np.zeros((3, c.N_FACTORS + 1, c.N_INDEX)) for _ in range(2))
    bits = 0.0
    for sets, (first, last) in rows:
        n = last - first
        row = c.Row(
            current=positions.current_ids_N[first:last], upcoming=positions.next_ids_N[first:last],
            same=np.empty(n, np.int64), heads=sets.n_heads_N, offsets=sets.offsets, ids=sets.ids_M,
            units=sets.units_M, witness=sets.witness_N,
        )  # fmt: skip
        bits += observe(model, memory(model), row, logs, escape, found, foretold)
    return found, foretold, bits


def _fit_escapes(
    tables: dict[str, Tensor], seen: Profile, rows: Rows, positions: Positions, in_N: Any, *, m: int, grains: int
) -> None:
    """How likely each token is to escape: its mean rate, times how often tokens as common as it escape."""
    model = model_of(tables, m=m, grains=grains)
    scratch = memory(model)
    scratch.escapes[:] = 0
    observed(model, rows, positions, logs=np.zeros((3, c.N_FACTORS, c.N_INDEX)), escape=np.zeros((3, c.N_INDEX)))
    mean_V = _rates(seen, in_N, m)[3]
    step_V = np.clip(np.floor(np.log2(np.maximum(mean_V, 1e-12)) + 20), 0, 23).astype(np.int64)
    n = sum(last - first for _, (first, last) in rows)
    escaped = np.bincount(step_V, weights=scratch.escapes.astype(np.float64), minlength=24)
    expected = np.bincount(step_V, weights=mean_V * n, minlength=24)
    rate_V = ((escaped + 1) / (expected + 1))[step_V] * mean_V + 1e-9
    log_V = np.log2(rate_V / rate_V.sum())
    codes_V = np.clip(np.round((log_V + 22.5) * 8), 1, _TOP_CODE)
    tables["escapes"] = torch.from_numpy(codes_V.astype(np.uint8))


def _fit_static(tables: dict[str, Tensor], rows: Rows, positions: Positions, *, m: int, grains: int) -> None:
    """Static tables from what an encoder counts; rows that were seen seldom lean on those beside them."""
    model = model_of(tables, m=m, grains=grains)
    scratch = memory(model)
    scratch.counts[:] = 0
    for sets, (first, last) in rows:
        encode_row(
            model, sets, current_ids_n=positions.current_ids_N[first:last], next_ids_n=positions.next_ids_N[first:last]
        )
    counts = scratch.counts.astype(np.float64)
    groups = (
        (c.ROW_NEXT, c.N_NEXT, c.AGES), (c.ROW_HEADS, c.N_HEADS, c.CLASSES * c.CLASSES),
        (c.ROW_PICKS, c.N_PICKS, c.CLASSES), (c.ROW_UNITS, c.N_UNITS, 8), (c.ROW_WITNESS, c.N_WITNESS, 1),
    )  # fmt: skip
    cumulative = np.zeros((c.STATIC_ROWS, c.SYMBOLS + 1), np.int64)
    for first, n, family in groups:
        for row in range(first, first + n):
            start = first + (row - first) // family * family
            near = _shares(counts[start : start + family].sum(0), _shares(counts[first : first + n].sum(0), None))
            cumulative[row, 1:] = np.cumsum(_frequencies(_shares(counts[row], near)))
    tables["static"] = torch.from_numpy(cumulative.astype(np.int32))


def _shares(counts: Floats, prior: Floats | None) -> Floats:
    prior = prior if prior is not None else np.full(len(counts), 1.0 / len(counts))
    shares: Floats = (counts + 6.0 * prior) / (counts.sum() + 6.0)
    return shares


def _frequencies(shares: Floats) -> Ints:
    """At least 1 each, 2**STATIC in all."""
    whole = 1 + np.floor(shares * ((1 << STATIC) - len(shares))).astype(np.int64)
    whole[int(whole.argmax())] += (1 << STATIC) - int(whole.sum())
    return whole


_last: tuple[Tables, int, int, c.Model] | None = None


def model_of(tables: Tables, *, m: int, grains: int) -> c.Model:
    """The compiled coder's view of stored tables; that of the last tables is kept."""
    global _last
    held = _last
    if held is not None and held[1:3] == (m, grains) and _are_same(held[0], tables):
        return held[3]
    model = _model_of(tables, m=m, grains=grains)
    _last = (dict(tables), m, grains, model)
    return model


def _are_same(tables: Tables, others: Tables) -> bool:
    return tables.keys() == others.keys() and all(tables[name] is others[name] for name in tables)


def _model_of(tables: Tables, *, m: int, grains: int) -> c.Model:
    assert m + 2 <= MOST_MEMBERS, "threshold.fit refuses a larger m"
    t = {name: table.numpy().astype(np.int64) for name, table in tables.items()}
    n_vocabulary = t["classes"].shape[1]
    of_V = {}
    for name in ("cur", "next"):
        of_V[name] = np.full(n_vocabulary, -1, np.int32)
        of_V[name][t[f"{name}_keys"]] = np.arange(len(t[f"{name}_keys"]))
    logs = t["weights"]
    escape = _exp(np.clip(logs[:, c.N_FACTORS, : c.CLASSES**2], 1, _TOP_LOG), t["exp"]).astype(np.int32)
    beside, history = _products(logs, t["exp"])
    return c.Model(
        m=m,
        grains=grains,
        cur_of_V=of_V["cur"],
        cur_start=t["cur_start"],
        cur_list=(t["cur_ids"] * 16 + t["cur_levels"]).astype(np.int32),
        next_of_V=of_V["next"],
        next_start=t["next_start"],
        next_list=(t["next_ids"] * 16 + t["next_levels"]).astype(np.int32),
        class_V=t["classes"][0].astype(np.uint8),
        sure_V=np.ascontiguousarray(t["classes"][1:].T.astype(np.uint8)),
        beside=beside,
        history=history,
        escape=np.ascontiguousarray(escape.T),
        **_escapes(t["escapes"], t["exp"]),
        left=(np.arange(m * grains + 1) * 31 // (m * grains)).astype(np.uint8),
        cumulative=t["static"].astype(np.uint16),
        start=_starts(t["static"]),
    )


def _exp(logs: Ints, octave: Ints) -> Floats:
    """2**(log / OCTAVE), exact in float32."""
    return np.ldexp(octave[logs % OCTAVE].astype(np.float64), logs // OCTAVE - 23)


def _products(logs: Ints, octave: Ints) -> tuple[Any, Any]:
    """The two numbers whose product is a candidate's weight, of the three kinds, by the indices that it carries."""
    code = np.arange(c.SAMES * 256)
    cur, upcoming, same = (np.minimum(x, c.LEVELS - 1) for x in (code & 15, (code >> 4) & 15, code >> 8))
    past = np.arange(c.CLASSES * 64)
    common, age, count = past >> 6, (past >> 3) & 7, np.minimum(past & 7, c.COUNTS - 1)
    beside = logs[:, 0][:, cur * c.LEVELS + upcoming] + logs[:, 2][:, same * c.LEVELS + cur]
    history = logs[:, 1][:, age * c.COUNTS + count] + logs[:, 3][:, common * c.COUNTS + count]
    most = 60 * OCTAVE  # a product is below 2**120
    first, second = (
        np.pad(_exp(np.clip(part, -most, most), octave).astype(np.float32).T, ((0, 0), (0, 1)))
        for part in (beside, history)
    )
    return first, second


def _escapes(code_V: Ints, octave: Ints) -> dict[str, Any]:
    """Tokens sorted by code: those of one code have the same weight, so that a division finds one among them."""
    n_codes = (_TOP_CODE // c.LANES + 1) * c.LANES
    code_V = np.minimum(code_V, _TOP_CODE)
    order = np.argsort(code_V, kind="stable")
    place_V = np.empty_like(order)
    place_V[order] = np.arange(len(order))
    n_C = np.bincount(code_V, minlength=n_codes)
    weight_C = np.maximum(_exp(np.arange(n_codes) * 4, octave).astype(np.int64), 1)
    upto_C = np.cumsum(n_C * weight_C)
    points = np.arange(0, upto_C[-1], 1 << c.ESCAPE_SHIFT)
    return {
        "escape_order": order.astype(np.int32), "escape_place": place_V.astype(np.int32),
        "escape_code": code_V.astype(np.uint8), "escape_first": np.cumsum(n_C) - n_C,
        "escape_low": (upto_C - n_C * weight_C).astype(np.int32), "escape_upto": upto_C.astype(np.int32),
        "escape_weight": weight_C.astype(np.int32),
        "escape_start": np.searchsorted(upto_C, points, side="right").astype(np.uint8),
    }  # fmt: skip


def _starts(cumulative: Ints) -> Any:
    """The first symbol that may cover a point of a static table, by its high bits."""
    points = np.arange(1 << (STATIC - START_SHIFT)) << START_SHIFT
    return (cumulative[:, None, 1:] <= points[:, None]).sum(-1).astype(np.uint8)
