"""m and tables of the threshold codec from a sample: what fits in the bytes, or meets the error.

The sample's rows serve three ends: lists from the first 60 %, weights from the next 25 %, and on the others, which the
tables have not seen, the bytes and the error that decide about m.  The stored tables are then fitted on all rows.

Shape legend: N positions, R rows, V vocabulary, D hidden size.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tutelage.cache.codec import Budget, Fitted, Positions, Sample, Tables
from tutelage.cache.codecs import _row
from tutelage.cache.error import measure
from tutelage.cache.sampling import Drawn, sample
from tutelage.cache.set_coder import encode_row
from tutelage.cache.set_tables import Profile, learn, model_of, profile, relisted, sets_between, spans
from tutelage.errors import ConfigError
from tutelage.types import SampledTargets

LEAST_M, MOST_M, DEFAULT_BYTES, GRAINS = 4, 400, 16.0, 2
_START_M, _SLOPE = 25, 0.85  # where the search begins, and about how bytes grow with m
_LEAST_ROWS = 8  # a sample with fewer rows is not parted
_MOST_ERROR_POSITIONS = 2048
Mask: TypeAlias = npt.NDArray[np.bool_]


def fit(sample: Sample, *, budget: Budget, temperature: float) -> Fitted:
    """m and the tables: chosen outright, the largest m within the bytes, or the smallest that meets the error."""
    search = _Search.over(sample, temperature=temperature)
    fixed = _fixed_m(budget)
    if fixed is not None:
        m = fixed
    elif budget.error is not None:
        m = search.least(budget.error)
    else:
        m = search.most(budget.bytes_per_token or DEFAULT_BYTES)
    tables = search.final_tables(m)
    why = (
        f"m = {m} (tau = {1 / m:.4g}): {search.bytes(m):.2f} bytes a token and a gradient error of "
        f"{search.error(m):.3f} a position on {search.n_measured} positions that the tables were not fitted on"
    )
    if fixed is None and m == MOST_M:
        why += "; m goes no further: for less error take cache.codec=hidden"
    return Fitted(settings={"m": m, "grains": GRAINS}, tables=tables, why=why)


def _fixed_m(budget: Budget) -> int | None:
    unknown = budget.fixed.keys() - {"m", "threshold"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigError(
            "CONFIG",
            f"cache: {names} unknown to codec threshold; it knows threshold (1 / m), bytes_per_token and error",
        )
    if not budget.fixed:
        return None
    m: object = budget.fixed.get("m")
    tau = budget.fixed.get("threshold")
    if m is None and isinstance(tau, int | float) and tau > 0:
        m = round(1 / tau)
    if isinstance(m, bool) or not isinstance(m, int) or not LEAST_M <= m <= MOST_M:
        found = f"1 / {m}" if tau is None else f"{tau}"
        raise ConfigError(
            "CONFIG",
            f"cache.threshold: {found}, expected 1 / m, m whole, {LEAST_M} to {MOST_M}; set cache.threshold=0.04",
        )
    return m


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """A sample, parted, and what was measured at each m so far."""

    sample: Sample
    temperature: float
    seen: Profile
    list_R: Mask
    weight_R: Mask
    measure_R: Mask
    found_bytes: dict[int, float] = field(default_factory=dict)
    found_error: dict[int, float] = field(default_factory=dict)

    @classmethod
    def over(cls, sample: Sample, *, temperature: float) -> "_Search":
        """A search over a sample; a small one is not parted."""
        n_rows = len(sample.positions.counts_R)
        share_R = (np.arange(n_rows) + 0.5) / max(1, n_rows)
        parted = n_rows >= _LEAST_ROWS
        return cls(
            sample=sample,
            temperature=temperature,
            seen=profile(sample.hidden_ND, head=sample.head, positions=sample.positions, temperature=temperature),
            list_R=share_R < (0.6 if parted else 2),
            weight_R=(share_R >= 0.6) & (share_R < 0.85) if parted else share_R < 2,
            measure_R=share_R >= (0.85 if parted else -1),
        )

    @property
    def n_measured(self) -> int:
        return int(self.sample.positions.counts_R[self.measure_R].sum())

    def drawn(self, m: int, rows_R: Mask) -> Drawn:
        """The sets of some rows; the other positions have none."""
        return _drawn(self.sample, rows_R, temperature=self.temperature, m=m)

    def bytes(self, m: int) -> float:
        """Bytes a token of the measured rows with tables that have not seen them."""
        if m not in self.found_bytes:
            drawn, n = self.drawn(m, self.weight_R | self.measure_R), max(1, self.n_measured)
            witness_N = _row.witness_codes(drawn.next_logp_N).astype(np.int64)
            tables = learn(
                self.seen, drawn, witness_N=witness_N, m=m, grains=GRAINS, list_R=self.list_R, weight_R=self.weight_R
            )
            model, total = model_of(tables, m=m, grains=GRAINS), 0
            positions = self.sample.positions
            for (first, last), used in zip(spans(positions), self.measure_R, strict=True):
                if used:
                    sets = sets_between(drawn, witness_N, first, last)
                    current_ids_n, next_ids_n = positions.current_ids_N[first:last], positions.next_ids_N[first:last]
                    total += len(encode_row(model, sets, current_ids_n=current_ids_n, next_ids_n=next_ids_n))
            self.found_bytes[m] = total / n
        return self.found_bytes[m]

    def error(self, m: int) -> float:
        """The gradient error a position, on some of the measured rows."""
        if m not in self.found_error:
            drawn = self.drawn(m, self.measure_R)
            inside_N = np.repeat(self.measure_R, self.sample.positions.counts_R)
            place_N = np.flatnonzero(inside_N)[:_MOST_ERROR_POSITIONS]
            first, last = (int(place_N[0]), int(place_N[-1]) + 1) if len(place_N) else (0, 0)
            part = drawn.between(first, last)
            targets = SampledTargets(
                ids_M=torch.from_numpy(part.ids_M),
                weights_M=torch.from_numpy(part.units_M / np.float32(m * GRAINS)).float(),
                offsets=torch.from_numpy(part.offsets),
                temperature=self.temperature,
            )
            hidden_ND = self.sample.hidden_ND[first:last]
            self.found_error[m] = 0.0
            if last > first:
                measured = measure(targets, hidden_ND=hidden_ND, head=self.sample.head, temperature=self.temperature)
                self.found_error[m] = measured.per_position
        return self.found_error[m]

    def most(self, bytes_per_token: float) -> int:
        """The largest m within the bytes; ConfigError where even the smallest is more."""
        guess = _START_M * (bytes_per_token / 12.0) ** (1 / _SLOPE)
        m, low, high = _clamped(guess), LEAST_M - 1, MOST_M + 1  # low fits, high does not
        for _ in range(6):
            if self.bytes(m) <= bytes_per_token:
                low = m
            else:
                high = m
            if high - low <= max(1, m // 50):
                break
            guess = m * (bytes_per_token / max(self.bytes(m), 1e-3)) ** (1 / _SLOPE)
            m = min(max(_clamped(guess * (1.0 if guess > m else 0.99)), low + 1), high - 1)
        if low < LEAST_M:
            raise ConfigError(
                "CONFIG",
                f"cache.bytes_per_token: {bytes_per_token:g}, and codec threshold takes {self.bytes(LEAST_M):.1f} at "
                f"its smallest m = {LEAST_M}; set cache.bytes_per_token={math.ceil(self.bytes(LEAST_M))}",
            )
        return low

    def least(self, error: float) -> int:
        """The smallest m that meets the error; ConfigError where even the largest does not."""
        low, high = LEAST_M, MOST_M
        if self.error(high) > error:
            raise ConfigError(
                "CONFIG",
                f"cache.error: {error:g}, and codec threshold reaches {self.error(MOST_M):.3f} at its largest m = "
                f"{MOST_M}; set cache.codec=hidden or cache.error={self.error(MOST_M) * 1.05:.3f}",
            )
        while low < high:
            middle = int(math.sqrt(low * high))
            if self.error(middle) <= error:
                high = middle
            else:
                low = middle + 1
        return high

    def final_tables(self, m: int) -> Tables:
        """Tables fitted on all rows."""
        drawn = self.drawn(m, self.weight_R | self.measure_R)
        witness_N = _row.witness_codes(drawn.next_logp_N).astype(np.int64)
        tables = learn(
            self.seen, drawn, witness_N=witness_N, m=m, grains=GRAINS,
            list_R=self.list_R, weight_R=self.weight_R | self.measure_R,
        )  # fmt: skip
        return relisted(tables, self.seen, np.ones_like(self.list_R), m=m)


def _clamped(m: float) -> int:
    return int(min(max(m, LEAST_M), MOST_M))


def _drawn(whole: Sample, rows_R: Mask, *, temperature: float, m: int) -> Drawn:
    """Sets of the rows of a mask (they follow one another); none at the positions before and after."""
    positions = whole.positions
    inside_N = np.repeat(rows_R, positions.counts_R)
    place_N = np.flatnonzero(inside_N)
    first, last = (int(place_N[0]), int(place_N[-1]) + 1) if len(place_N) else (0, 0)
    part = Positions(
        current_ids_N=positions.current_ids_N[first:last],
        next_ids_N=positions.next_ids_N[first:last],
        counts_R=positions.counts_R[rows_R],
        seeds_R=positions.seeds_R[rows_R],
    )
    drawn = sample(
        whole.hidden_ND[first:last], head=whole.head, positions=part, temperature=temperature, m=m, grains=GRAINS
    )
    before, after = first, len(inside_N) - last
    return replace(
        drawn,
        offsets=np.pad(drawn.offsets, (before, after), mode="edge"),
        n_heads_N=np.pad(drawn.n_heads_N, (before, after)),
        next_logp_N=np.pad(drawn.next_logp_N, (before, after)),
    )
