"""Bytes of a teacher cache before anything is asked, by codec.

What a row takes each codec says itself (`expected_bytes`); keys, counts and lengths come on top: 36 bytes a row and 4
for each draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tutelage import plugins
from tutelage.cache.codec import CODECS, Budget, Codec

_INDEX_BYTES, _LENGTH_BYTES = 36, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A codec with its settings, under a name for people."""

    name: str
    codec: str
    budget: Budget = field(default_factory=Budget)
    draws: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A form over some positions; None where the data alone can tell."""

    name: str
    bytes_per_token: float | None
    total_bytes: float | None


USUAL = (
    Form(name="dense", codec="dense"),
    Form(name="hidden", codec="hidden"),
    Form(name="topk, k = 64", codec="topk", budget=Budget(fixed={"k": 64})),
    Form(name="topk, k = 16", codec="topk", budget=Budget(fixed={"k": 16})),
    Form(name="threshold, asked for 16", codec="threshold"),
)

HELD_OUT = Form(name="hidden", codec="hidden")  # how `label` stores held-out rows
PROBE_POSITIONS, PROBE_IDS_BYTES = 2_048, 8  # kept in full beside the rows: hidden states and two ids


def bytes_per_token(form: Form, *, n_vocabulary: int, hidden_size: int, row_positions: float) -> float | None:
    """Of shards as they lie on the disk, all draws together; None where the data alone can tell."""
    codec: Codec = plugins.load(CODECS, form.codec)
    a_draw = codec.expected_bytes(
        form.budget, n_vocabulary=n_vocabulary, hidden_size=hidden_size, row_positions=row_positions
    )
    if a_draw is None:
        return None
    return a_draw * form.draws + (_INDEX_BYTES + _LENGTH_BYTES * form.draws) / row_positions


def whole_bytes(n_vocabulary: int) -> float:
    """Of a whole distribution in float16, which nobody can store for long."""
    return 2.0 * n_vocabulary


def table(
    forms: Sequence[Form], *, positions: float, n_vocabulary: int, hidden_size: int | None, row_positions: float
) -> list[Stored]:
    """Every form over so many positions; without a hidden size the codec `hidden` cannot be told."""
    found = []
    for form in forms:
        known = hidden_size is not None or form.codec != "hidden"
        each = (
            bytes_per_token(form, n_vocabulary=n_vocabulary, hidden_size=hidden_size or 0, row_positions=row_positions)
            if known
            else None
        )
        found.append(
            Stored(name=form.name, bytes_per_token=each, total_bytes=None if each is None else each * positions)
        )
    return found
