"""A recipe whose student learns what a scripted teacher writes; conftest.py has its fixtures: `student`, `server`."""

import json
from pathlib import Path

import yaml

from tests.instruments.endpoint import Action
from tests.verbs import tiny_runs

TRAINING = {
    "steps": 4,
    "batch_tokens": 128,
    "micro_batch": 1,
    "learning_rate": 1e-2,
    "precision": "float32",
    "threads": 1,
}


def answering(n: int, body: dict[str, object]) -> Action:
    """A teacher that repeats the second word."""
    asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
    return Action(
        text=f" the {asked.split()[1]}."
        if "prompt" in body
        else f"It was the {asked.split()[1]} {body.get('seed', '')}."
    )


def written(folder: Path, student: Path, url: str, *, api: bool = True, **generate: object) -> Path:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in tiny_runs.documents(24)))
    whole = {
        "teacher": {"answers": "answers"} | ({"api": {"base_url": url, "model": "m", "terms": "own"}} if api else {}),
        "student": str(student),
        "data": {"held_out": 0.25, "max_length": 128},
        "loss": "cross_entropy",
        "training": TRAINING,
        "generate": {"prompts": "prompts.jsonl", "samples": 2, "max_requests": 100, "max_tokens": 20, **generate},
        "evaluation": {"prompts": []},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path
