"""Who was asked for and could not be measured, and why: what a table lacks is said beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage import io, reading

MISSING = "missing.json"
PROBES, WRITING, HARNESS, COVERAGE = "probes", "writing", "harness", "coverage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One model (or `before`: the students before training) that one measure lacks."""

    measure: str
    model: str
    why: str


def write(folder: Path, found: Sequence[Missing]) -> None:
    """missing.json; those that the harness would lack too, which is asked by itself."""
    io.write_json(folder / MISSING, {"missing": json_of(found)})


def read(folder: Path, *, harness: bool) -> tuple[Missing, ...]:
    """Those of a folder; of the harness only where it was asked."""
    if not (folder / MISSING).is_file():
        return ()
    found = (Missing(**row) for row in reading.read_json(folder / MISSING)["missing"])
    return tuple(one for one in found if harness or one.measure != HARNESS)


def json_of(found: Sequence[Missing]) -> list[dict[str, str]]:
    """Plain JSON values."""
    return [asdict(one) for one in found]
