"""The explorer's part of the page: coloured texts that stand without a script, and the data for ours."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tutelage import visible
from tutelage.evaluation.explorer import Expected, ExploredText, Explorer, Place
from tutelage.reports.table import model_name

LIMITS = (0.1, 0.5, 1.0, 2.0)  # nats, from which a token is one level darker
_TITLE = 60  # characters of a text's beginning
_KINDS = {"hardest": "Hardest", "median": "Median", "easiest": "Easiest"}


def level(kl_nats: float) -> int:
    """How much student and teacher disagree, from 0 to 4."""
    return sum(kl_nats >= limit for limit in LIMITS)


def scale() -> list[tuple[int, str]]:
    """(level, what it means) for the legend."""
    ends = [f"{limit:g}" for limit in LIMITS]
    between = [f"{low}–{high}" for low, high in itertools.pairwise(ends)]
    return list(enumerate([f"< {ends[0]}", *between, f"≥ {ends[-1]}"]))


def context(explorer: Explorer) -> dict[str, Any]:
    """What the template needs: every text here is safe to show once it is escaped."""
    student = explorer.students[0]
    return {
        "student": model_name(student),
        "students": [model_name(name) for name in explorer.students],
        "n_rows": explorer.n_rows,
        "set": explorer.set_name.replace("_", "-"),
        "scale": scale(),
        "texts": [_text(text, student=student) for text in explorer.texts],
        "data": script_json(_data(explorer)),
    }


def script_json(value: object) -> Markup:
    r"""JSON for a `<script type="application/json">`: no character in it can end the element or begin another one.

    `<`, `>`, `&`, U+2028, U+2029 and everything that is not ASCII are escapes; reading it gives the same value.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _text(text: ExploredText, *, student: str) -> dict[str, Any]:
    places = {place.at: place for place in text.places}
    begin = visible.line(" ".join("".join(text.pieces[:40]).split()))
    return {
        "kind": _KINDS.get(text.kind, text.kind),
        "row": text.row,
        "kl": f"{text.kl_nats[student]:.2f}",
        "begin": begin if len(begin) <= _TITLE else begin[: _TITLE - 1] + "…",
        "pieces": [_piece(piece, places.get(n), student=student) for n, piece in enumerate(text.pieces)],
    }


def _piece(piece: str, place: Place | None, *, student: str) -> dict[str, Any]:
    """A token in the running text; of one that was predicted how much the two disagreed about it."""
    shown = visible.text(piece).replace("\n", "↵\n") or "∅"
    if place is None:
        return {"text": shown, "level": None}
    kl_nats = place.kl_nats[student]
    return {"text": shown, "level": level(kl_nats), "kl": f"{kl_nats:.2f}"}


def _data(explorer: Explorer) -> dict[str, Any]:
    """For the script: tokens by place in a list, probabilities in hundredths of a percent."""
    place_of = {number: n for n, number in enumerate(explorer.tokens)}
    models = (explorer.teacher, *explorer.students)
    return {
        "limits": LIMITS,
        "models": [model_name(name) for name in models],
        "tokens": [visible.token(text) for text in explorer.tokens.values()],
        "texts": [
            {
                "at": [place.at for place in text.places],
                "true": [place_of[text.ids[place.at]] for place in text.places],
                "kl": [[round(place.kl_nats[name], 3) for name in explorer.students] for place in text.places],
                "top": [[_flat(place.expected[name], place_of) for name in models] for place in text.places],
            }
            for text in explorer.texts
        ],
    }


def _flat(expected: Expected, place_of: Mapping[int, int]) -> list[int]:
    """[probability of the true token, its rank, token, probability, token, …]"""
    pairs = zip(expected.ids, expected.probabilities, strict=True)
    listed = [x for number, probability in pairs for x in (place_of[number], _parts(probability))]
    return [_parts(expected.true_probability), expected.true_rank, *listed]


def _parts(probability: float) -> int:
    return round(probability * 10_000)
