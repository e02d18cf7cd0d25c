"""Results as values that JSON has."""

import math
from typing import Any  # whatever a dataclass holds


def finite(value: Any) -> Any:
    """The same, with null for a number that is not finite: what nobody knows, such as the error of a single row."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
