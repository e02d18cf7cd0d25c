"""The verb `show`: what teacher, student and control would say next, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import roles
from tutelage.evaluation.show import Prompt, Shown, render, show_models
from tutelage.models import load, vocabulary
from tutelage.recipe import load_recipe
from tutelage.reports.text import printed
from tutelage.rundir import RunDirectory
from tutelage.training import teachers
from tutelage.verbs.evaluate import require_finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What `show` gives back."""

    shown: Shown

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return self.shown.json()

    def __str__(self) -> str:
        return printed(lambda width: render(self.shown, width=width))


@torch.no_grad()
def show(where: str | Path, text: str, *, top_k: int = 8, new_tokens: int = 40) -> Answer:
    """The most likely next tokens of a run's teacher, student and control, or of one model, side by side."""
    run = RunDirectory(where)
    if run.state() == "absent":
        models: dict[str, nn.Module] = {"model": load.load_model(str(where), dtype="auto", device="cpu")}
        tokenizer, teacher = load.load_tokenizer(str(where)), None
    else:
        require_finished(run, "show")
        models, tokenizer, teacher = _run_models(run)
    shown = show_models(
        models,
        tokenizer,
        prompts=[Prompt(text=text)],
        teacher=teacher,
        n_vocabulary=vocabulary.real_vocabulary(tokenizer),
        top_k=top_k,
        new_tokens=new_tokens,
    )
    return Answer(shown=shown)


def _run_models(run: RunDirectory) -> tuple[dict[str, nn.Module], Any, str | None]:
    """The models of a finished run without its data; the teacher only if the recipe names it."""
    recipe = load_recipe(run.recipe_path)
    models: dict[str, nn.Module] = {}
    if recipe.teacher is not None and recipe.teacher.model is not None and recipe.teacher.train is None:
        models[roles.TEACHER] = teachers.on_cpu(recipe.teacher)
    for name in (roles.TEACHER, *(each for one in recipe.learners for each in (one, roles.control(one)))):
        if run.model(name).is_dir():
            models[name] = load.load_model(str(run.model(name)), dtype="auto", device="cpu")
    return models, load.load_tokenizer(str(run.student)), roles.TEACHER if roles.TEACHER in models else None
