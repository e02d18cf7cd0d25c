"""Recipes as plain trees, for the tests of recipes: a minimal one and its changed parts."""

from typing import Any

import pytest

from tutelage.errors import ConfigError
from tutelage.recipe import load_recipe

MINIMAL: dict[str, Any] = {
    "teacher": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "student": {"layers": 20},
    "data": {"sources": [{"text": "corpus/*.txt"}]},
    "loss": "forward_kl",
    "training": {"tokens": 2_000_000},
}
KNOWN_DIVERGENCES = "known: forward_kl, reverse_kl, jensen_shannon, skew_kl, skew_reverse_kl, total_variation"
CHAT = {"sources": [{"jsonl": "chat.jsonl", "messages": "messages"}]}
TRAINING_FIELDS = (
    "known: tokens, steps, epochs, batch_tokens, micro_batch, learning_rate, schedule, warmup, decay, weight_decay, "
    "betas, max_grad_norm, precision, seed, gradient_checkpointing, compile, ema, evaluate_every, save_every, keep, "
    "early_stop, device, threads, chunk, log_every, track, callbacks, save_dtype"
)


def problems(recipe: Any, *overrides: str) -> list[str]:
    """What the one error line lists."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    assert caught.value.code == "CONFIG"
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    count, _, rest = caught.value.message.partition(" in recipe: ")
    assert count in ("1 problem", f"{count.split()[0]} problems")
    return [line for line in rest.split("; ") if not line.startswith(("remove it", "known:", "it knows"))]


def loss(**term: Any) -> dict[str, Any]:
    return {"loss": [{"divergence": "forward_kl", **term}]}


def training(**fields: Any) -> dict[str, Any]:
    return {"training": {"tokens": 2_000_000, **fields}}


def data(**fields: Any) -> dict[str, Any]:
    return {"data": {**MINIMAL["data"], **fields}}


def error_of(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe({**MINIMAL, **changes})
    return caught.value.message.removeprefix("1 problem in recipe: ")
