"""The recipe: one YAML file that says everything that defines a result.  Imports no torch.

recipe = load_recipe("recipe.yaml", ["training.tokens=100_000"])
recipe.resolved()     the long form with defaults and absolute paths: stored, compared, loadable again
recipe.fingerprint()  its SHA-256

text.py  YAML and overrides -> a tree     short.py  short forms -> long forms     rules.py  what spans fields
sections, models, terms, fields .py  every field with its type, range and default   problems.py  mistakes as lines
"""

from tutelage.recipe.load import load_recipe
from tutelage.recipe.models import Layers, Pupil, Student, Teacher, TeacherTraining
from tutelage.recipe.sections import (
    Columns,
    Data,
    EarlyStop,
    Evaluation,
    HeldOut,
    Learner,
    Recipe,
    Source,
    Training,
    json_schema,
)
from tutelage.recipe.terms import LossTerm, Schedule
from tutelage.recipe.text import dump

__all__ = [
    "Columns",
    "Data",
    "EarlyStop",
    "Evaluation",
    "HeldOut",
    "Layers",
    "Learner",
    "LossTerm",
    "Pupil",
    "Recipe",
    "Schedule",
    "Source",
    "Student",
    "Teacher",
    "TeacherTraining",
    "Training",
    "dump",
    "json_schema",
    "load_recipe",
]
