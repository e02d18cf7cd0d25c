"""A folder with a teacher and a corpus, one finished run that tests only look at, a student and who teaches it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tutelage
from tests.instruments.endpoint import Endpoint
from tests.verbs import tiny_runs
from tests.verbs.taught import answering


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the teacher and the corpus that `tiny_runs.recipe` names."""
    path = tmp_path_factory.mktemp("verbs")
    tiny_runs.recipe(path)
    return path


@pytest.fixture(scope="session")
def finished(base: Path) -> "tutelage.Run":
    """A run with its control and a prompt; nobody changes it."""
    prompts = {"prompts": ["the cat"]}
    return tutelage.train(tiny_runs.recipe(base, control=True, evaluation=prompts), run_dir=base / "finished")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    return tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture
def server() -> Iterator[Endpoint]:
    """A teacher that repeats the second word."""
    with Endpoint(answering) as running:
        yield running
