"""A folder with a teacher and a corpus, and one finished run that tests only look at."""

from pathlib import Path

import pytest

import tutelage
from tests.verbs import tiny_runs


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
