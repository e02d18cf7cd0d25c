"""Builds the store of some sources once, or opens the one that is there."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage import console, io
from tutelage.data import sources, store
from tutelage.data.example import Example, Reject
from tutelage.data.places import stamp_of
from tutelage.data.sources import SourceSpec
from tutelage.data.store import Manifest, Store
from tutelage.data.tokenize import Encoder, Renderer, Tokenizer, TokenRow, TrainOn, windows
from tutelage.errors import IntegrityError
from tutelage.home import home
from tutelage.locks import exclusive

ControlText = Literal["encode", "reject"]
Progress = Callable[[int, int], None]  # documents and tokens so far

SHARD_TOKENS = 1 << 24  # 80 MB in memory while it fills
BATCH_CHARACTERS = 1 << 20  # encoded together, on all cores
N_HOPELESS = 1000  # when all of the first rows are defective, the rest need not be read


def build(
    specs: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    *,
    fingerprint: str,
    max_length: int,
    renderer: Renderer | None = None,
    train_on: TrainOn = "all",
    control_text: ControlText = "encode",
    max_reject: float = 0.01,
    reject_path: Path | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Store:
    """The store of these sources for this tokenizer (whose fingerprint the caller knows): opened if it is there.

    Rejected rows go to `reject_path` too; IntegrityError[TOO_MANY_REJECTS] when their share is above `max_reject`,
    [NO_TOKENS] when nothing is left, [DATA_READ] when a file cannot be read.
    """
    encoder = Encoder(tokenizer, renderer=renderer, train_on=train_on)
    before = _stamps(specs)
    settings = {
        "format": store.FORMAT_VERSION,
        "sources": [sources.content(spec) for spec in specs],
        "tokenizer": fingerprint,
        "encoder": encoder.settings,
        "max_length": max_length,
        "control_text": control_text,
    }
    path = home() / "data" / store.key_of(settings)
    rejects_to = reject_path or path.with_name(f"{path.name}.{store.REJECTS}")
    with exclusive(path.with_name(f"{path.name}.lock"), what="the same text"):
        if not path.is_dir():
            partial = _fresh(path)
            writer = _Writer(
                partial,
                max_length=max_length,
                shard_tokens=shard_tokens,
                control_text=control_text,
                progress=progress or (lambda n_documents, n_tokens: None),
            )
            writer.take(specs, encoder, rejects_to=rejects_to, max_reject=max_reject)
            if _stamps(specs) != before:
                raise IntegrityError("DATA_READ", "an input file changed while it was read; run the same command again")
            writer.finish(settings, [spec.label for spec in specs])
            io.commit_directory(partial, path)
    built = store.open_store(path)
    _report(built, rejects_to=rejects_to, max_reject=max_reject)
    return built


def _stamps(specs: Sequence[SourceSpec]) -> list[tuple[object, ...]]:
    return [stamp_of(place) for place in sources.input_files(specs)]


def _fresh(path: Path) -> Path:
    """An empty folder to build in; what a killed build left there is removed."""
    partial = path.with_name(f"{path.name}.partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    return partial


class _Writer:
    """Fills the folder of a store, one shard in memory at a time."""

    def __init__(
        self, folder: Path, *, max_length: int, shard_tokens: int, control_text: ControlText, progress: Progress
    ) -> None:
        self.folder = folder
        self.max_length, self.max_shard_tokens = max_length, shard_tokens
        self.control_text, self.progress = control_text, progress
        self.pending: list[TokenRow] = []
        self.n_pending = 0
        self.shard_tokens: list[int] = []
        self.sha256: dict[str, str] = {}
        self.records = bytearray()
        self.names: list[str] = []
        self.rejects: list[Reject] = []
        self.n_examples = self.n_control_text = 0

    def take(self, specs: Sequence[SourceSpec], encoder: Encoder, *, rejects_to: Path, max_reject: float) -> None:
        """Reads and encodes everything."""
        for number, spec in enumerate(specs):
            for batch in _batches(sources.read(spec)):
                self._take_batch(batch, encoder, source=number)
                if len(self.rejects) == self.n_examples >= N_HOPELESS:
                    break
        _check_rejects(self.rejects, n_examples=self.n_examples, max_reject=max_reject, path=rejects_to)

    def _take_batch(self, batch: Sequence[Example | Reject], encoder: Encoder, *, source: int) -> None:
        self.n_examples += len(batch)
        self.rejects += [item for item in batch if isinstance(item, Reject)]
        examples = []
        for example in (item for item in batch if isinstance(item, Example)):
            spelled = encoder.has_control_text(example)
            self.n_control_text += spelled
            if spelled and self.control_text == "reject":
                reason = "the text spells a control token (control_text: reject)"
                self.rejects.append(Reject(source=example.source, name=example.name, reason=reason))
            else:
                examples.append(example)
        for example, row in zip(examples, encoder.encode(examples), strict=True):
            if isinstance(row, Reject):
                self.rejects.append(row)
            else:
                self._add(example, row, source=source)
        self.progress(self.n_examples, sum(self.shard_tokens) + self.n_pending)

    def _add(self, example: Example, row: TokenRow, *, source: int) -> None:
        for window in windows(row, self.max_length):
            length = len(window.ids)
            if self.n_pending + length > self.max_shard_tokens and self.pending:
                self._write_shard()
            place = (len(self.names), len(self.shard_tokens), self.n_pending, length, int(window.loss_mask[1:].sum()))
            record = np.array((store.key_of_row(window), example.document, *place, source), dtype=store.ROW)
            self.records += record.tobytes()
            self.pending.append(window)
            self.n_pending += length
        self.names.append(example.name)

    def _write_shard(self) -> None:
        ids = np.concatenate([row.ids for row in self.pending]).astype("<u4")
        mask = np.concatenate([row.loss_mask for row in self.pending]).astype("u1")
        self._write(store.shard_name(len(self.shard_tokens)), [ids.tobytes(), mask.tobytes()])
        self.shard_tokens.append(self.n_pending)
        self.pending, self.n_pending = [], 0

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        self.sha256[name] = io.write_new(self.folder / name, pieces).sha256

    def finish(self, settings: dict[str, object], labels: Sequence[str]) -> None:
        """Writes what is left, and the manifest last."""
        if self.pending:
            self._write_shard()
        rows = np.array(memoryview(self.records)).view(store.ROW)
        if not rows["n_trained"].any():
            raise IntegrityError(
                "NO_TOKENS",
                f"0 trainable tokens in {self.n_examples} rows of {', '.join(labels)}; "
                "check data.train_on, data.max_length and the columns",
            )
        self._write(store.ROWS, [store.array_bytes(rows)])
        self._write(store.NAMES, [store.names_bytes(self.names)])
        self._write(store.REJECTS, [_reject_lines(self.rejects).encode()])
        manifest = Manifest(
            format_version=store.FORMAT_VERSION,
            settings=settings,
            sources=tuple(labels),
            n_examples=self.n_examples,
            n_rejects=len(self.rejects),
            n_control_text=self.n_control_text,
            n_tokens=sum(self.shard_tokens),
            n_rows=len(rows),
            shard_tokens=tuple(self.shard_tokens),
            sha256=self.sha256,
        )
        signed = manifest.model_copy(update={"sha256_of_this": manifest.checksum()})
        io.write_json(self.folder / store.MANIFEST, signed.model_dump(mode="json"))


def _batches(stream: Iterator[Example | Reject]) -> Iterator[list[Example | Reject]]:
    """The stream in lists of about BATCH_CHARACTERS."""
    batch: list[Example | Reject] = []
    n_characters = 0
    for item in stream:
        batch.append(item)
        n_characters += 100 + (sum(map(len, item.contents)) if isinstance(item, Example) else 0)
        if n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _check_rejects(rejects: Sequence[Reject], *, n_examples: int, max_reject: float, path: Path) -> None:
    """Too many rejects are an error, and the rows stand in a file."""
    if n_examples and len(rejects) <= max_reject * n_examples:
        return
    if not n_examples:
        raise IntegrityError("DATA_READ", "the sources hold no document; check data.sources")
    io.write_text(path, _reject_lines(rejects))
    raise _too_many(len(rejects), n_examples, first=rejects[0], path=path)


def _too_many(n_rejects: int, n_examples: int, *, first: Reject, path: Path) -> IntegrityError:
    return IntegrityError(
        "TOO_MANY_REJECTS",
        f"{n_rejects} of {n_examples} rows rejected (first: {first.name}, {first.reason}); see {path}, "
        "repair the rows or raise data.max_reject",
    )


def _reject_lines(rejects: Sequence[Reject]) -> str:
    return "".join(json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)


def _report(built: Store, *, rejects_to: Path, max_reject: float) -> None:
    """Says on stderr what was left out or looks odd; a store that is reused says it again."""
    manifest = built.manifest
    rejected = (built.path / store.REJECTS).read_text(encoding="utf-8")
    if manifest.n_rejects:
        first = Reject(**json.loads(rejected.split("\n", 1)[0]))
        io.write_text(rejects_to, rejected)
        if manifest.n_rejects > max_reject * manifest.n_examples:
            raise _too_many(manifest.n_rejects, manifest.n_examples, first=first, path=rejects_to)
        what = f"{manifest.n_rejects} of {manifest.n_examples} rows rejected"
        console.warning("REJECTED", f"{what} (first: {first.name}, {first.reason}); see {rejects_to}")
    if manifest.n_control_text and manifest.settings["control_text"] == "encode":
        what = f"{manifest.n_control_text} rows contain control-token text, encoded as plain text"
        console.warning("CONTROL_TEXT", f"{what}; data.control_text=reject leaves them out")
