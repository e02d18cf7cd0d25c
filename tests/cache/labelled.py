"""Caches as `tutelage label` makes them, in a second each: a tiny float32 teacher, its text, its store, its start."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import tutelage
from tests.verbs import tiny_runs
from tutelage.cache.reader import TeacherCache
from tutelage.models.load import load_model


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """TUTELAGE_HOME for the body."""
    before = os.environ["TUTELAGE_HOME"]
    os.environ["TUTELAGE_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ["TUTELAGE_HOME"] = before


class Place:
    """A folder with teachers, a corpus, a home and the caches made from them so far; nobody changes what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        tiny_runs.recipe(folder)

    def teacher(self, seed: int = 0) -> Path:
        """A model folder; another seed is another model with the same tokenizer."""
        path = self.folder / ("teacher" if seed == 0 else f"teacher-{seed}")
        return path if path.exists() else tiny_runs.model_folder(path, seed=seed)

    def recipe(self, path: Path, *, seed: int = 0, codec: str = "topk", **cache: Any) -> dict[str, Any]:
        """Trains from a cache at `path`."""
        fields = {"codec": codec, **({"k": 8} if codec == "topk" else {}), **cache}
        teacher = {"model": str(self.teacher(seed)), "cache": str(path)}
        found = tiny_runs.recipe(self.folder, cache={n: v for n, v in fields.items() if v is not None})
        return {**found, "teacher": teacher}

    @cache  # noqa: B019  # one place a session
    def cache(self, codec: str = "topk", *, seed: int = 0, held_out: bool = True, **more: Any) -> Path:
        """The cache that these settings make."""
        path = self.folder / f"cache-{codec}-{seed}-{held_out}-{'-'.join(f'{n}{v}' for n, v in sorted(more.items()))}"
        recipe = self.recipe(path, seed=seed, codec=codec, **more)
        if not held_out:
            recipe["data"] = {**recipe["data"], "held_out": None}
        with home(self.home):
            tutelage.label(recipe)
        return path

    def copy(self, path: Path, target: Path) -> Path:
        """A cache that a test may change."""
        shutil.copytree(path, target)
        return target


def live_logp(place: Place, text: str, *, seed: int = 0) -> Any:
    """Log-probabilities [T, V] that a teacher gives after each token of a text, asked alone."""
    import torch

    model = load_model(str(place.teacher(seed)), dtype="float32")
    own = tiny_runs.tokenizer()
    ids = torch.tensor(own(text, add_special_tokens=False)["input_ids"])[None]
    return torch.log_softmax(model(ids).logits[0].double(), -1)


def sign(path: Path, **fields: Any) -> None:
    """Change fields of a manifest and give it its own checksum again: what a forger would do."""
    from tutelage import io

    manifest = TeacherCache(path).manifest.model_copy(update=fields)
    io.write_json(path / "manifest.json", manifest.signed().model_dump(mode="json"))
