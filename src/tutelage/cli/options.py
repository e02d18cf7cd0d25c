"""What all verbs share: their common flags, and how a result is printed.

stdout carries the result alone (a path, a text, or one JSON object with --json), stderr everything for people.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress; warnings and errors stay.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the program an error arose.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", "-d", metavar="FOLDER", help="Folder of the run.")]


class Result(Protocol):
    """What a function of the library gives back: text for people, and a JSON object for programs."""

    def as_json(self) -> Mapping[str, object]:
        """Everything, for programs."""

    def __str__(self) -> str:
        """The same for people."""


def show_result(result: Result, *, as_json: bool, quiet: bool = False, path: Path | None = None) -> None:
    """A result with a place prints the place, and tells people what it says; any other is its own text."""
    if as_json:
        print_result(result.as_json())
    elif path is None:
        print_result(str(result))
    else:
        for line in str(result).splitlines():
            tell(line, quiet=quiet)
        print_result(str(path))


def print_result(result: str | Mapping[str, object]) -> None:
    """A text, or one JSON object, on stdout."""
    from tutelage import console

    console.print_result(result if isinstance(result, str) else json.dumps(result, allow_nan=False))


def tell(text: str, *, quiet: bool) -> None:
    """One line for people, on stderr."""
    from tutelage import console

    if not quiet:
        console.say(text)


def set_quiet(quiet: bool) -> None:
    """No notes and no progress from here on."""
    from tutelage import console

    console.set_quiet(quiet)
