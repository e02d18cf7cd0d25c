"""The recipe: one YAML file that says everything that defines a result.  Imports no torch.

recipe = load_recipe("recipe.yaml", ["training.tokens=100_000"])
recipe.resolved()     the long form with defaults and absolute paths: stored, compared, loadable again
recipe.fingerprint()  its SHA-256

text.py  YAML and overrides -> a tree            short.py  short forms -> long forms     problems.py  mistakes as lines
rules.py, rules_models.py, text_rules.py  what spans fields, by way of tree.py
sections, models, terms, sources, generation, fields .py  every field with its type, range and default
"""

from tutelage.recipe.generation import Api, Generate, Step, TextTeacher
from tutelage.recipe.load import load_recipe
from tutelage.recipe.models import Layers, Lora, Pupil, Student, Teacher, TeacherTraining, Width
from tutelage.recipe.sections import (
    Data,
    EarlyStop,
    Evaluation,
    HeldOut,
    Learner,
    Recipe,
    Training,
    json_schema,
)
from tutelage.recipe.sources import Columns, PromptSource, Source
from tutelage.recipe.terms import LossTerm, Schedule
from tutelage.recipe.text import dump

__all__ = [
    "Api",
    "Columns",
    "Data",
    "EarlyStop",
    "Evaluation",
    "Generate",
    "HeldOut",
    "Layers",
    "Learner",
    "Lora",
    "LossTerm",
    "PromptSource",
    "Pupil",
    "Recipe",
    "Schedule",
    "Source",
    "Step",
    "Student",
    "Teacher",
    "TeacherTraining",
    "TextTeacher",
    "Training",
    "Width",
    "dump",
    "json_schema",
    "load_recipe",
]
