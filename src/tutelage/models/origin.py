"""Which layers and channels of its teacher a model was made of: `made_of.json` in a folder that others start from.

    {"teacher": {"layers": 30, "channels": 576}, "layers": [0, 9, 29], "channels": [0, 3, 4, …]}

`layers` null: all of them, in their order.  `channels`, of the residual stream, is empty where all of them stayed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage import io, reading
from tutelage.errors import IntegrityError

FILE = "made_of.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How many layers and channels a model has."""

    layers: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The layers and channels of a teacher that a model has; without `teacher` it was made of none."""

    teacher: Extent | None = None
    layers: tuple[int, ...] | None = None
    channels: tuple[int, ...] = ()


def extent_of(config: Any) -> Extent:
    """Of the model that a transformers config describes."""
    text = config.get_text_config()
    return Extent(layers=text.num_hidden_layers, channels=text.hidden_size)


def write_origin(origin: Origin, folder: Path) -> None:
    """Put it into a model's folder."""
    io.write_json(folder / FILE, asdict(origin))


def origin_in(folder: Path, *, teacher: Any) -> Origin:
    """What a model's folder says; made of none where it says nothing, or speaks of a teacher of another extent.

    `teacher` is the config of the one that is learned from.  IntegrityError[DATA_READ] for a file that is not of ours.
    """
    if not (folder / FILE).is_file():
        return Origin()
    found = reading.read_json(folder / FILE)
    try:
        origin = Origin(
            teacher=Extent(**found["teacher"]),
            layers=tuple(map(int, found["layers"])) if found["layers"] is not None else None,
            channels=tuple(map(int, found["channels"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            "DATA_READ", f"{folder / FILE} does not say what a model was made of ({error!r}); restore it, or remove it"
        ) from error
    return origin if origin.teacher == extent_of(teacher) else Origin()
