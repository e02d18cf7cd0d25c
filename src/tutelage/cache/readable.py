"""The verb `cache show`: what a cache holds for a text, position by position.

Shape legend: N trained positions of a row, T tokens of a row, V vocabulary, C positions of a chunk.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.cells import cell_len, set_cell_size

from tutelage import visible
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import chunks_of, log_probabilities
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.tokens import Tokens, stored_rows, tokens_of
from tutelage.cache.witness import next_logp
from tutelage.errors import ConfigError
from tutelage.models.load import load_start
from tutelage.models.vocabulary import decoded, token_text
from tutelage.types import CachedTargets, DenseTargets, LogitTargets, SampledTargets, TopKTargets

Ids = npt.NDArray[np.uint32]
_WIDTH, _TOKEN, _LEAST_POSITIONS = 100, 12, 16  # columns; columns of a token; positions shown of a short text
_MORE_TOKENS = 8  # that a text may have when more text follows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A token with its stored probability (of a sample: its weight)."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What is stored where one token follows another; `tail` is the mass that no entry of its own has."""

    position: int  # of the current token, in the row
    current_id: int
    current: str
    next_id: int
    next: str
    next_logp_nats: float  # the witness
    entries: tuple[Entry, ...]  # the most likely ones
    n_entries: int
    tail: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What `show` gives back: the beginning of one row."""

    path: Path
    codec: str
    held_out: bool
    n_positions: int  # of the whole row
    positions: tuple[Position, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs, with the raw text."""
        return {
            "cache": str(self.path),
            "codec": self.codec,
            "held_out": self.held_out,
            "positions_of_the_row": self.n_positions,
            "positions": [asdict(position) for position in self.positions],
        }

    def __str__(self) -> str:
        kind = "a held-out row, whole" if self.held_out else f"codec {self.codec}"
        header = (
            f"{'at':>5} {'token':<{_TOKEN}} {'next':<{_TOKEN}} {'p(next)':>8} {'tail':>6}  "
            f"stored, most likely first{_TAIL_MEANS[self.codec]}"
        )
        lines = [visible.line(f"{self.path}: {kind}"), header, *map(_line, self.positions)]
        left = self.n_positions - len(self.positions)
        return "\n".join([*lines, f"{left} more positions: give more of the text to see them"] if left else lines)


def show(path: str | Path, text: str, *, top: int = 5) -> Shown:
    """The stored targets at the beginning of the row whose tokens begin with those of `text`.

    As many positions as the text has tokens, at least 16.  Raises ConfigError when no row begins so, or when the
    tokens are not on this machine.
    """
    cache = TeacherCache(path)
    tokenizer, _ = load_start(_start(cache.folder))
    wanted = _Wanted.of(text, tokenizer)
    for one, is_held_out in ((cache, False), (cache.held_out, True)):
        found = _find(one, wanted) if one is not None else None
        if one is not None and found is not None:
            return _shown(one, found, wanted=wanted, top=top, is_held_out=is_held_out)
    raise ConfigError(
        "CONFIG",
        f"--text: no row of {cache.folder} begins with '{text[:60]}' ({wanted.n_tokens} "
        f"tokens); give the first words of a document of the data as they stand there",
    )


def _start(folder: Path) -> Path:
    """Where the tokenizer is; that of held-out rows stands beside the whole cache's shards."""
    for start in (folder / manifests.START, folder.parent / manifests.START):
        if start.is_dir():
            return start
    raise ConfigError("CONFIG", f"{folder} has no tokenizer ({manifests.START}); show the whole cache, or label again")


# --- the row ---------------------------------------------------------------------------------------------------------


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A row that begins with a text, or a full window that the text begins with.

    A text may end inside a word, which then has other tokens: those before it are `sure`.
    """

    text: str
    sure: npt.NDArray[np.int64]
    n_tokens: int
    skipped: list[int]  # control tokens before the text
    tokenizer: Any

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> "_Wanted":
        words = text.strip()
        if not words:
            raise ConfigError("CONFIG", "--text is empty; give the first words of a document of the data")
        ids = _ids_of(tokenizer, words)
        special: list[int] = tokenizer.all_special_ids
        return cls(
            text=words,
            sure=np.array(_ids_of(tokenizer, words[: words.rfind(" ") + 1].rstrip())[:-1], dtype=np.int64),
            n_tokens=len(ids),
            skipped=[] if ids[0] in special else special,  # a chat can be given as its template spells it
            tokenizer=tokenizer,
        )

    def is_beginning_of(self, row_T: Ids, *, is_full: bool) -> bool:
        """Whether the row begins so, control tokens and white space before it left aside."""
        own_T = row_T[int(np.isin(row_T, self.skipped, invert=True).argmax()) :]
        n = min(len(own_T), len(self.sure))
        if not np.array_equal(own_T[:n], self.sure[:n]):
            return False
        some = decoded(self.tokenizer, own_T[: self.n_tokens + _MORE_TOKENS].tolist()).strip()
        return some.startswith(self.text) or (is_full and self.text.startswith(some))


def _find(cache: TeacherCache, wanted: _Wanted) -> RowSet | None:
    """The first row, by key, that begins so; None when none does."""
    stored = stored_rows([cache.manifest])
    if not stored:
        raise ConfigError(
            "CONFIG",
            f"the tokens of {cache.folder} are not on this machine; make them again: tutelage label RECIPE (the recipe "
            "the cache is of), which asks the teacher for nothing that is there",
        )
    for rows in stored:
        own = rows.take(cache.has(rows.keys_R))
        for place, number in enumerate(own.numbers_R.tolist()):
            row_T = own.stores[0].row(number).ids
            if wanted.is_beginning_of(row_T, is_full=len(row_T) == cache.manifest.asked.max_length):
                return own.take(slice(place, place + 1))
    return None


# --- what is stored there --------------------------------------------------------------------------------------------


def _shown(cache: TeacherCache, row: RowSet, *, wanted: _Wanted, top: int, is_held_out: bool) -> Shown:
    tokens = tokens_of(row)
    (key,) = tokens.keys
    targets = cache.targets([key], current_ids_N=tokens.current_ids_N, next_ids_N=tokens.next_ids_N, draws=[0])
    trained_N = np.flatnonzero(row.stores[0].row(int(row.numbers_R[0])).loss_mask[1:])
    n = min(len(trained_N), max(_LEAST_POSITIONS, wanted.n_tokens))
    stored = _entries(targets, n, top=top, temperature=cache.manifest.asked.temperature)
    logp_N = next_logp(cache, tokens)
    return Shown(
        path=cache.folder,
        codec=cache.manifest.asked.codec,
        held_out=is_held_out,
        n_positions=len(trained_N),
        positions=tuple(
            _position(
                tokens, i, at=int(trained_N[i]), logp=float(logp_N[i]), stored=stored[i], tokenizer=wanted.tokenizer
            )
            for i in range(n)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """Ids and probabilities of a position's most likely entries, how many there are, and the mass of no entry."""

    ids: list[int]
    probabilities: list[float]
    n_entries: int
    tail: float


def _position(tokens: Tokens, i: int, *, at: int, logp: float, stored: _Stored, tokenizer: Any) -> Position:
    current, following = int(tokens.current_ids_N[i]), int(tokens.next_ids_N[i])
    return Position(
        position=at,
        current_id=current,
        current=decoded(tokenizer, [current]),
        next_id=following,
        next=token_text(tokenizer, following, after=current),
        next_logp_nats=logp,
        entries=tuple(
            Entry(token_id=entry, text=token_text(tokenizer, entry, after=current), probability=p)
            for entry, p in zip(stored.ids, stored.probabilities, strict=True)
        ),
        n_entries=stored.n_entries,
        tail=stored.tail,
    )


def _entries(targets: CachedTargets, n: int, *, top: int, temperature: float) -> list[_Stored]:
    """Of the first n positions."""
    if isinstance(targets, SampledTargets):
        return [_of_sample(targets, i, top=top) for i in range(n)]
    if isinstance(targets, TopKTargets):
        p_NK, tail_N = targets.logp_NK[:n].double().exp(), targets.tail_logp_N[:n].double().exp().tolist()
        return [
            _Stored(ids=ids[:top], probabilities=p[:top], n_entries=len(ids), tail=tail)
            for ids, p, tail in zip(targets.ids_NK[:n].tolist(), p_NK.tolist(), tail_N, strict=True)
        ]
    found: list[_Stored] = []
    for place in chunks_of(n):
        found += _of_whole(_logp(targets, place, temperature=temperature).exp(), top=top)
    return found


def _logp(targets: DenseTargets | LogitTargets, place: slice, *, temperature: float) -> torch.Tensor:
    if isinstance(targets, DenseTargets):
        return log_probabilities(targets.hidden_ND[place], head=targets.head, temperature=temperature).double()
    return torch.log_softmax(targets.logits_NV[place].double() / temperature, -1)


def _of_whole(p_CV: torch.Tensor, *, top: int) -> list[_Stored]:
    """Every token has an entry of its own; the tail is what is not shown."""
    best = p_CV.topk(min(top, p_CV.shape[1]), dim=-1)
    return [
        _Stored(ids=ids, probabilities=p, n_entries=p_CV.shape[1], tail=max(0.0, 1.0 - sum(p)))
        for ids, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _of_sample(targets: SampledTargets, i: int, *, top: int) -> _Stored:
    """The entries by weight; the tail is what the least weight, that of the sampled tokens, takes together."""
    entries = slice(int(targets.offsets[i]), int(targets.offsets[i + 1]))
    ids, weights = targets.ids_M[entries], targets.weights_M[entries].double()
    order = weights.argsort(descending=True, stable=True)[:top]
    return _Stored(
        ids=ids[order].tolist(),
        probabilities=weights[order].tolist(),
        n_entries=len(ids),
        tail=float(weights[weights <= weights.min() * 1.0001].sum()) if len(ids) else 1.0,
    )


# --- for people ------------------------------------------------------------------------------------------------------

_TAIL_MEANS = {
    "threshold": " (tail: sampled tokens)",
    "topk": " (tail: all the others)",
    "hidden": " (tail: what is not shown)",
    "dense": " (tail: what is not shown)",
}


def _line(position: Position) -> str:
    """One position on one line of at most 100 columns."""
    begin = (
        f"{position.position:>5} {_cell(position.current)} {_cell(position.next)} "
        f"{_percent(float(np.exp(position.next_logp_nats))):>8} {_percent(position.tail):>6}  "
    )
    shown: list[str] = []
    for n, entry in enumerate(position.entries):
        more = position.n_entries - n
        text = f"{visible.token(entry.text)} {_percent(entry.probability)}"
        if cell_len(begin) + cell_len("  ".join([*shown, text])) + len(f"  +{more}") > _WIDTH:
            break
        shown.append(text)
    left = position.n_entries - len(shown)
    return begin + "  ".join([*shown, f"+{left}"] if left else shown)


def _cell(raw: str) -> str:
    text = visible.token(raw)
    return set_cell_size(text, _TOKEN) if cell_len(text) <= _TOKEN else set_cell_size(text, _TOKEN - 1).rstrip() + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0995 else f"{100 * share:.2g}%"
