"""What a comparison may take: hours, or dollars of a machine and of an endpoint together."""

import math
from dataclasses import dataclass

from tutelage.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Hours in all, or dollars in all with the price of an hour of the machine."""

    hours: float | None = None
    usd: float | None = None
    usd_per_hour: float | None = None

    def holds(self, seconds: float, *, endpoint_usd: float) -> bool:
        """Whether so many seconds of the machine, and what an endpoint may take, are within it."""
        if self.hours is not None:
            return seconds <= self.hours * 3600
        assert self.usd is not None and self.usd_per_hour is not None, "budget_of has asked for them"
        return seconds / 3600 * self.usd_per_hour + endpoint_usd <= self.usd

    def refusal(self) -> str:
        """What is said where not even one step fits."""
        if self.hours is not None:
            what, give = f"{self.hours:g} h", "--hours"
        else:
            what, give = f"${self.usd:g} with what an endpoint may spend", "--usd"
        return f"one step of every run takes more than {what}; give more {give}, fewer --seeds or --techniques"


def budget_of(
    *, tokens: int | None, hours: float | None, usd: float | None, usd_per_hour: float | None
) -> Budget | None:
    """None where the length is given in tokens, or is the recipe's own; ConfigError for two budgets, or half of one."""
    given = [f"--{name}" for name, value in (("tokens", tokens), ("hours", hours), ("usd", usd)) if value is not None]
    if len(given) > 1:
        raise ConfigError("CONFIG", f"{' and '.join(given)} are budgets each; give one")
    if (usd is None) != (usd_per_hour is None):
        lacking = "--usd-per-hour" if usd_per_hour is None else "--usd"
        raise ConfigError("CONFIG", f"no {lacking}; a budget in dollars needs both: --usd 5 --usd-per-hour 0.80")
    for name, value in (("hours", hours), ("usd", usd), ("usd-per-hour", usd_per_hour)):
        if value is not None and not 0 < value < math.inf:
            own = "; for a machine of your own give --hours" if name == "usd-per-hour" else ""
            raise ConfigError("CONFIG", f"--{name} {value:g}; expected a number above 0{own}")
    if hours is None and usd is None:
        return None
    return Budget(hours=hours, usd=usd, usd_per_hour=usd_per_hour)
