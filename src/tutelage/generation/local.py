"""A model on this machine as a teacher: it writes what has no answer yet, and the journal keeps it as it keeps others.

Requests are written in rounds that follow from the recipe alone, and a round becomes durable as one group of the
journal: wherever it is killed, it goes on with the same rounds and ends in the same bytes.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from tutelage import console, randomness
from tutelage.data.tokenize import Encoder
from tutelage.errors import ConfigError
from tutelage.generation import reply as replies
from tutelage.generation.decode import Decoder, Wish, Written
from tutelage.generation.journal import Fields, Journal
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import Ledger
from tutelage.generation.request import Request
from tutelage.generation.stop_sign import StopSign
from tutelage.generation.work import body_fields, now
from tutelage.generation.writers import Local, Writer
from tutelage.models import head, load, vocabulary
from tutelage.models.cast import cast
from tutelage.models.template import Renderer
from tutelage.training.precision import choose_compute_path, choose_device

ROWS = 16  # that are written at once, unless the recipe says
MOST_PADDED = 1 << 14  # tokens of the prompts of a round, padding included: memory of the first pass
_WINDOW = 8  # rounds whose requests are sorted by length before they are cut apart
_LIBRARIES = ("torch", "transformers", "tokenizers")


def compute_of(local: Local, recorded: dict[str, str] | None) -> dict[str, str]:
    """Device and number format: those recorded for these answers before, else chosen now (measured on a CPU).

    ConfigError[RESUME_MISMATCH] when that device is not here; another one, named in the recipe, is noted and recorded.
    """
    if recorded is not None and local.device in ("auto", recorded["device"]):
        _require_there(local, recorded["device"])
        if local.dtype == "auto":
            return recorded
    found = _chosen(local)
    if recorded is None or found["device"] == recorded["device"]:
        return found
    before = f"{recorded['device']} ({recorded['dtype']})"
    what = f"answers of {local.model} were begun on {before}, the rest is written on {found['device']}"
    console.note("RESUMED", f"{what} ({found['dtype']}), as the recipe says; the card names both")
    return {**found, "before": before}


def _require_there(local: Local, device: str) -> None:
    try:
        choose_device(device)
    except ConfigError as error:
        raise ConfigError(
            "RESUME_MISMATCH",
            f"the unfinished answers of {local.model} were begun on {device}, which this machine lacks: the rest would "
            "be rounded otherwise; go on there, or name another device in the recipe, such as teacher.device=cpu",
        ) from error


def _chosen(local: Local) -> dict[str, str]:
    path = choose_compute_path("auto" if local.dtype == "auto" else "float32", device=local.device)
    dtype = str(path.weight_dtype).removeprefix("torch.") if local.dtype == "auto" else local.dtype
    return {"device": path.device, "dtype": dtype}


def versions() -> dict[str, str]:
    """Of the libraries whose arithmetic decides what a model writes."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(slots=True)
class _Speed:
    """Tokens a second over everything that was written."""

    n: int = 0
    seconds: float = 0.0
    _began: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        self._began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - self._began

    def __str__(self) -> str:
        seconds = self.seconds + (time.monotonic() - self._began)
        return f"{self.n / max(seconds, 1e-9):.0f} tokens/s"


class LocalWork:
    """One run of a model over requests; `run` gives how many answers it wrote."""

    def __init__(self, writer: Writer, *, compute: Mapping[str, str], rows: int | None) -> None:
        assert writer.local is not None
        local, self._writer, self._rows = writer.local, writer, rows or ROWS
        self.tokenizer = load.load_tokenizer(local.model, revision=local.revision)
        self._renderer = Renderer.of(self.tokenizer)
        self._encoder = Encoder(self.tokenizer, renderer=self._renderer)
        model: Any = load.load_model(local.model, revision=local.revision, dtype="auto", device="cpu")
        cast(model, getattr(torch, compute["dtype"]), device=compute["device"])
        n_vocabulary = vocabulary.real_vocabulary(self.tokenizer)
        head.verify_head(model, n_vocabulary=n_vocabulary)
        self._longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._decoder = Decoder(model, n_vocabulary=n_vocabulary, ends=_ends(model, self.tokenizer))
        probe = head.spread_ids(n_vocabulary)[0, :4].tolist()
        if self._rows > 1 and self._decoder.feels_padding(probe):
            console.warning(
                "SLOW", f"{writer.model}: padding changes what it writes, so it writes one answer at a time"
            )
            self._rows = 1

    def run(self, requests: Iterable[Request], *, journal: Journal, ledger: Ledger, bar: console.Progress) -> int:
        """Writes every answer that is not there; Stopped by the first signal, without the round under way."""
        n_written, stop = 0, StopSign(bar.total)
        speed = _Speed()

        def on_step(n: int) -> None:
            stop.heed(len(ledger.final))
            speed.n += n
            bar.update(bar.done, str(speed))

        with stop.armed():
            for asked in self._rounds(requests, is_final=lambda request: request.key in ledger.final):
                with speed.clock():
                    bodies = self._bodies(asked, on_step=on_step)
                for record in journal.commit(_records([request for request, _ in asked], bodies, ledger.next_id)):
                    ledger.apply(record)
                n_written += len(asked)
                bar.advance(len(asked), str(speed))
        return n_written

    # --- rounds ---
    def _rounds(
        self, requests: Iterable[Request], *, is_final: Callable[[Request], bool]
    ) -> Iterator[list[tuple[Request, list[int]]]]:
        """What is written together: cut from all requests, whether they are answered or not, then what is open."""
        for window in _windows(requests, self._rows * _WINDOW):
            if all(is_final(request) for request in window):
                continue
            prompts = list(zip(window, self._encoded(window), strict=True))
            prompts.sort(key=lambda pair: len(pair[1]))  # stable: of one length in the order of the recipe
            for together in _cut(prompts, most_rows=self._rows):
                if opened := [pair for pair in together if not is_final(pair[0])]:
                    yield opened

    def _encoded(self, requests: Sequence[Request]) -> list[list[int]]:
        """The ids of each prompt, as the student's training has them."""
        chats = [[{"role": r, "content": c} for r, c in request.prompt.messages] for request in requests]
        if any(chats) and self._renderer is None:
            raise ConfigError(
                "TEMPLATE", f"{self._writer.model} has no chat template; use generate.interface: completions"
            )
        found = []
        rendered = iter(self._rendered([chat for chat in chats if chat]))
        for request, chat in zip(requests, chats, strict=True):
            found.append(self._encoder.prompt_ids(chat=next(rendered) if chat else (), text=request.prompt.text))
        return found

    def _rendered(self, chats: list[list[dict[str, str]]]) -> list[Any]:
        if not chats:
            return []
        assert self._renderer is not None
        return list(self._renderer.render_many(chats, add_generation_prompt=True))

    # --- one round ---
    def _bodies(self, asked: Sequence[tuple[Request, list[int]]], *, on_step: Callable[[int], None]) -> list[bytes]:
        """The reply to each request, in the form of an endpoint's."""
        fits = [self._fits(request, ids) for request, ids in asked]
        wishes = [_wish(request, ids) for (request, ids), fit in zip(asked, fits, strict=True) if fit]
        written = iter(self._decoder.write(wishes, on_step=on_step) if wishes else ())
        return [
            self._body(request, ids, next(written)) if fit else b""
            for (request, ids), fit in zip(asked, fits, strict=True)
        ]

    def _fits(self, request: Request, ids: Sequence[int]) -> bool:
        return self._longest is None or len(ids) + request.sampling.max_tokens <= self._longest

    def _body(self, request: Request, ids: Sequence[int], written: Written) -> bytes:
        text, finish = self._text(ids, written), "stop" if written.ended else "length"
        said: dict[str, Any] = {"text": text}
        if request.prompt.messages:
            said = {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written.ids) + written.ended}
        reply = {"model": self._writer.model, "choices": [{**said, "finish_reason": finish}], "usage": usage}
        return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()

    def _text(self, ids: Sequence[int], written: Written) -> str:
        """The text where it stands: alone, some tokenizers drop its leading space.  Half a character is no text."""
        control = set(self.tokenizer.all_special_ids)
        made = [token for token in written.ids if token not in control]
        last = list(ids[-1:])
        before, both = vocabulary.decoded(self.tokenizer, last), vocabulary.decoded(self.tokenizer, last + made)
        text = both[len(before) :] if both.startswith(before) else vocabulary.decoded(self.tokenizer, made)
        return text if written.ended else text.rstrip("\ufffd")


def _wish(request: Request, ids: Sequence[int]) -> Wish:
    """The luck of a request follows from the request alone: its model, prompt, sample and seed."""
    temperature = request.sampling.temperature
    return Wish(
        ids=ids,
        most=request.sampling.max_tokens,
        temperature=1.0 if temperature is None else temperature,
        draw=randomness.generator(request.sampling.seed or 0, "generate", request.key),
    )


def _records(requests: Sequence[Request], bodies: Sequence[bytes], first_id: int) -> list[tuple[str, Fields]]:
    """What the journal is told of a round: as of an endpoint's replies, and that nothing is paid."""
    records: list[tuple[str, Fields]] = []
    for number, (request, body) in enumerate(zip(requests, bodies, strict=True), start=first_id):
        status = 200 if body else 400
        body = body or b'{"error":{"code":"context_length_exceeded"}}'
        reply = replies.parse(body, status=status)
        same: dict[str, Any] = {"id": number, "key": request.key}
        records.append(("reserved", {**same, "amount": 0}))
        records.append(("answered", {**same, "at": now(), "status": status, **body_fields(body)}))
        records.append(("parsed", {**same, "paid": 0, "spent": False, "outcome": reply.outcome, "final": True}))
    return records


def _windows(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """The different requests, so many at a time."""
    seen, window = KeyTable(), list[Request]()
    for request in requests:
        if seen.add(request.key):
            window.append(request)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _cut(prompts: Sequence[tuple[Request, list[int]]], *, most_rows: int) -> Iterator[list[tuple[Request, list[int]]]]:
    """Rounds of prompts that come in the order of their length."""
    together: list[tuple[Request, list[int]]] = []
    for pair in prompts:
        if len(together) == most_rows or (together and (len(together) + 1) * len(pair[1]) > MOST_PADDED):
            yield together
            together = []
        together.append(pair)
    yield together


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids on which the model stops."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    return frozenset(int(number) for number in ends if number is not None)
