"""What models write to held-out prompts, or after the beginning of held-out texts: does it repeat itself, does it end?

Greedy, so that the same run gives the same text; that is the worst case for repetition, and the teacher's stands beside
it.  Each number is a ratio over texts (sequences of 4 tokens that stood before, of all; different pairs of tokens, of
all; ends, tokens and valid JSON a text), each difference to the teacher is paired by prompt and corrected by Holm.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import io, reading
from tutelage.evaluation import stats
from tutelage.evaluation.json_values import finite
from tutelage.evaluation.written import write_ids
from tutelage.generation.select.verify import is_json
from tutelage.models import vocabulary
from tutelage.types import Estimate

WRITING, RECORDS = "writing.json", "writing.jsonl"
TOKENS, ENDED, REPEATED, DISTINCT, JSON = "tokens", "ended", "repeated_4", "distinct_2", "valid_json"
METRICS = {TOKENS: "tokens", ENDED: "share", REPEATED: "share", DISTINCT: "share", JSON: "share"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Ids to go on from; `wants_json`: the held-out answer is a JSON object or list."""

    ids: tuple[int, ...]
    wants_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What one model wrote to one prompt; `ended`: by itself, before it was cut."""

    model: str
    prompt: int
    ids: tuple[int, ...]
    ended: bool
    wants_json: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """By model and metric, and what each model's is more than the teacher's."""

    n_prompts: int
    max_tokens: int
    teacher: str | None
    estimates: dict[str, dict[str, Estimate]]
    against_teacher: dict[str, dict[str, stats.Difference]]

    def json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def write_texts(
    models: Mapping[str, nn.Module],
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    n_vocabulary: int,
    max_tokens: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Text]:
    """Every model's text to every prompt."""
    found = []
    for name, model in models.items():
        written = write_ids(
            model,
            tokenizer,
            [prompt.ids for prompt in prompts],
            n_vocabulary=n_vocabulary,
            max_tokens=max_tokens,
            progress=progress,
        )
        found += [
            Text(
                model=name,
                prompt=n,
                ids=tuple(ids),
                ended=len(ids) < max_tokens,
                wants_json=prompt.wants_json,
                text=vocabulary.decoded(tokenizer, ids),
            )
            for n, (prompt, ids) in enumerate(zip(prompts, written, strict=True))
        ]
    return found


def result_of(texts: Sequence[Text], *, max_tokens: int, teacher: str | None) -> Writing:
    """Every number from the texts alone."""
    by_model: dict[str, list[Text]] = {}
    for text in texts:
        by_model.setdefault(text.model, []).append(text)
    counts = {model: {metric: _counts(of_model, metric) for metric in METRICS} for model, of_model in by_model.items()}
    known = [m for m in METRICS if all(sum(whole) > 0 for of_model in counts.values() for _, whole in [of_model[m]])]
    measured = {model: {m: stats.ratio(*of_model[m]) for m in known} for model, of_model in counts.items()}
    return Writing(
        n_prompts=len(next(iter(by_model.values()))),
        max_tokens=max_tokens,
        teacher=teacher,
        estimates={
            model: {m: stats.estimate(found, METRICS[m]) for m, found in of_model.items()}
            for model, of_model in measured.items()
        },
        against_teacher=_against(measured, teacher),
    )


def _counts(texts: Sequence[Text], metric: str) -> tuple[list[float], list[float]]:
    """What is counted in each text, and of how many."""
    if metric == TOKENS:
        return [float(len(text.ids)) for text in texts], [1.0] * len(texts)
    if metric == ENDED:
        return [float(text.ended) for text in texts], [1.0] * len(texts)
    if metric == JSON:  # of a text that was cut nobody knows
        asked = [float(text.wants_json and text.ended) for text in texts]
        return [float(is_json(text.text)) * one for text, one in zip(texts, asked, strict=True)], asked
    n = 4 if metric == REPEATED else 2
    different = [len({text.ids[i : i + n] for i in range(len(text.ids) - n + 1)}) for text in texts]
    whole = [max(len(text.ids) - n + 1, 0) for text in texts]
    if metric == REPEATED:
        return [float(w - d) for w, d in zip(whole, different, strict=True)], [float(w) for w in whole]
    return [float(d) for d in different], [float(w) for w in whole]


def _against(
    measured: Mapping[str, Mapping[str, stats.Measured]], teacher: str | None
) -> dict[str, dict[str, stats.Difference]]:
    if teacher is None:
        return {}
    found = {
        (model, m): stats.difference(of_model[m], measured[teacher][m])
        for model, of_model in measured.items()
        if model != teacher
        for m in of_model
    }
    p_values = stats.holm([one.p for one in found.values()])
    corrected: dict[str, dict[str, stats.Difference]] = {}
    for (model, m), p_value in zip(found, p_values, strict=True):
        corrected.setdefault(model, {})[m] = replace(found[model, m], decided=p_value < stats.ALPHA)
    return corrected


# --- files ---
def write(folder: Path, texts: Sequence[Text], *, max_tokens: int, teacher: str | None) -> Writing:
    """writing.jsonl first, a line a text, then writing.json."""
    result = result_of(texts, max_tokens=max_tokens, teacher=teacher)
    io.write_text(folder / RECORDS, "".join(json.dumps(asdict(text)) + "\n" for text in texts))
    io.write_json(folder / WRITING, result.json())
    return result


def read(folder: Path) -> Writing | None:
    """The result of a folder, from its texts; None where nothing was written."""
    if not (folder / WRITING).is_file():
        return None
    stored = reading.read_json(folder / WRITING)
    with (folder / RECORDS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [Text(**{**row, "ids": tuple(row["ids"])}) for row in rows]
    return result_of(texts, max_tokens=stored["max_tokens"], teacher=stored["teacher"])
