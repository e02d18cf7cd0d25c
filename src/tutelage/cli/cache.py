"""`tutelage cache …`: look at a teacher cache, check it, read it, and make one of several."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Debug, Json, Quiet, set_quiet, show_result

cache_app = typer.Typer(
    help="Look at a teacher cache: inspect, verify, show, merge.",
    short_help="Look at a teacher cache: inspect, verify, show, merge.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
Cache = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of a teacher cache.")]


@cache_app.command(short_help="What it holds, what it costs, how wrong it is.")
def inspect(cache: Cache, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show codec, bytes a token, fingerprints, the teacher's own loss, and the measured error.

    The error is measured now, against the positions that were kept in full when the cache was written.

    \b
    tutelage cache inspect caches/docs
    """
    import tutelage

    set_quiet(quiet)
    show_result(tutelage.cache.inspect(cache), as_json=as_json)


@cache_app.command(short_help="Check every byte, and a sample against the teacher.")
def verify(
    cache: Cache,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="Ask this model again about a sample of the rows.")
    ] = None,
    sample: Annotated[
        str, typer.Option("--sample", metavar="SHARE", help="Share of the rows to ask about, such as 1% or 0.01.")
    ] = "1%",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check every byte against the manifest; with --teacher also a sample of the rows against the model.

    Exit code 3 when something is not as it should be.

    \b
    tutelage cache verify caches/docs
    tutelage cache verify caches/docs --teacher HuggingFaceTB/SmolLM2-135M-Instruct --sample 1%
    """
    import tutelage

    set_quiet(quiet)
    show_result(tutelage.cache.verify(cache, teacher=teacher, sample=sample), as_json=as_json)


@cache_app.command(short_help="Show what is stored for a text.")
def show(
    cache: Cache,
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="A document of the data, or its beginning.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Entries to show at each position.")] = 5,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what is stored at each position of the row that begins with a text.

    \b
    tutelage cache show caches/docs --text "The with statement"
    """
    import tutelage

    set_quiet(quiet)
    show_result(tutelage.cache.show(cache, text, top=top), as_json=as_json)


@cache_app.command(short_help="Average the caches of several teachers.")
def merge(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Two caches or more of the same rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the new cache is written.")],
    weights: Annotated[str, typer.Option(metavar="W,W,…", help="Weight of each teacher; equal when left out.")] = "",
    bytes_per_token: Annotated[
        float | None, typer.Option(min=0.1, metavar="BYTES", help="Budget; by default the largest of the parts.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make one cache of several teachers' caches: an ensemble, averaged in probability, without loading any teacher.

    \b
    tutelage cache merge caches/a caches/b --output caches/both
    tutelage cache merge caches/a caches/b --weights 0.7,0.3 -o caches/both
    """
    import tutelage

    set_quiet(quiet)
    merged = tutelage.cache.merge(caches, output=output, weights=weights, bytes_per_token=bytes_per_token)
    show_result(merged, as_json=as_json, quiet=quiet, path=merged.path)
