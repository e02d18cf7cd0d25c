"""The command line: stdout is the result alone, every failure is one line and an exit code, help is fast."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tutelage
from tutelage.cli import app, check_platform, guarded, main
from tutelage.errors import ConfigError, IntegrityError, Stopped
from tutelage.recipe import load_recipe
from tutelage.recipe.templates import init, techniques, template

VERBS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
COMMAND = [sys.executable, "-m", "tutelage"]


def test_the_verbs_of_the_design_are_there() -> None:
    assert {"init", "doctor", "demo", "generate", "status", "train", "evaluate", "report", "show", "schema"} <= set(
        VERBS
    )


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tutelage.cli import main\n"
        f"assert all(main([*verb, '--help']) == 0 for verb in [[], *([v] for v in {VERBS})])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: tutelage") == len(VERBS) + 1


def test_help_loads_few_modules() -> None:
    """Import is what help waits for; counted instead of timed, since a busy machine makes every clock slow."""
    code = "import sys\nfrom tutelage.cli import main\nmain(['--help'])\nprint(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) < 250  # 150 or so; pydantic alone would add more than that


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_and_debug_and_a_help_text_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--debug" in text
    assert f"\n  tutelage {verb}" in text


USAGE = [
    ([], 0, ""),
    (["frobnicate"], 2, "error[CONFIG]: No such command 'frobnicate'; see tutelage --help"),
    (["train"], 2, "error[CONFIG]: Missing argument 'RECIPE'; see tutelage train --help"),
    (
        ["train", "a", "--nope"],
        2,
        "error[CONFIG]: No such option: --nope (Possible options: --force); see tutelage train --help",
    ),
    (
        ["train", "no.yaml"],
        2,
        "error[CONFIG]: no.yaml: not found; write a first one: tutelage init soft",
    ),
    (
        ["train", "no.yaml", "--force", "--fork"],
        2,
        "error[CONFIG]: --force, --fork and --resume exclude each other; give one of them",
    ),
    (
        ["doctor", "org/model", "training.seed=1"],
        2,
        "error[CONFIG]: 'training.seed=1' has no effect with a model; expected a recipe such as a.yaml",
    ),
    (
        ["init", "sofft"],
        2,
        "error[CONFIG]: technique 'sofft' unknown (soft?); known: argmax, cached, co, control, family, hard, scratch, "
        "soft",
    ),
    (
        ["init", "../x"],
        2,
        "error[CONFIG]: technique '../x' unknown; known: argmax, cached, co, control, family, hard, scratch, soft",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "line"), USAGE, ids=[" ".join(a) or "-" for a, _, _ in USAGE])
def test_wrong_use_is_one_line_on_stderr(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert err == (f"{line}\n" if line else "")
    assert bool(out) == (code == 0)


def raising(error: BaseException) -> object:
    raise error


FAILURES = [
    (ConfigError("EXISTS", "x is there"), 2, "error[EXISTS]: x is there"),
    (IntegrityError("CHECKSUM", "x"), 3, "error[CHECKSUM]: x"),
    (Stopped("saved step-3", signal_number=15), 143, "note[STOPPED]: saved step-3"),
    (KeyboardInterrupt(), 130, "note[STOPPED]: interrupted; rerun the same command to continue"),
    (MemoryError(), 6, "error[MEMORY]: out of memory; lower training.micro_batch or training.chunk, "),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 6, "error[MEMORY]: out of memory; lower"),
    (KeyError("two\nlines"), 1, "error[BUG]: KeyError: 'two\\nlines' at test_cli.py:"),
]


@pytest.mark.parametrize(("error", "code", "line"), FAILURES, ids=[type(e).__name__ for e, _, _ in FAILURES])
def test_every_failure_is_one_line_and_its_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: raising(error), debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_debug_shows_where_it_arose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", str(tmp_path / "no.yaml"), "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error[CONFIG]: ")


def test_windows_is_told_about_wsl() -> None:
    check_platform("Linux")
    check_platform("Darwin")
    with pytest.raises(ConfigError, match=r"install WSL \(wsl --install\)") as caught:
        check_platform("Windows")
    assert caught.value.code == "PLATFORM"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["schema"]], ids=" ".join)
def test_a_reader_that_has_gone_ends_the_program_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments], check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stdout_is_quiet_and_a_full_one_is_an_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m tutelage schema"
    closed = subprocess.run(["sh", "-c", f"{shell} >&-"], check=False, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(["sh", "-c", f"{shell} >/dev/full"], check=False, capture_output=True, text=True)
    assert full.returncode == 6
    assert full.stderr.startswith("error[IO]: cannot write the result to stdout")
    assert full.stderr.count("\n") == 1


def test_json_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "init", "--json"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == {"technique": "soft", "recipe": "recipe.yaml"}
    assert done.stderr == "next: tutelage doctor recipe.yaml, then tutelage train recipe.yaml\n"
    assert (tmp_path / "recipe.yaml").read_text() == template("soft")


def test_wrong_recipes_are_refused_before_anything_heavy_is_imported_or_written(tmp_path: Path) -> None:
    init(output=tmp_path / "recipe.yaml")
    code = (
        "import sys\nfrom tutelage.cli import main\n"
        "assert main(['train', 'recipe.yaml', 'training.lr=3', 'loss.0.weight=-1']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == ""
    assert done.stderr == (
        "error[CONFIG]: 2 problems in recipe.yaml: training.lr unknown (learning_rate?); "
        "loss[0].weight must be >= 0, got -1\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_shell_completes_verbs() -> None:
    environment = {**os.environ, "_TUTELAGE_COMPLETE": "complete_bash", "COMP_WORDS": "tutelage ev", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["evaluate"]


@pytest.mark.parametrize("technique", techniques())
def test_every_technique_writes_a_recipe_that_is_accepted(technique: str, tmp_path: Path) -> None:
    path = init(technique, output=tmp_path / "recipe.yaml")
    recipe = load_recipe(path)
    assert load_recipe(recipe.resolved()) == recipe
    assert path.read_text().startswith(f"# {technique}: ")
    assert "recipe.md" in path.read_text()


def test_init_never_overwrites_unasked(tmp_path: Path) -> None:
    path = init("soft", output=tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="already there; --force overwrites it") as caught:
        init("argmax", output=path)
    assert caught.value.code == "EXISTS"
    assert path.read_text() == template("soft")
    init("argmax", output=path, force=True)
    assert path.read_text() == template("argmax")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        init("soft", output=tmp_path, force=True)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tutelage {tutelage.__version__}\n"
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == tutelage.__version__


def test_importing_the_package_imports_no_torch_and_names_what_it_has() -> None:
    code = (
        "import sys, tutelage\n"
        "tutelage.losses, tutelage.errors, tutelage.init, tutelage.load_recipe, tutelage.Recipe\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert set(tutelage.__all__) == {*tutelage._PLACES, '__version__'} == set(dir(tutelage))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'distil'; it has Comparison, Generated, "):
        tutelage.distil  # noqa: B018
