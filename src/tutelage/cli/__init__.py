"""The command line: one thin function a verb.  It reads flags, calls one function of the library, prints its result.

stdout carries the result alone (a path, a text, or one JSON object with --json), stderr everything for people.
Whatever can go wrong ends as one line `error[CODE]: …` and the exit code of `errors.py`; --debug shows where.
Nothing heavy is imported before a verb needs it: `tutelage --help` answers in a fraction of a second.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.cache import cache_app
from tutelage.cli.compare import compare
from tutelage.cli.doctor import doctor
from tutelage.cli.guard import check_platform, guarded
from tutelage.cli.options import Debug, Json, Quiet, RunDir, print_result, set_quiet, show_result, tell
from tutelage.cli.plan import plan
from tutelage.cli.report import report
from tutelage.errors import ConfigError

__all__ = ["app", "check_platform", "guarded", "main"]

_EPILOG = (
    "Exit codes: 0 done, 1 a bug in tutelage, 2 the recipe or a flag, 3 files or data, 4 a remote service, 5 a limit "
    "of yours, 6 disk or memory, 7 a number that is not finite, 130 or 143 stopped by a signal. After 5, 6, 130 and "
    "143 the same command goes on where it stopped. Downloads and prepared data lie in one cache folder; the "
    "environment variable TUTELAGE_HOME names another. Tab completion: tutelage --install-completion."
)
app = typer.Typer(
    name="tutelage",
    help=(
        "Train a small language model from a large one, and see in numbers what it learned.\n\n\b\n"
        "First steps:\n"
        "  tutelage demo                       the whole way on a small real model, about ten minutes on a CPU\n"
        "  tutelage init soft                  write a commented recipe, recipe.yaml\n"
        "  tutelage doctor recipe.yaml         does everything fit together?\n"
        "  tutelage label recipe.yaml          ask the teacher once, and store what it says\n"
        "  tutelage generate recipe.yaml       ask a teacher for text\n"
        "  tutelage train recipe.yaml          train\n"
        "  tutelage compare recipe.yaml        train by several techniques, and see which one won\n"
        "  tutelage evaluate runs/recipe       compare teacher, student and control\n"
        "  tutelage report runs/recipe         one page about it, or about several runs\n"
        '  tutelage show runs/recipe "Once"    their most likely next words, side by side'
    ),
    epilog=_EPILOG,
    rich_markup_mode=None,  # plain help: it needs no rich, so it is fast and the same on every terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _tutelage(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from tutelage import __version__

        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


def _techniques() -> list[str]:
    from tutelage.recipe.templates import techniques

    return list(techniques())


@app.command(short_help="Write a commented recipe to begin with.")
def init(
    technique: Annotated[
        str,
        typer.Argument(
            help="soft (the teacher's whole distribution), cached (the same, stored once), argmax (its most likely "
            "token), hard (text of a teacher behind an API), control (no teacher), scratch (soft, with a student "
            "trained from nothing).",
            autocompletion=_techniques,
        ),
    ] = "soft",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")] = Path(
        "recipe.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a commented recipe to begin with.

    \b
    tutelage init
    tutelage init argmax --output argmax.yaml
    """
    from tutelage.recipe.templates import init as write

    path = write(technique, output=output, force=force)
    print_result({"technique": technique, "recipe": str(path)} if as_json else str(path))
    tell(f"next: tutelage doctor {path}, then tutelage train {path}", quiet=quiet)


app.command(short_help="Check a recipe or a model's folder.")(doctor)


@app.command(short_help="Distil a small real model on this machine.")
def demo(
    run_dir: RunDir = Path("runs/demo"),
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens to train on; by default a fixed number, so that results repeat."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of every random draw.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Start over when a demo is already there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a small real model on this machine: about ten minutes on two CPU cores, 93 MB downloaded once.

    Prints the run's folder; the comparison is shown on the way and stands in its report.html.

    \b
    tutelage demo
    tutelage demo --run-dir runs/second --seed 1
    """
    import tutelage

    set_quiet(quiet)
    assert run_dir is not None
    run = tutelage.demo(run_dir, tokens=tokens, seed=seed, force=force)
    show_result(run, as_json=as_json, quiet=quiet, path=run.path)


@app.command(short_help="Ask the teacher once and store what it says.")
def label(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe with teacher.model and teacher.cache.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change, such as cache.bytes_per_token=32."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the cache anew: what is there is removed.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the teacher over the recipe's data and write the cache teacher.cache.  Prints its folder.

    Only what the cache lacks is asked: a stopped call goes on, grown data add to it, and the same command in several
    terminals shares the work.

    \b
    tutelage label recipe.yaml
    tutelage label recipe.yaml teacher.cache=caches/docs cache.bytes_per_token=32
    """
    import tutelage

    set_quiet(quiet)
    labelled = tutelage.label(tutelage.load_recipe(recipe, overrides or ()), force=force)
    show_result(labelled, as_json=as_json, quiet=quiet, path=labelled.path)


@app.command(short_help="Ask a teacher for text.")
def generate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe with teacher.answers and generate.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change, such as generate.budget_usd=5."),
    ] = None,
    no_ask: Annotated[
        bool, typer.Option("--no-ask", help="Send nothing: write the set from the answers that are there.")
    ] = False,
    allow_private_host: Annotated[
        bool, typer.Option("--allow-private-host", help="Allow an address in a private network, also without TLS.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask the teacher (an endpoint, or a model on this machine) and write teacher.answers.  Prints that folder.

    Every answer is on the disk before it is read; a stopped call goes on with the same command and pays nothing twice.

    \b
    tutelage generate recipe.yaml
    tutelage generate recipe.yaml generate.budget_usd=5 generate.samples=4
    """
    import tutelage

    set_quiet(quiet)
    checked = tutelage.load_recipe(recipe, overrides or ())
    generated = tutelage.generate(checked, ask=not no_ask, allow_private_host=allow_private_host)
    show_result(generated, as_json=as_json, quiet=quiet, path=generated.path)


@app.command(short_help="How far a generation is, and what it cost.")
def status(
    where: Annotated[Path, typer.Argument(metavar="RECIPE_OR_FOLDER", help="A recipe, or its folder of answers.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Keep the good part of a damaged journal; the damaged file stays aside.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what is answered, what failed and why, and what is spent, reserved and left; also while generate runs.

    \b
    tutelage status recipe.yaml
    tutelage status answers/
    """
    import tutelage

    set_quiet(quiet)
    show_result(tutelage.status(where, repair=repair), as_json=as_json)


@app.command(short_help="Train as a recipe says.")
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, such as recipe.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Fields of the recipe to change, such as training.seed=1."),
    ] = None,
    run_dir: RunDir = None,
    force: Annotated[bool, typer.Option("--force", help="Start over: what the folder holds is removed.")] = False,
    fork: Annotated[bool, typer.Option("--fork", help="Start a new run from the weights of the one there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless there is a run to go on with.")] = False,
    no_ask: Annotated[
        bool, typer.Option("--no-ask", help="Buy no answers: learn from those of teacher.answers that are there.")
    ] = False,
    allow_private_host: Annotated[
        bool, typer.Option("--allow-private-host", help="As in tutelage generate, where answers are bought.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train as the recipe says.  Prints the run's folder (default: runs/NAME_OF_THE_RECIPE).

    A run that was stopped, however it was stopped, goes on by itself with the same command.  Answers that are missing
    are asked first if the recipe says what they may cost: generate.budget_usd or generate.max_requests.

    \b
    tutelage train recipe.yaml
    tutelage train recipe.yaml --run-dir runs/short training.tokens=100_000 loss.0.weight=0.5
    """
    import tutelage

    set_quiet(quiet)
    if force + fork + resume > 1:
        raise ConfigError("CONFIG", "--force, --fork and --resume exclude each other; give one of them")
    checked = tutelage.load_recipe(recipe, overrides or ())
    run = tutelage.train(
        checked,
        run_dir=run_dir or Path("runs") / recipe.stem,
        force=force,
        fork=fork,
        resume=resume,
        ask=not no_ask,
        allow_private_host=allow_private_host,
    )
    show_result(run, as_json=as_json, quiet=quiet, path=run.path)


@app.command(short_help="Compare teacher, student and control.")
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/recipe.")],
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAMES", help="Tasks of the lm-evaluation-harness, such as hellaswag,piqa."),
    ] = None,
    task_files: Annotated[
        Path | None,
        typer.Option("--task-files", metavar="FOLDER", help="Task files of yours (YAML). They can run code."),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option("--task-limit", min=1, metavar="N", help="The first N questions of each task only.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare teacher, student before and after, and control on held-out text.  Prints the path of the numbers.

    \b
    tutelage evaluate runs/recipe
    tutelage evaluate runs/recipe --tasks piqa,hellaswag
    """
    import tutelage

    set_quiet(quiet)
    named = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    if not named and (task_files or task_limit):
        raise ConfigError("CONFIG", "--task-files and --task-limit say nothing without --tasks NAMES")
    transfer = tutelage.evaluate(run_dir, force=force, tasks=named, task_files=task_files, task_limit=task_limit)
    show_result(transfer, as_json=as_json, quiet=quiet, path=transfer.path)


app.command(short_help="Write a page about a run, or one that compares several.")(report)


app.command(short_help="Train by several techniques under equal budgets.")(compare)


@app.command(short_help="Show the most likely next tokens.")
def show(
    where: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Folder of a run, or a model.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The beginning of a text.")],
    top: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Next tokens to show.")] = 8,
    tokens: Annotated[int, typer.Option(min=0, max=1000, metavar="N", help="Tokens to generate.")] = 40,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the most likely next tokens of teacher, student and control, and how each goes on.

    \b
    tutelage show runs/recipe "The capital of France is"
    tutelage show ./my-model "def main():" --tokens 0
    """
    import tutelage

    set_quiet(quiet)
    show_result(tutelage.show(where, text, top_k=top, new_tokens=tokens), as_json=as_json)


@app.command(short_help="Print the JSON schema of recipes.")
def schema(as_json: Json = False, debug: Debug = False) -> None:
    """Print the JSON schema of recipes, with which editors complete and check them.

    \b
    tutelage schema > recipe.schema.json
    and as first line of the recipe:  # yaml-language-server: $schema=recipe.schema.json
    """
    from tutelage.recipe import json_schema

    print_result(json.dumps(json_schema(), indent=2))


app.command(short_help="What each technique costs, before it does.")(plan)
app.add_typer(cache_app, name="cache")


def verbs() -> list[str]:
    """The first words that the program knows."""
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
    return [*commands, *(str(group.name) for group in app.registered_groups)]


def main(arguments: list[str] | None = None) -> int:
    """The program: runs one verb and gives the exit code."""
    # Before torch is imported: threads that spin while they wait make a shared machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments

    verb = next((f" {word}" for word in arguments[:1] if word in verbs()), "")

    def run() -> object:
        check_platform(platform.system())
        return app(arguments or ["--help"], prog_name="tutelage", standalone_mode=False)

    return guarded(run, debug="--debug" in arguments, help_command=f"tutelage{verb} --help")
