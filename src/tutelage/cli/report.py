"""The verb `report` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where to write; by default report in the run's folder, of several runs comparison beside the first.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="html, md or json; by default what PATH ends in, else html."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one page that opens offline: what the student learned, what it lost, and texts token by token.

    Of several runs one page compares the students, on the same text and with the same teacher.  Prints the path.

    \b
    tutelage report runs/recipe
    tutelage report runs/small runs/large -o sizes.html
    tutelage report runs/recipe --format md
    """
    import tutelage

    set_quiet(quiet)
    made = tutelage.report(*runs, format=format, output=output)
    show_result(made, as_json=as_json, quiet=quiet, path=made.path)
