"""`tutelage compare`: one thin function over `tutelage.compare`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result

if TYPE_CHECKING:
    from tutelage import Comparison, Swept


_Usd = Annotated[
    float | None,
    typer.Option(min=0, metavar="USD", help="… or so many dollars in all, with what an endpoint may spend."),
]
_UsdPerHour = Annotated[float | None, typer.Option(min=0, metavar="USD", help="… what an hour of this machine costs.")]
_AllowPrivateHost = Annotated[
    bool, typer.Option("--allow-private-host", help="Let an endpoint be in a private network, without TLS.")
]
_Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE,…", help="Do it at each value of a field; several make a product."),
]


def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe whose student is trained.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change.")
    ] = None,
    techniques: Annotated[
        str, typer.Option(metavar="NAME,…", help="Such as control,soft,cached,hard; by default all possible ones.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each, with seeds 0 to N - 1.")] = 3,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of each run; by default the recipe's length.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="In place of --tokens: so long in all, as expected.")
    ] = None,
    usd: _Usd = None,
    usd_per_hour: _UsdPerHour = None,
    sets: _Sets = None,
    equal_compute: Annotated[
        bool, typer.Option("--equal-compute/--no-equal-compute", help="Also runs that compute as much as soft labels.")
    ] = True,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where all runs go; by default runs/RECIPE-comparison.")
    ] = None,
    allow_private_host: _AllowPrivateHost = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train by several techniques under equal budgets, and say which one won, with intervals over rows and seeds.

    Prints the expected hours first.  What is finished is used again, so that more seeds or techniques can be added.
    With --set the techniques run at every setting, each with its own control, and one table says which student is
    worth its size; values are YAML, so that a list is one value.

    \b
    tutelage compare recipe.yaml
    tutelage compare recipe.yaml --techniques control,soft,cached --seeds 3 --hours 2
    tutelage compare recipe.yaml --set student.layers=12,16,20 --set training.learning_rate=1e-3,3e-4
    tutelage compare recipe.yaml --set "student.layers=[0,3,6],[0,2,4]" --usd 5 --usd-per-hour 0.80
    """
    import tutelage

    set_quiet(quiet)
    verb: Callable[..., Comparison | Swept] = partial(tutelage.sweep, sets=sets) if sets else tutelage.compare
    made = verb(
        recipe,
        techniques=[name.strip() for name in techniques.split(",") if name.strip()],
        seeds=seeds,
        run_dir=run_dir,
        overrides=overrides or (),
        tokens=tokens,
        hours=hours,
        usd=usd,
        usd_per_hour=usd_per_hour,
        equal_compute=equal_compute,
        allow_private_host=allow_private_host,
    )
    show_result(made, as_json=as_json, quiet=quiet, path=made.path)
