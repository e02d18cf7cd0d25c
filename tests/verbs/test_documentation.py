"""Every code block of README.md and of the guide: recipes are valid, commands and Python run, at tiny size.

The commands of a page run one after the other in one folder, as a reader types them.  What `tutelage init` writes is
made tiny before the next line; words that stand for the reader's own things (`MODEL`, `caches/a`) are there.  Lines for
other programs (make, pip) are only looked up: what they start takes minutes, or the network.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from typer.main import get_command

import tutelage
from tests.instruments.endpoint import Endpoint
from tests.verbs import tiny_runs
from tutelage.cli import app
from tutelage.errors import CODES
from tutelage.recipe import text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
LANGUAGES = {"sh", "yaml", "python", "json"}
TINY = {
    "data.max_length": 32, "data.held_out": 0.25, "training.batch_tokens": 64, "training.micro_batch": 1,
    "training.precision": "float32", "training.threads": 1, "training.tokens": 256, "evaluation.prompts": [],
}  # fmt: skip
SMALL = ("--techniques", "control,argmax", "--seeds", "1", "--tokens", "256")  # of comparisons; the last one counts
OUTSIDE = ("make", "pip", "python", "my-env/bin/pip", "export")
# Parsed and not run: ten minutes; a harness and its data, which are not installed with the tests.
PARSED = ("demo", "evaluate")


class Block(NamedTuple):
    """A fenced block, and where it stands."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    """The page's blocks in a language, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M)
    whole = [Block(page, text[: m.start()].count("\n") + 2, m.group(1), m.group(2)) for m in found]
    assert {block.language for block in whole} <= LANGUAGES, page
    return [block for block in whole if block.language == language]


def names(found: list[Block]) -> list[str]:
    return [f"{block.page.stem}:{block.line}" for block in found]


RECIPES = [block for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize("block", RECIPES, ids=names(RECIPES))
def test_every_recipe_is_valid(block, tmp_path):
    """What a block leaves out is taken from the smallest recipe."""
    shown = text.parse(block.text)
    teacher = shown.get("teacher") if isinstance(shown.get("teacher"), dict) else {}
    whole: dict[str, Any] = {"teacher": "ID", "training": {"steps": 1}}
    if "students" not in shown:
        whole["student"] = {"model": "ID"}
    if not any("loss" in student for student in shown.get("students", {}).values()):
        whole["loss"] = "cross_entropy" if "answers" in teacher else "forward_kl"
    if "answers" not in teacher:
        whole["data"] = {"sources": [{"text": "*.txt"}]}
    for name, value in shown.items():
        both = isinstance(value, dict) and isinstance(whole.get(name), dict) and name != "student"
        whole[name] = {**whole[name], **value} if both else value
    if "tokens" in whole["training"]:
        del whole["training"]["steps"]
    tutelage.load_recipe(whole)


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    for block in blocks(page, "sh"):
        for number, line in enumerate(block.text.splitlines()):
            words = shlex.split(line, comments=True)
            if words:
                yield block.line + number, words


WITH_COMMANDS = [page for page in PAGES if any(words[0].endswith("tutelage") for _, words in commands(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=[page.stem for page in WITH_COMMANDS])
def test_every_command_runs(page, base, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Endpoint() as server:
        stage(tmp_path, base, finished, url=server.url)
        for line, words in commands(page):
            if words[0] in OUTSIDE:
                look_up(words)
                continue
            assert words[0] in ("tutelage", ".venv/bin/tutelage", "my-env/bin/tutelage"), f"{page.name}:{line}"
            if words[1] == "compare" and words[1:] in compared_before(page):
                continue
            run(words[1:], where=f"{page.name}:{line}", base=base, url=server.url)


def compared_before(page: Path) -> list[list[str]]:
    """The comparisons of earlier pages: each takes several trainings, and no later line needs what it leaves."""
    earlier = PAGES[: PAGES.index(page)]
    return [words[1:] for one in earlier for _, words in commands(one) if words[1:2] == ["compare"]]


def stage(folder: Path, base: Path, finished: "tutelage.Run", *, url: str) -> None:
    """What the pages name without making it."""
    (folder / "corpus").mkdir()
    for i, document in enumerate(tiny_runs.documents(120)):
        (folder / "corpus" / f"{i}.txt").write_text(document)
    recipe = tiny_runs.recipe(base, data={"sources": [{"text": "corpus/*.txt"}]})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "the {noun}"}}\n' for noun in tiny_runs.NOUNS))
    for name in ("demo", "recipe", "small", "large"):
        shutil.copytree(finished.path, folder / "runs" / name)


def run(words: list[str], *, where: str, base: Path, url: str) -> None:
    """One line: it ends with 0 and prints no code that does not exist."""
    words = [str(base / "teacher") if word == "MODEL" else word for word in words]
    if "--text" in words:  # the beginning of a document
        words[words.index("--text") + 1] = (base / "corpus" / "0.txt").read_text()[:20]
    if words[0] == "compare":
        for budget in ("--hours", "--usd", "--usd-per-hour"):
            if budget in words:
                del words[words.index(budget) : words.index(budget) + 2]
    words = [re.sub(r"layers=(\[.*|\d+,.*)", "layers=1,2", word) for word in words]
    if words[0] in PARSED:
        command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]  # a group of commands
        command.make_context(words[0], list(words[1:]))
        return
    prepare(words, base=base)
    if words[0] == "compare":
        words += [*SMALL, *(["--no-equal-compute"] if "--set" in words else [])]
    code, out, err = tiny_runs.call(*words)
    assert code == 0, f"{where}: {out}{err}"
    assert {code for code in re.findall(r"(?:error|warning|note)\[(\w+)\]", err)} <= CODES.keys()
    if words[0] == "init":
        shrink(words, base=base, url=url)


def prepare(words: list[str], *, base: Path) -> None:
    """Takes away what an earlier line of the page has made and this one makes anew, and makes what it merges."""
    if words[0] == "init" and "--output" not in words:
        Path("recipe.yaml").unlink()
        shutil.rmtree("runs/recipe", ignore_errors=True)
    if words[:2] == ["cache", "merge"]:
        for name, seed in (("a", 0), ("b", 1)):
            teacher = tiny_runs.model_folder(Path(f"teacher-{name}").absolute(), seed=seed)
            written = tiny_runs.recipe(base, teacher={"model": str(teacher), "cache": f"caches/{name}"})
            tutelage.label({**written, "loss": "forward_kl"})


def shrink(words: list[str], *, base: Path, url: str) -> None:
    """What `init` wrote, at tiny size, on the corpus of the tests and with their teacher."""
    path = Path(words[words.index("--output") + 1] if "--output" in words else "recipe.yaml")
    recipe = text.read(path)
    smaller: dict[str, Any] = dict(TINY)
    if words[1] == "hard":
        smaller |= {"teacher.api.base_url": url, "student": str(base / "teacher"), "training.epochs": None}
    else:
        smaller |= {"data.sources": [{"text": f"{base}/corpus/*.txt"}], "student.layers": 2}
        smaller["teacher.model" if isinstance(recipe["teacher"], dict) else "teacher"] = str(base / "teacher")
    for dotted, value in smaller.items():
        *sections, name = dotted.split(".")
        section = recipe
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    path.write_text(yaml.safe_dump(recipe))


def look_up(words: list[str]) -> None:
    """What can be known of a line without running it."""
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert set(words[1:]) <= set(targets)
    if words[0] == "export" and words[1].startswith("TUTELAGE_KEY"):
        os.environ.pop(words[1].partition("=")[0], None)


# --- Python -----------------------------------------------------------------------------------------------------------

PYTHON = [block for page in PAGES for block in blocks(page, "python")]


SMALLER = {
    '"package:smollm2-135m-instruct"': "{teacher!r}", '{{"python_docs": True}}': '{{"text": "corpus/*.txt"}}',
    '"layers": 20': '"layers": 2', "32_768": "256", '"batch_tokens": 2048': '"batch_tokens": 64',
    '"held_out": 0.05, "max_length": 256': '"held_out": 0.25, "max_length": 32',
}  # fmt: skip


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base / "corpus", tmp_path / "corpus")
    cells = json.loads((ROOT / "docs" / "notebooks" / "first-student.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for written, tiny in SMALLER.items():
        written = written.replace("{{", "{").replace("}}", "}")
        assert written in code
        code = code.replace(written, tiny.format(teacher=str(base / "teacher")))
    exec(compile(code, "first-student.ipynb", "exec"), {})
    assert "student" in capsys.readouterr().out and (tmp_path / "runs" / "notebook" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=names(PYTHON))
def test_every_piece_of_python_runs(block, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_runs.recipe(base)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    logp = torch.log_softmax(torch.randn(4, 7), -1)
    known: dict[str, Any] = {"tutelage": tutelage, "teacher_logp": logp, "student_logp": logp}
    known["texts"] = tiny_runs.documents(20)
    data = '"data": {"max_length": 32}, '
    smaller = {"MODEL": str(base / "teacher"), '"layers": 12': '"layers": 2', '"training"': f'{data}"training"'}
    code = block.text
    for written, tiny in smaller.items():
        code = code.replace(written, tiny)
    exec(compile(code, f"{block.page.name}:{block.line}", "exec"), known)
