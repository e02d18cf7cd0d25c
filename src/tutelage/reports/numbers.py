"""Numbers as people read them."""

import math

from tutelage.types import Estimate


def decimals(found: Estimate) -> int:
    """Decimals that show two digits of the standard error (of a share: in percent); at most 4."""
    scale = 100 if found.unit == "share" else 1
    error = found.stderr * scale
    if not math.isfinite(error):
        return 2
    return 4 if error <= 0 else max(0, min(4, 1 - math.floor(math.log10(error))))


def estimate(found: Estimate, *, n_decimals: int) -> tuple[str, str]:
    """Value and standard error, shares in percent; "?" where one sequence alone tells no error."""
    scale = 100 if found.unit == "share" else 1
    error = f"{found.stderr * scale:,.{n_decimals}f}" if math.isfinite(found.stderr) else "?"
    return f"{found.value * scale:,.{n_decimals}f}" if math.isfinite(found.value) else "∞", error


def count(n: int) -> str:
    """A number of parameters: 134.5 M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= limit:
            return f"{n / limit:.1f} {letter}"
    return str(n)


def size(n_bytes: int) -> str:
    """Bytes in powers of 1000: 538 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {unit}"
    return f"{n_bytes} B"


def seconds(duration_s: float) -> str:
    """A duration: 118 s, 12 min, 3.4 h."""
    if duration_s < 600:
        return f"{duration_s:.0f} s" if duration_s >= 10 else f"{duration_s:.1f} s"
    return f"{duration_s / 60:.0f} min" if duration_s < 7200 else f"{duration_s / 3600:.1f} h"


def compact(value: float) -> str:
    """A tick of an axis: 20k, 1.5M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"
