"""From a document to token ids and the mask of those that are trained.

What users wrote is encoded with the matching of control tokens off: the text `<|im_end|>` inside a document becomes
the ids of its letters, never the id that ends a turn.  A chat is rendered in segments; control tokens are taken from
the template's segments only, and what stands between two of them is encoded in one piece, as the tokenizer would have
done with the whole text, except that an answer always begins a piece of its own: so does a model that writes it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias  # Any: JSON of tool calls

import numpy as np
import numpy.typing as npt
import tokenizers

from tutelage.data.example import Example, Reject
from tutelage.errors import ConfigError, IntegrityError, TutelageError

TrainOn = Literal["all", "answers"]
_MOST_SHOWN = 80  # characters of a role that is refused
MAX_PIECE_CHARACTERS = 1_000_000  # the tokenizer needs about a hundred bytes of memory for each
# Encoded in front of a piece that does not begin a text, and dropped: some tokenizers put a space before what they
# take for the beginning of a text.  Private-use characters; a text that contains it is rejected.
_MIDDLE = "\ue000tutelage\ue001"


Conversation: TypeAlias = Sequence[Mapping[str, Any]]  # role, content and tool calls of each message
Tools: TypeAlias = Sequence[Any]  # that a conversation may call, as JSON describes them


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    backend_tokenizer: tokenizers.Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None  # a control token that plain text may well become

    def __len__(self) -> int: ...


class Segment(Protocol):
    """A stretch of a rendered chat: `kind` is content (what a user or the model wrote) or of the template."""

    @property
    def text(self) -> str:
        """As it stands in the rendered chat."""
        ...

    @property
    def kind(self) -> str:
        """`content`, or anything else for the template's own text."""
        ...

    @property
    def trained(self) -> bool:
        """Whether an assistant wrote it, or it ends the assistant's turn."""
        ...


class Renderer(Protocol):
    """A chat template."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what is rendered."""
        ...

    def render_many(
        self, conversations: Sequence[Conversation], *, tools: Sequence[Tools] = ()
    ) -> Sequence[Sequence[Segment]]:
        """Each conversation in stretches, with its own `tools` where some are given.

        IntegrityError[TEMPLATE] when the template refuses one of them.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids (uint32) and, for each, whether it is trained as a next token (bool); both of shape [T]."""

    ids: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Text to encode, or ids as they are (of one control token, or of a whole row)."""

    text: str = ""
    ids: tuple[int, ...] = ()
    trained: bool = True
    begins: bool = False  # the text begins here


def encode(
    example: Example, tokenizer: Tokenizer, *, renderer: Renderer | None = None, train_on: TrainOn = "all"
) -> TokenRow | Reject:
    """One document as a row of any length; for many documents use an Encoder."""
    return Encoder(tokenizer, renderer=renderer, train_on=train_on).encode([example])[0]


def windows(row: TokenRow, max_length: int) -> Iterator[TokenRow]:
    """The row cut into windows of at most `max_length`, each beginning with the last token of the one before.

    The first token of a window predicts but is not predicted; with the overlap every token of the document but its
    first is trained in exactly one window.
    """
    assert max_length >= 2, "a window of one token predicts nothing"
    for start in range(0, max(1, len(row.ids) - 1), max_length - 1):
        yield TokenRow(row.ids[start : start + max_length], row.loss_mask[start : start + max_length])


class Encoder:
    """Encodes examples with one tokenizer, one template and one choice of what is trained."""

    def __init__(self, tokenizer: Tokenizer, *, renderer: Renderer | None = None, train_on: TrainOn = "all") -> None:
        self.backend = _plain_backend(tokenizer)
        self.n_vocabulary = len(tokenizer)
        self.eos_id, self.bos_id = _eos_id(tokenizer), tokenizer.bos_token_id
        self.prefix = _prefix(tokenizer)
        self.renderer = renderer
        self.train_on = train_on
        decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self.control = {token.content: (number, token) for number, token in decoder.items() if token.special}
        longest_first = sorted(self.control, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        forbidden = {self.backend.token_to_id(content) for content in (*self.control, _MIDDLE)}
        self.forbidden_ids = np.array(list(forbidden - {tokenizer.unk_token_id}), dtype=np.uint32)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the ids and masks, besides the tokenizer's own fingerprint; JSON."""
        template = self.renderer.fingerprint if self.renderer is not None else None
        return {"eos": self.eos_id, "prefix": list(self.prefix), "template": template, "train_on": self.train_on}

    def has_control_text(self, example: Example) -> bool:
        """Whether something that a user wrote spells a control token."""
        return any(self.control_pattern.search(content) for content in example.contents)

    def encode(self, examples: Sequence[Example]) -> list[TokenRow | Reject]:
        """One row, or the reason why there is none, for each example; the pieces of all are encoded together."""
        chats = [self._conversation(example) for example in examples]
        tools = [json.loads(example.tools) if example.tools else [] for example in examples]
        rendered = iter(self._render([pair for pair in zip(chats, tools, strict=True) if pair[0]]))
        pieces = [
            self._pieces(example, next(rendered) if chat else ()) for example, chat in zip(examples, chats, strict=True)
        ]
        texts = [p for piece in pieces if not isinstance(piece, Reject) for p in piece if p.text]
        encodings = iter(self._encode_texts(texts))
        return [
            piece if isinstance(piece, Reject) else self._row(example, piece, encodings)
            for example, piece in zip(examples, pieces, strict=True)
        ]

    def prompt_ids(self, *, chat: Sequence[Segment] = (), text: str = "") -> list[int]:
        """The ids that a model goes on from: those that a row with this prompt begins with."""
        begin = [_Piece(ids=self.prefix)] if self.prefix else []
        pieces = self._chat(chat) if chat else [*begin, *_split_long(_Piece(text=text, begins=True))]
        texts = iter(self._encode_texts([piece for piece in pieces if piece.text]))
        found = [next(texts).tolist() if piece.text else piece.ids for piece in pieces]
        return [int(number) for ids in found for number in ids] or [self.eos_id]

    def _encode_texts(self, pieces: Sequence[_Piece]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each piece of text."""
        texts = [piece.text if piece.begins else _MIDDLE + piece.text for piece in pieces]
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return [i if piece.begins else i[1:] for i, piece in zip(ids, pieces, strict=True)]

    def _row(
        self, example: Example, pieces: Sequence[_Piece], encodings: Iterator[npt.NDArray[np.uint32]]
    ) -> TokenRow | Reject:
        parts = [next(encodings) if piece.text else np.array(piece.ids, dtype=np.uint32) for piece in pieces]
        mask = np.repeat([piece.trained for piece in pieces], [len(part) for part in parts])
        row = TokenRow(np.concatenate(parts), mask)
        if any(np.isin(i, self.forbidden_ids).any() for i, p in zip(parts, pieces, strict=True) if p.text):
            return _reject(example, "the tokenizer makes a control token of plain text")
        if (row.ids >= self.n_vocabulary).any():
            return _reject(example, f"id {row.ids.max()} is outside the vocabulary of {self.n_vocabulary}")
        if len(row.ids) < 2:
            return _reject(example, "fewer than 2 tokens")
        if self.bos_id is not None and (row.ids[:2] == self.bos_id).all():
            raise IntegrityError(
                "DOUBLE_BOS",
                f"{example.name} begins with token {self.bos_id} twice; remove the begin-of-sequence token "
                "from the chat template (data.chat_template) or from the ids",
            )
        if not row.loss_mask[1:].any():
            return _reject(example, f"no token to train on (train_on: {self.train_on})")
        return row

    def _conversation(self, example: Example) -> Conversation:
        """The messages to render; empty for what is no chat.  With a template, a prompt is a question to answer."""
        if example.answer and self.renderer is not None and not example.is_text:
            return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
        return [
            {"role": m.role, "content": m.content, **(json.loads(m.more) if m.more else {})} for m in example.messages
        ]

    def _render(
        self, conversations: Sequence[tuple[Conversation, Tools]]
    ) -> Sequence[Sequence[Segment] | TutelageError]:
        """Each conversation in segments, or why the template refuses it (two turns of one role, say)."""
        if not conversations:
            return []
        if self.renderer is None:
            raise ConfigError(
                "TEMPLATE", "messages need a chat template and the model has none; set data.chat_template"
            )
        try:
            return self.renderer.render_many([chat for chat, _ in conversations], tools=[t for _, t in conversations])
        except TutelageError as error:
            if error.code != "TEMPLATE":
                raise
            if len(conversations) == 1:
                return [error]
        middle = len(conversations) // 2  # a few refused ones cost a few small batches
        return [*self._render(conversations[:middle]), *self._render(conversations[middle:])]

    def _pieces(self, example: Example, chat: Sequence[Segment] | TutelageError) -> list[_Piece] | Reject:
        """The row in pieces; with `train_on: answers` the mask is the answers', else everything."""
        if isinstance(chat, TutelageError):
            return _reject(example, chat.message)
        if reason := self._forged(example):
            return _reject(example, reason)
        if example.token_ids:
            return _as_given(example)
        pieces = self._chat(chat) if chat else self._document(example)
        return pieces if self.train_on == "answers" else [replace(piece, trained=True) for piece in pieces]

    def _forged(self, example: Example) -> str:
        """What spells a control token where the template would write it as one; empty where nothing does."""
        for number, message in enumerate(example.messages, start=1):
            if self.control_pattern.search(message.role):
                shown = message.role[:_MOST_SHOWN] + "…" * (len(message.role) > _MOST_SHOWN)
                return f"the role of message {number} spells a control token, {shown!r}"
        if any(self.control_pattern.search(text) for text in example.structured):
            return "a tool call or a tool spells a control token, which the template would write as one"
        return ""

    def _document(self, example: Example) -> list[_Piece]:
        """A text, or a prompt and its answer, between the tokenizer's begin and the end-of-sequence token.

        A text has no prompt: all of it is trained, whatever `train_on` says.
        """
        begin = [_Piece(ids=self.prefix, trained=not example.answer)] if self.prefix else []
        end = [] if example.is_cut else [_Piece(ids=(self.eos_id,))]
        if not example.answer:
            return [*begin, *_split_long(_Piece(text=example.text, begins=True)), *end]
        prompt = _split_long(_Piece(text=example.prompt, trained=False, begins=True)) if example.prompt else []
        return [*begin, *prompt, *_split_long(_Piece(text=example.answer, begins=not prompt)), *end]

    def _chat(self, segments: Sequence[Segment]) -> list[_Piece]:
        atoms: list[_Piece] = []
        for segment in segments:
            if segment.kind == "content":
                atoms.append(_Piece(text=segment.text, trained=segment.trained))
            else:
                atoms += self._control_atoms(segment)
        return [piece for run in self._merged(atoms) for piece in _split_long(run)]

    def _control_atoms(self, segment: Segment) -> Iterator[_Piece]:
        """A template's segment, its control tokens apart."""
        position = 0
        for match in self.control_pattern.finditer(segment.text):
            if match.start() > position:
                yield _Piece(text=segment.text[position : match.start()], trained=segment.trained)
            yield _Piece(ids=(self.control[match[0]][0],), trained=segment.trained)
            position = match.end()
        if position < len(segment.text):
            yield _Piece(text=segment.text[position:], trained=segment.trained)

    def _merged(self, atoms: Sequence[_Piece]) -> list[_Piece]:
        """Neighbouring texts joined unless one is trained and the other not; spaces dropped as control tokens ask."""
        runs: list[_Piece] = []
        for atom in atoms:
            last = runs[-1] if runs else None
            if last and last.text and atom.text and last.trained == atom.trained:
                runs[-1] = replace(last, text=last.text + atom.text)
            elif atom.text or atom.ids:
                runs.append(atom if runs or atom.ids else replace(atom, begins=True))
        tokens = {number: token for number, token in self.control.values()}
        for n, run in enumerate(runs):
            before = runs[n - 1].ids[0] if n and runs[n - 1].ids else None
            after = runs[n + 1].ids[0] if n + 1 < len(runs) and runs[n + 1].ids else None
            text = run.text.lstrip() if before is not None and tokens[before].rstrip else run.text
            text = text.rstrip() if after is not None and tokens[after].lstrip else text
            runs[n] = replace(run, text=text)
        return [run for run in runs if run.text or run.ids]


def _as_given(example: Example) -> list[_Piece]:
    """Ids that came with the data, with the mask that came with them, whatever `train_on` says."""
    pairs = zip(example.token_ids, example.loss_mask, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [_Piece(ids=tuple(token_id for token_id, _ in run), trained=trained) for trained, run in runs]


def _split_long(piece: _Piece) -> list[_Piece]:
    """The piece, or several of at most MAX_PIECE_CHARACTERS that end at a line or a word."""
    pieces = []
    while len(piece.text) > MAX_PIECE_CHARACTERS:
        cut = max(piece.text.rfind("\n", 1, MAX_PIECE_CHARACTERS), piece.text.rfind(" ", 1, MAX_PIECE_CHARACTERS) - 1)
        cut = cut + 1 if cut > 0 else MAX_PIECE_CHARACTERS
        pieces.append(replace(piece, text=piece.text[:cut]))
        piece = replace(piece, text=piece.text[cut:], begins=False)
    return [*pieces, piece]


def _plain_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A copy that takes control tokens for plain text and neither cuts nor pads."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    backend.add_tokens([tokenizers.AddedToken(_MIDDLE, special=False, normalized=False)])
    return backend


def _prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: nothing, or the begin-of-sequence token."""
    backend = tokenizer.backend_tokenizer
    framed, bare = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
    start = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
    return tuple(framed[:start])


def _eos_id(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigError("CONFIG", "the tokenizer has no end-of-sequence token; set eos_token in its folder")
    return tokenizer.eos_token_id


def _reject(example: Example, reason: str) -> Reject:
    return Reject(source=example.source, name=example.name, reason=reason)
