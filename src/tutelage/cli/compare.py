"""`tutelage compare`: one thin function over `tutelage.compare`."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result


def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe whose student is trained.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change.")
    ] = None,
    techniques: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Such as control,soft,cached,hard; by default all possible ones."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each, with seeds 0 to N - 1.")] = 3,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of each run; by default the recipe's length.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="In place of --tokens: so long in all, as expected.")
    ] = None,
    equal_compute: Annotated[
        bool, typer.Option("--equal-compute/--no-equal-compute", help="Also runs that compute as much as soft labels.")
    ] = True,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where all runs go; by default runs/RECIPE-comparison.")
    ] = None,
    allow_private_host: Annotated[
        bool, typer.Option("--allow-private-host", help="Let an endpoint be in a private network, without TLS.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train by several techniques under equal budgets, and say which one won, with intervals over rows and seeds.

    Prints the expected hours first.  What is finished is used again, so that more seeds or techniques can be added.

    \b
    tutelage compare recipe.yaml
    tutelage compare recipe.yaml --techniques control,soft,cached --seeds 3 --hours 2
    """
    import tutelage

    set_quiet(quiet)
    made = tutelage.compare(
        recipe,
        techniques=[name.strip() for name in techniques.split(",") if name.strip()] if techniques else (),
        seeds=seeds,
        run_dir=run_dir,
        overrides=overrides or (),
        tokens=tokens,
        hours=hours,
        equal_compute=equal_compute,
        allow_private_host=allow_private_host,
    )
    show_result(made, as_json=as_json, quiet=quiet, path=made.path)
