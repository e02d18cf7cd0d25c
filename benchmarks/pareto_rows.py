"""Rows of real text with a real teacher's hidden states: prose, documentation, and chat answers of the teacher itself.

Shape legend: B rows, T positions, N trained positions of all rows, D hidden size.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # transformers is untyped

import numpy as np
import torch
from torch import Tensor

from tutelage.cache.codec import Positions, Sample
from tutelage.data.standard_library import read_docs
from tutelage.models.head import head_of
from tutelage.models.load import load_model, load_tokenizer
from tutelage.models.vocabulary import real_vocabulary
from tutelage.types import Head

LENGTH, ROWS_AT_ONCE = 512, 8
ANSWER_TOKENS, ANSWERS_AT_ONCE = 160, 16


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens, of which those from `start` on are trained."""

    ids: tuple[int, ...]
    start: int = 1

    @property
    def n_trained(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model, and the name that results carry: never a path of this machine."""

    name: str
    model: Any
    tokenizer: Any
    head: Head

    @classmethod
    def load(cls, source: str) -> "Teacher":
        tokenizer, model = load_tokenizer(source), load_model(source, dtype="float32").eval().requires_grad_(False)
        return cls(name_of(source), model, tokenizer, head_of(model, n_vocabulary=real_vocabulary(tokenizer)))


def name_of(source: str) -> str:
    """The last part of a teacher's name, without the ending of a file."""
    return source.removeprefix("package:").rpartition("/")[2].removesuffix(".gguf")


# --- texts -----------------------------------------------------------------------------------------------------------


def documentation() -> Iterator[str]:
    """Python's own: the topics of `help()` and the docstrings."""
    yield from (example.text for example in read_docs("docs"))


def prose(folder: Path) -> Iterator[str]:
    """The .txt files of a folder."""
    for path in sorted(folder.rglob("*.txt")):
        yield path.read_text(encoding="utf-8")


def text_rows(texts: Iterator[str], *, teacher: Teacher) -> Iterator[Row]:
    """Windows of at most LENGTH tokens, each trained from its second token on, in an order of hashes.

    So those that a budget is fitted on come from all documents, as the sample of `tutelage label` does.
    """
    windows = []
    for text in texts:
        ids = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += [tuple(ids[start : start + LENGTH]) for start in range(0, len(ids), LENGTH)]
    windows.sort(key=lambda window: hashlib.sha256(np.array(window).tobytes()).digest())
    yield from (Row(window) for window in windows if len(window) > 1)


def chat_rows(prompts: Path, *, teacher: Teacher, work: Path) -> Iterator[Row]:
    """The teacher's own answers, sampled at temperature 1; kept in a file, so that they are written once."""
    kept = work / f"answers-{teacher.name}.jsonl"
    lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    answered = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for answer in answered:
        yield Row(tuple(answer["ids"]), answer["start"])
    for first in range(len(answered), len(lines), ANSWERS_AT_ONCE):
        rows = _answers([json.loads(line) for line in lines[first : first + ANSWERS_AT_ONCE]], teacher, seed=first)
        work.mkdir(parents=True, exist_ok=True)
        with kept.open("a") as file:
            file.writelines(json.dumps({"ids": row.ids, "start": row.start}) + "\n" for row in rows)
        yield from rows


@torch.no_grad()
def _answers(prompts: Sequence[dict[str, str]], teacher: Teacher, *, seed: int) -> list[Row]:
    texts = [p["prompt"] if "prompt" in p else f"{p['passage']} {p['question']}" for p in prompts]
    asked = [
        teacher.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]
    width = max(map(len, asked))
    pad = teacher.tokenizer.eos_token_id
    ids_BT = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in asked])
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked])
    torch.manual_seed(seed)
    written_BT = teacher.model.generate(
        input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=ANSWER_TOKENS, do_sample=True, temperature=1.0,
        top_k=0, top_p=1.0, pad_token_id=pad,
    )[:, width:].tolist()  # fmt: skip
    rows = []
    for ids, answer in zip(asked, written_BT, strict=True):
        length = answer.index(pad) + 1 if pad in answer else len(answer)
        rows.append(Row((*ids, *answer[:length]), len(ids)))
    print(f"{sum(row.n_trained for row in rows)} tokens of answers", file=sys.stderr)
    return rows


# --- hidden states ---------------------------------------------------------------------------------------------------


def up_to(rows: Iterator[Row], n_positions: int) -> list[Row]:
    """Rows until there are `n_positions` trained positions; the last row is cut to fit."""
    taken: list[Row] = []
    left = n_positions
    for row in rows:
        if left <= 0:
            return taken
        taken.append(Row(row.ids[: row.start + left], row.start))
        left -= taken[-1].n_trained
    if left > 0:
        raise SystemExit(f"the text ends {left} tokens before the {n_positions} positions that were asked for")
    return taken


def sample_of(rows: Sequence[Row], *, teacher: Teacher) -> Sample:
    """The teacher's hidden states at the trained positions, and the tokens there."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    hidden: dict[int, Tensor] = {}
    for batch in (order[i : i + ROWS_AT_ONCE] for i in range(0, len(order), ROWS_AT_ONCE)):
        hidden.update(zip(batch, _forward([rows[i] for i in batch], teacher), strict=True))
    ids = [np.array(row.ids, np.int64) for row in rows]
    seeds = [int.from_bytes(hashlib.sha256(i.tobytes()).digest()[:8], "little") for i in ids]
    positions = Positions(
        current_ids_N=np.concatenate([i[row.start - 1 : -1] for i, row in zip(ids, rows, strict=True)]),
        next_ids_N=np.concatenate([i[row.start :] for i, row in zip(ids, rows, strict=True)]),
        counts_R=np.array([row.n_trained for row in rows]),
        seeds_R=np.array(seeds, np.uint64),
    )
    hidden_ND = torch.cat([hidden[i] for i in range(len(rows))])
    return Sample(hidden_ND=hidden_ND, head=teacher.head, positions=positions)


@torch.no_grad()
def _forward(rows: Sequence[Row], teacher: Teacher) -> list[Tensor]:
    """Padded on the right, where a causal model does not look."""
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
    hidden_BTD = teacher.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return [hidden_BTD[i, row.start - 1 : len(row.ids) - 1].clone() for i, row in enumerate(rows)]
