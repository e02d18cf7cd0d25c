"""An endpoint's log-probabilities at the trained positions of a row: matched token by token, byte by byte, or refused.

The row's tokens are the student's own; the endpoint's must be the same ones in the same order.  Two checks for each
token: its bytes are those of the row's token, and its id is the same where the endpoint says ids.  Alternatives are
looked up by their bytes (control tokens by id or spelling); a control token that the student lacks goes to the tail.
So does everything that the endpoint does not name: what lacks to 1 is the tail.

Parts of a character that are spelt alike (U+FFFD) are told apart nowhere: those that are listed go to the tail, and the
row's own token must be spelt so too.

The end of a turn, where an endpoint does not report it, and what the template puts behind it are stored as themselves
with probability 1: a hard label, which is all that is known there.

Shape legend: N trained positions of a row, K kept tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage.data.tokenize import TokenRow
from tutelage.generation.logprobs import Choice, Given, Unusable, Written
from tutelage.models.token_bytes import control_tokens, token_bytes

MOST_SUM = 1e-3  # that probabilities may lie above 1: rounding of what a server prints
_SAME = 1e-2  # nats between two prints of one number
OTHER_TOKENS = "the endpoint's tokens are not the student's"  # how such reasons begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Soft:
    """Targets of a row: kept ids with their log-probabilities, what lacks to 1, and log p(next), all in nats."""

    ids_NK: npt.NDArray[np.int64]
    logp_NK: npt.NDArray[np.float64]
    tail_N: npt.NDArray[np.float64]
    next_logp_N: npt.NDArray[np.float64]
    n_hard: int  # positions at the end that the endpoint said nothing about
    n_alike: int  # positions with tokens in their list that are spelt alike, which are in the tail


class Matcher:
    """Matches replies with rows of one tokenizer; `k` tokens are kept at each position."""

    def __init__(self, tokenizer: Any, *, k: int) -> None:
        self.k = k
        self._data = token_bytes(tokenizer)
        self._control = control_tokens(tokenizer)
        self._is_control = set(self._control.values())
        self._by_data: dict[bytes, int] = {}
        for number, data in sorted(self._data.items(), reverse=True):
            self._by_data[data] = number  # of two with the same bytes the lower id
        # In the places that are left: tokens that no answer holds, with probability 0.
        self._fillers = [*sorted(self._is_control), *sorted(self._data, reverse=True)[: 2 * k]]

    def match(self, row: TokenRow, written: Sequence[Written], *, is_cut: bool) -> Soft:
        """The targets of a whole document; `Unusable` with the reason when a token is another one."""
        answer = _answer_of(row)
        content = written[: len(written) - self._n_ends(written)]
        if len(content) > len(answer):
            raise Unusable(f"{OTHER_TOKENS}: {len(content)} for {len(answer)} of the row")
        same = [
            replace(one, token=self._same(token_id, one.token, n=n))
            for n, (token_id, one) in enumerate(zip(answer.tolist(), content, strict=False))
        ]
        rest = answer[len(content) :].tolist()
        if not rest and not is_cut:
            raise Unusable("the row has no end of the answer")
        if rest and rest[0] not in self._is_control:
            raise Unusable(f"{OTHER_TOKENS}: {len(content)} for {len(answer)} of the row")
        if rest and is_cut:
            raise Unusable("the answer was cut, and the row ends it")
        # One that ends with another control token than the student's template says nothing about that.
        ends = [one for one in written[len(content) :] if rest and self._id_of(one.token) == rest[0]]
        soft = [self._position(one) for one in (*same, *ends)]
        hard = [({token_id: 0.0}, -math.inf) for token_id in rest[len(ends) :]]
        own = [one.token.logp for one in (*content, *ends)] + [0.0] * len(hard)
        return self._arrays([*soft, *hard], own, n_hard=len(hard), n_alike=_n_alike([*same, *ends]))

    def match_text(self, row: TokenRow, given: Sequence[Given]) -> Soft:
        """The targets of a whole text that was given, from its second token on; `Unusable` as in `match`.

        What one side puts before a text (a control token) the other may lack.  A token before which the endpoint saw
        nothing has no number there: a hard label, where the student's row begins with a control token.
        """
        ids = row.ids.tolist()
        n_begin = next((n for n, token_id in enumerate(ids) if token_id not in self._is_control), len(ids))
        n_text = len(ids) - n_begin
        text = given[1:] if self._begins(given, n_text=n_text) else given
        if len(text) not in (n_text, n_text + 1):  # one more was written behind it
            raise Unusable(f"{OTHER_TOKENS}: {len(text)} for {n_text} of the row")
        soft: list[tuple[dict[int, float], float]] = [({i: 0.0}, -math.inf) for i in ids[1:n_begin]]
        own, n_hard, n_alike = [0.0] * len(soft), len(soft), 0
        for n, (token_id, one) in enumerate(zip(ids[n_begin:], text, strict=False)):
            found = self._own_of(one, token_id, n=n, is_first=one is given[0])
            if n_begin + n == 0:
                continue
            n_hard += found is None
            n_alike += _n_alike([found] if found is not None else [])
            soft.append(self._position(found) if found is not None else ({token_id: 0.0}, -math.inf))
            own.append(found.token.logp if found is not None else 0.0)
        return self._arrays(soft, own, n_hard=n_hard, n_alike=n_alike)

    def _begins(self, given: Sequence[Given], *, n_text: int) -> bool:
        """Whether the endpoint put a control token before the text."""
        first = given[0].token if given else None
        if first is None:
            return len(given) > n_text
        return first.text in self._control or first.token_id in self._is_control

    def _own_of(self, one: Given, token_id: int, *, n: int, is_first: bool) -> Written | None:
        """A token of the text, which is the row's, with its numbers; None for the first one of all, without any."""
        token, top = one.token, tuple(self._named(choice) for choice in one.top)
        same = self._same(token_id, self._named(token), n=n) if token is not None else None
        if not top and is_first:
            return None
        if not top:
            raise Unusable(f"it has no log-probabilities at token {n}")
        found = same or next((c for c in top if c.token_id == token_id), None)
        if found is None:
            raise Unusable(f"{OTHER_TOKENS}: token {n} is another one than the row's {token_id}")
        return Written(token=self._same(token_id, found, n=n), top=top)

    def _named(self, found: Choice) -> Choice:
        """With the bytes of its id, where the endpoint says ids and spells them with losses or without the space."""
        own = self._data.get(found.token_id) if found.token_id is not None else None
        if own is not None and (found.data is None or found.data.lstrip(b" ") == own.lstrip(b" ")):
            return replace(found, data=own)
        return found

    def _n_ends(self, written: Sequence[Written]) -> int:
        """1 when the last token is the end of the turn: a control token, or nothing at all."""
        last = written[-1].token
        return int(last.data == b"" or last.text in self._control)

    def _same(self, token_id: int, found: Choice, *, n: int) -> Choice:
        """A token that is the row's; with the row's bytes where it is spelt with losses, as those would be."""
        data = self._data.get(token_id)
        if found.is_lost and data is not None and data.decode("utf-8", "replace") == found.text:
            return replace(found, data=data, token_id=token_id)
        if found.data is None:
            raise Unusable(f"the endpoint does not say the bytes of a token ({found.text!r})")
        same_id = found.token_id is None or found.token_id == token_id
        if data != found.data or not same_id:
            own = f"{token_id} {data!r}"
            theirs = f"{found.token_id if found.token_id is not None else ''} {found.data!r}".strip()
            raise Unusable(f"{OTHER_TOKENS}: token {n} is {theirs}, the row's {own}")
        return found

    def _id_of(self, found: Choice) -> int | None:
        """The student's id; None for a control token that it lacks, `Unusable` for a plain one."""
        if found.text in self._control:
            return self._control[found.text]
        if not found.data:
            return found.token_id if found.token_id in self._is_control else None
        number = self._by_data.get(found.data)
        if found.token_id is not None and self._data.get(found.token_id) == found.data:
            return found.token_id
        if number is None and not _spells_control(found.text):
            raise Unusable(f"{OTHER_TOKENS}: {found.data!r} is none of them")
        return number

    def _position(self, one: Written) -> tuple[dict[int, float], float]:
        """Ids with their log-probabilities, and that of all others together."""
        kept: dict[int, float] = {}
        for choice in one.top[: self.k]:
            number = self._id_of(choice)
            if number in kept:
                raise Unusable(f"it names {choice.text!r} twice at one position")
            if number is not None:
                kept[number] = choice.logp
        self._take_own(one, kept)
        total = max(sum(math.exp(choice.logp) for choice in one.top[: self.k]), sum(map(math.exp, kept.values())))
        if total > 1 + MOST_SUM:
            raise Unusable(f"its probabilities sum to {total:.4g}: is the server applying sampling parameters?")
        lacking = 1.0 - sum(map(math.exp, kept.values()))
        return kept, math.log(lacking) if lacking > 0 else -math.inf

    def _take_own(self, one: Written, kept: dict[int, float]) -> None:
        """The token that was written is the alignment witness: it agrees with the list, and fills a place left free."""
        is_alike = bool(_n_alike([one]))
        if len(one.top) < self.k and not is_alike:
            raise Unusable(f"it names {len(one.top)} tokens at a position, {self.k} were asked for")
        number, logp = self._id_of(one.token), one.token.logp
        if number is not None and number in kept:
            agrees = abs(kept[number] - logp) <= _SAME
        else:
            agrees = is_alike or logp <= min(kept.values(), default=0.0) + _SAME
            if number is not None and len(kept) < self.k:
                kept[number] = logp
        if not agrees:
            raise Unusable("what it says of its own token contradicts its list: are sampling parameters applied?")
        if not kept:
            raise Unusable(f"{OTHER_TOKENS}: it names none of them at a position")

    def _arrays(
        self, found: Sequence[tuple[dict[int, float], float]], own: Sequence[float], *, n_hard: int, n_alike: int
    ) -> Soft:
        ids_NK = np.empty((len(found), self.k), np.int64)
        logp_NK = np.full((len(found), self.k), -np.inf)
        for n, (kept, _) in enumerate(found):
            ids = [*kept, *(number for number in self._fillers if number not in kept)][: self.k]
            ids_NK[n] = ids
            logp_NK[n, : len(kept)] = list(kept.values())
        return Soft(
            ids_NK=ids_NK,
            logp_NK=logp_NK,
            tail_N=np.array([tail for _, tail in found]),
            next_logp_N=np.array(own, dtype=np.float64),
            n_hard=n_hard,
            n_alike=n_alike,
        )


def _answer_of(row: TokenRow) -> npt.NDArray[np.uint32]:
    """The trained tokens of a row, which must be one stretch."""
    trained = np.flatnonzero(row.loss_mask)
    if not len(trained) or trained[0] == 0 or trained[-1] - trained[0] + 1 != len(trained):
        raise Unusable("earlier answers of the conversation are trained too")
    return row.ids[trained]


def _n_alike(found: Sequence[Written]) -> int:
    """Positions whose list names tokens that cannot be told apart."""
    return sum(any(choice.is_lost for choice in one.top) for one in found)


def _spells_control(text: str) -> bool:
    """Whether it looks like a control token of the endpoint's model: <|end|>, </s>, [INST]."""
    return len(text) > 2 and (text[0], text[-1]) in (("<", ">"), ("[", "]"))
