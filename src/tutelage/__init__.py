"""Tutelage: LLM distillation by every technique, measured.

    import tutelage
    run = tutelage.train("recipe.yaml")      # or a dict, or a Recipe
    run.student()                            # the trained model

The verbs are functions here, `tutelage.losses` works in anybody's own loop.  Importing this package imports no torch:
each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage import cache, errors, losses
    from tutelage.recipe import Recipe, load_recipe
    from tutelage.recipe.templates import init
    from tutelage.verbs.compare import Comparison, compare
    from tutelage.verbs.demo import demo
    from tutelage.verbs.doctor import examine as doctor
    from tutelage.verbs.evaluate import evaluate
    from tutelage.verbs.generate import Generated, generate
    from tutelage.verbs.label import Labelled, label
    from tutelage.verbs.plan import Numbers, Planned, plan
    from tutelage.verbs.report import Reported, report
    from tutelage.verbs.show import show
    from tutelage.verbs.status import Status, status
    from tutelage.verbs.sweep import Swept, sweep
    from tutelage.verbs.train import Run, train

__version__ = "0.1.0"

_PLACES = {
    "Comparison": "verbs.compare:Comparison",
    "Generated": "verbs.generate:Generated",
    "Labelled": "verbs.label:Labelled",
    "Numbers": "verbs.plan:Numbers",
    "Planned": "verbs.plan:Planned",
    "Recipe": "recipe:Recipe",
    "Reported": "verbs.report:Reported",
    "Run": "verbs.train:Run",
    "Status": "verbs.status:Status",
    "Swept": "verbs.sweep:Swept",
    "cache": "cache:",
    "compare": "verbs.compare:compare",
    "demo": "verbs.demo:demo",
    "doctor": "verbs.doctor:examine",
    "errors": "errors:",
    "evaluate": "verbs.evaluate:evaluate",
    "generate": "verbs.generate:generate",
    "init": "recipe.templates:init",
    "label": "verbs.label:label",
    "load_recipe": "recipe:load_recipe",
    "losses": "losses:",
    "plan": "verbs.plan:plan",
    "report": "verbs.report:report",
    "show": "verbs.show:show",
    "status": "verbs.status:status",
    "sweep": "verbs.sweep:sweep",
    "train": "verbs.train:train",
}

__all__ = [
    "Comparison",
    "Generated",
    "Labelled",
    "Numbers",
    "Planned",
    "Recipe",
    "Reported",
    "Run",
    "Status",
    "Swept",
    "__version__",
    "cache",
    "compare",
    "demo",
    "doctor",
    "errors",
    "evaluate",
    "generate",
    "init",
    "label",
    "load_recipe",
    "losses",
    "plan",
    "report",
    "show",
    "status",
    "sweep",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}; it has {', '.join(__all__)}")
    module_name, _, attribute = _PLACES[name].partition(":")
    module = importlib.import_module(f"tutelage.{module_name}")
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value  # also puts the function `demo` before the module of that name
    return value


def __dir__() -> list[str]:
    return __all__
