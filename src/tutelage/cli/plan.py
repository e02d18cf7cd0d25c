"""`tutelage plan`: one thin function over `tutelage.plan`."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result
from tutelage.errors import ConfigError


def plan(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe; or numbers, see below.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change.")
    ] = None,
    tokens: Annotated[float | None, typer.Option(metavar="N", help="Without a recipe: tokens of text.")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=2, metavar="N", help="… tokens of the vocabulary.")] = None,
    parameters: Annotated[float | None, typer.Option(metavar="N", help="… the teacher's parameters.")] = None,
    student_parameters: Annotated[float | None, typer.Option(metavar="N", help="… the student's parameters.")] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="… the teacher's hidden size.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="A machine to plan for, such as h100.")] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="… so many of them.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, metavar="USD", help="… what one costs an hour.")] = None,
    flops: Annotated[float | None, typer.Option(metavar="N", help="Another machine: peak operations a second.")] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="BYTES", help="… its memory; what needs more is not possible.")
    ] = None,
    utilisation: Annotated[float | None, typer.Option(metavar="SHARE", help="… the share of the peak in use.")] = None,
    calibration: Annotated[
        bool,
        typer.Option("--calibration/--no-calibration", help="Measure short models on this machine, for the hours."),
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what each technique computes, holds, stores and costs, and which one to take, before anything is spent.

    Of a recipe on this machine the hours rest on steps of short models that are measured for at most 30 seconds.

    \b
    tutelage plan recipe.yaml
    tutelage plan recipe.yaml --gpu h100 --count 8 --price 2.50
    tutelage plan --tokens 15e12 --vocabulary 202048 --parameters 2e12
    """
    import tutelage
    from tutelage.verbs.plan import Numbers, described_machine

    set_quiet(quiet)
    machine = described_machine(gpu, count=count, price_usd=price, flops=flops, memory=memory, utilisation=utilisation)
    if recipe is not None:
        if any(value is not None for value in (tokens, vocabulary, parameters, student_parameters, hidden_size)):
            raise ConfigError("CONFIG", "a recipe says its tokens and models itself; leave --tokens and the like out")
        source: object = tutelage.load_recipe(recipe, overrides or ())
    else:
        lacking = [name for name, value in (("tokens", tokens), ("vocabulary", vocabulary), ("parameters", parameters))
                   if not value or value <= 0]  # fmt: skip
        if lacking:
            raise ConfigError(
                "CONFIG",
                f"no recipe, and no --{', --'.join(lacking)} above 0; give a recipe, or all three: "
                "tutelage plan --tokens 15e12 --vocabulary 202048 --parameters 2e12",
            )
        assert tokens is not None and vocabulary is not None and parameters is not None
        source = Numbers(
            tokens=tokens, vocabulary=vocabulary, parameters=parameters, student_parameters=student_parameters,
            hidden_size=hidden_size,
        )  # fmt: skip
    show_result(tutelage.plan(source, machine=machine, calibration=calibration), as_json=as_json)  # type: ignore[arg-type]
