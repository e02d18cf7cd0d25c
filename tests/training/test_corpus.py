"""The corpus of a recipe: which of its sources are rendered as conversations."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.verbs import tiny_runs
from tutelage.recipe import Recipe, load_recipe
from tutelage.training.corpus import Corpus


def recipe(folder: Path, *, data: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    """Plain text to train on, and a file of conversations beside it."""
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in tiny_runs.chats(12)))
    (folder / "plain.txt").write_text("\n\n".join(tiny_runs.documents(12)))
    source = {"text": str(folder / "plain.txt"), "separator": "\n\n"}
    return load_recipe(
        {
            "teacher": "/teacher",
            "student": {"layers": 2},
            "data": {"sources": [source], "held_out": None, "max_length": 64, **(data or {})},
            "loss": "forward_kl",
            "training": {"steps": 2, "batch_tokens": 64},
            **fields,
        }
    )


@pytest.mark.parametrize("place", ["held_out", "out_of_domain"])
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"])
def test_conversations_are_measured_beside_plain_text_that_is_trained(tmp_path, place, template):
    chats = [{"jsonl": str(tmp_path / "chats.jsonl"), "messages": "messages"}]
    data: dict[str, Any] = {"chat_template": template, "train_on": "answers"}
    given = recipe(
        tmp_path,
        data={**data, "held_out": chats} if place == "held_out" else data,
        **({"evaluation": {"out_of_domain": chats}} if place == "out_of_domain" else {}),
    )
    tokenizer = tiny_runs.tokenizer()
    corpus = Corpus(given, tokenizer, examples={})
    store, rows = corpus.measured_rows()[place]
    assert len(rows) == store.manifest.n_examples == 12 and store.manifest.n_rejects == 0
    row = store.row(int(rows[0]))
    text = tokenizer.decode(row.ids)
    assert text.startswith("user: " if template else "<|im_start|>user\n")
    assert not row.loss_mask.all() and row.loss_mask.any()
