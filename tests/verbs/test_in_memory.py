"""`tutelage.train` with objects: what is given twice, or is no object, is refused before anything is written."""

from pathlib import Path

import pytest
import torch

import tutelage
from tests import tiny
from tests.models.tiny_models import tokenizer
from tutelage.errors import ConfigError

RECIPE = {"student": {"layers": 1}, "loss": ["forward_kl"], "training": {"steps": 1}}
WRONG = {
    "a teacher twice": ({"teacher": "a/b"}, {}, "teacher is given twice: 'a/b'"),
    "a student twice": ({"student": "a/b"}, {"student": tiny.llama(dtype=torch.float32)}, "student is given twice"),
    "a path as teacher": ({}, {"teacher": "folder"}, "teacher= is str, expected a model"),
    "one string": ({}, {"data": "one text"}, r"expected a list of texts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_objects_that_contradict_the_recipe_are_refused(name, tmp_path: Path):
    fields, objects, expected = WRONG[name]
    given = {"teacher": tiny.llama(dtype=torch.float32), "data": ["a", "b"], "tokenizer": tokenizer(), **objects}
    with pytest.raises(ConfigError, match=expected):
        tutelage.train({**RECIPE, **fields}, run_dir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
