"""Tiny BPE tokenizers and a ChatML template of the tests' own, and stores of given rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tutelage.data.build import build
from tutelage.data.sources import SourceSpec
from tutelage.data.store import Store
from tutelage.errors import IntegrityError

BOS, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
TEXT = ["the cat sat on the mat and the dog sat on the log", "what is the answer? the answer is yes, of course it is"]


@cache
def tokenizer(*, adds_bos: bool = False, pad_is_end: bool = True, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """A BPE of about 300 tokens; byte level, or with ▁ before the first word of a text."""
    backend = Tokenizer(models.BPE(byte_fallback=metaspace))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if not metaspace else list("abcdefghijklmnopqrstuvwxyz:?,.\n▁")
    special = [AddedToken(t, special=True, normalized=False) for t in (BOS, END, PAD)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 40, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=END, pad_token=END if pad_is_end else PAD
    )


@dataclass(frozen=True)
class Segment:
    text: str
    kind: str
    role: str
    trained: bool


@dataclass(frozen=True)
class ChatML:
    """<|im_start|>role, a line feed, the content, <|im_end|>, a line feed; what ends an answer is trained."""

    fingerprint: str = "chatml"

    def render_many(self, conversations: Sequence[Sequence[Mapping[str, str]]], *, tools=()) -> list[list[Segment]]:
        return [[s for message in messages for s in self.turn(**message)] for messages in conversations]

    def turn(self, *, role: str, content: str) -> list[Segment]:
        if role == "refused":
            raise IntegrityError("TEMPLATE", "the template refuses this role")
        answer = role == "assistant"
        return [
            Segment(f"{BOS}{role}\n", "template", role, False),
            Segment(content, "content", role, answer),
            Segment(END, "template", role, answer),
            Segment("\n", "template", role, False),
        ]


def store_of(
    rows: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]] | None = None, *, max_length: int = 64, **settings
) -> Store:
    """A store that holds these rows as they are (longer ones in windows)."""
    examples = [
        {"token_ids": list(ids), "loss_mask": list(masks[n]) if masks else [True] * len(ids)}
        for n, ids in enumerate(rows)
    ]
    return build_tiny([SourceSpec(kind="examples", examples=examples)], max_length=max_length, **settings)


def build_tiny(specs: Sequence[SourceSpec], *, max_length: int = 64, **settings) -> Store:
    return build(specs, tokenizer(), fingerprint="tiny", max_length=max_length, **settings)
