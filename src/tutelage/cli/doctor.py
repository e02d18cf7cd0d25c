"""`tutelage doctor`: a thin function, see the package."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result
from tutelage.errors import ConfigError


def doctor(
    target: Annotated[str, typer.Argument(metavar="RECIPE_OR_MODEL", help="A recipe, a model's folder, GGUF or id.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change.")
    ] = None,
    traffic: Annotated[
        Path | None,
        typer.Option("--traffic", metavar="FILE", help="Prompts of real use: which does the training data not cover?"),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Load no weights: do not compare the losses of teacher and student.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check whether everything fits together, or whether a model's folder is safe.  Nothing is trained or changed.

    Of a recipe whose student has weights of its own it also says whether the teacher predicts the data better at all.
    Exit code 3 when something does not fit.

    \b
    tutelage doctor recipe.yaml
    tutelage doctor recipe.yaml --traffic prompts.jsonl
    tutelage doctor ./my-model
    """
    import tutelage

    set_quiet(quiet)
    is_recipe = target.endswith((".yaml", ".yml")) and not Path(target).is_dir()
    if overrides and not is_recipe:
        raise ConfigError("CONFIG", f"{overrides[0]!r} has no effect with a model; expected a recipe such as a.yaml")
    checked = tutelage.load_recipe(target, overrides or ()) if is_recipe else target
    report = tutelage.doctor(checked, traffic=traffic, measured=not no_measure)
    show_result(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(3)
