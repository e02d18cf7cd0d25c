"""The corpus of a recipe: its sources as stores, the split, the training batches and the evaluation sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage import console, io
from tutelage.data import build as store_builder
from tutelage.data import split as splits
from tutelage.data.curriculum import Curriculum
from tutelage.data.loader import EvaluationBatch, Loader, evaluation_batches
from tutelage.data.sources import SourceSpec
from tutelage.data.store import Store
from tutelage.models import vocabulary
from tutelage.models.template import Renderer
from tutelage.recipe import Recipe, Source
from tutelage.training.plan import rows_per_step
from tutelage.types import Batch

Examples = Mapping[str, Sequence[object]]  # objects in memory, by the source's `memory` fingerprint
# field of a recipe's source -> kind of the data room
_KINDS = {
    "text": "text",
    "jsonl": "jsonl",
    "parquet": "parquet",
    "hub": "hub",
    "answers": "answers",
    "python_docs": "python_docs",
    "python_source": "python_source",
    "memory": "examples",
}


def _all_sources(recipe: Recipe) -> tuple[Source, ...]:
    """Those that are trained on, and those that are only measured."""
    held_out = recipe.data.held_out.sources if recipe.data.held_out is not None else None
    return (*recipe.data.sources, *(held_out or ()), *recipe.evaluation.out_of_domain)


def _renderer(recipe: Recipe, tokenizer: Any) -> Renderer | None:
    """The chat template in its sandbox; None where the data cannot hold a conversation."""
    if not any(source.has_columns or source.memory or source.answers for source in _all_sources(recipe)):
        return None
    return Renderer.of(tokenizer, template=recipe.data.chat_template)


def source_spec(source: Source, *, examples: Sequence[object] = (), reasoning: bool = False) -> SourceSpec:
    """A recipe's source as the data room reads it; `reasoning`: answers are learned with it."""
    columns = {
        name: value
        for name, value in (source.columns.model_dump() if source.columns is not None else {}).items()
        if value is not None
    }
    one = source.answers or source.hub
    return SourceSpec(
        kind=next(_KINDS[kind] for kind in _KINDS if getattr(source, kind)),
        patterns=source.text or source.jsonl or source.parquet or ((one,) if one else ()),
        subset=source.subset,
        split=source.split or "train",
        revision=source.revision,
        examples=examples,
        columns=columns,
        separator=source.separator or "",
        limit=source.limit,
        weight=source.weight,
        name=source.name or "",
        reasoning=reasoning and source.answers is not None,
    )


def _say_what_is_chosen(sources: Sequence[Source]) -> None:
    named = [spec.label for spec in map(source_spec, sources) if "chosen" in spec.columns]
    if named:
        which = f"the chosen answers of {', '.join(named)} are learned, and the rejected ones not read"
        console.note("PREFERENCE", f"{which}: this is no preference training")


# --- the corpus ---
class Corpus:
    """The recipe's stores, the split, and the batches made from them."""

    def __init__(self, recipe: Recipe, tokenizer: Any, *, examples: Examples) -> None:
        self._recipe, self.tokenizer, self._examples = recipe, tokenizer, examples
        self.fingerprint = vocabulary.tokenizer_fingerprint(tokenizer)
        self._renderer = _renderer(recipe, tokenizer)
        self._kept: dict[str, tuple[Store, splits.Rows]] = {}
        given = recipe.training.micro_batch
        self.micro_batch = given if isinstance(given, int) else None  # windows; None: all of a step
        self.packed = True  # several documents in a row, as long as every model keeps them apart
        _say_what_is_chosen(recipe.data.sources)
        self.store = self._build(recipe.data.sources)
        self.held_out_store = self.store
        held_out = recipe.data.held_out
        if held_out is not None and held_out.sources is not None:
            self.held_out_store = self._build(held_out.sources)
            self.split = splits.by_sources(self.store, self.held_out_store, share=held_out.share)
        else:
            share = held_out.share if held_out is not None else None
            self.split = splits.by_share(self.store, share or 0.0)
        self._out_of_domain = self._build(recipe.evaluation.out_of_domain) if recipe.evaluation.out_of_domain else None

    def _build(self, sources: Sequence[Source]) -> Store:
        data = self._recipe.data
        return store_builder.build(
            [self._spec(source) for source in sources],
            self.tokenizer,
            fingerprint=self.fingerprint,
            max_length=data.max_length,
            renderer=self._renderer,
            train_on=data.train_on,
            control_text=data.control_text,
            max_reject=data.max_reject,
        )

    def _spec(self, source: Source) -> SourceSpec:
        examples = self._examples[source.memory] if source.memory is not None else ()
        return source_spec(source, examples=examples, reasoning=self._recipe.data.reasoning == "think")

    def probe(self, n_tokens: int) -> list[Batch]:
        """The first windows of the training data, about so many tokens."""
        windows = max(1, n_tokens // self._recipe.data.max_length)
        return self.loader(windows_per_step=windows, micro_batch=windows).step(0)

    @property
    def template(self) -> str:
        """Fingerprint of the chat template that conversations are rendered with; empty where the data have none."""
        if self._renderer is None:
            return ""
        return self._renderer.fingerprint

    @property
    def pad_id(self) -> int:
        """Any id serves: padding is never attended to nor trained on."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def loader(
        self,
        *,
        windows_per_step: int | None = None,
        micro_batch: int | None = None,
        curriculum: Curriculum | None = None,
    ) -> Loader:
        """Batches of the training rows, as the recipe says but for what is given."""
        training, max_length = self._recipe.training, self._recipe.data.max_length
        windows = windows_per_step or rows_per_step(training, max_length=max_length)
        return Loader(
            self.store,
            rows=self.split.train,
            max_length=max_length,
            rows_per_step=windows,
            micro_batch=micro_batch or self.micro_batch or windows,
            seed=training.seed,
            fingerprint=self.fingerprint,
            pad_id=self.pad_id,
            weights=[source.weight for source in self._recipe.data.sources],
            packed=self.packed,
            by_tokens=self._recipe.data.mix == "tokens",
            curriculum=curriculum,
        )

    def keep_training_rows(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Leave out the training rows that are not chosen."""
        self.split = replace(self.split, train=self.split.train[chosen])

    def keep_measured_rows(self, name: str, chosen: npt.NDArray[np.bool_]) -> None:
        """Leave out the rows of a set of `measured_rows` that are not chosen."""
        store, rows = self.measured_rows()[name]
        self._kept[name] = (store, rows[chosen])

    def measured_rows(self) -> dict[str, tuple[Store, splits.Rows]]:
        """Name -> store and row numbers to measure on: `held_out` and `out_of_domain`, as far as there are."""
        sets: dict[str, tuple[Store, splits.Rows]] = {}
        limit = self._recipe.evaluation.rows
        if len(self.split.held_out):
            sets["held_out"] = (self.held_out_store, _spread(self.split.held_out, limit))
        if self._out_of_domain is not None:
            rows = splits.by_share(self._out_of_domain, 0.0).train
            sets["out_of_domain"] = (self._out_of_domain, _spread(rows, limit))
        return {name: found for name, found in {**sets, **self._kept}.items() if len(found[1])}

    def evaluation_sets(self) -> dict[str, Callable[[], list[EvaluationBatch]]]:
        """Name -> function that gives the batches of `measured_rows`, made once."""
        return {name: self._evaluation(store, rows) for name, (store, rows) in self.measured_rows().items()}

    def _evaluation(self, store: Store, rows: splits.Rows) -> Callable[[], list[EvaluationBatch]]:
        training, max_length = self._recipe.training, self._recipe.data.max_length
        windows = self.micro_batch or rows_per_step(training, max_length=max_length)
        made: list[EvaluationBatch] = []

        def batches() -> list[EvaluationBatch]:
            if not made:
                made.extend(
                    evaluation_batches(
                        store,
                        rows=rows,
                        max_length=max_length,
                        micro_batch=windows,
                        fingerprint=self.fingerprint,
                        pad_id=self.pad_id,
                        packed=self.packed,
                    )
                )
            return made

        return batches

    def identity(self, order: Curriculum | None) -> io.Json:
        """What the data were and in which order they come, for a resume to compare."""
        stores = {"store": Path(self.store.path).name, "held_out": Path(self.held_out_store.path).name}
        return {**stores, "order": order.fingerprint} if order is not None else stores


def _spread(rows: splits.Rows, limit: int | None) -> splits.Rows:
    """At most `limit` rows, spread evenly over all of them."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[[i * len(rows) // limit for i in range(limit)]]
