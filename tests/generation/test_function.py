"""A function of the user's judges answers: nothing that it does ends a run, loses an answer or hides."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from tests.generation.asking import generate, rows
from tests.instruments.endpoint import Action
from tutelage.errors import ConfigError
from tutelage.generation.function_process import FunctionProcess
from tutelage.recipe import load_recipe

CHECK = """
import os, sys, time

def right(prompt, answer, reference):
    print("noise on stdout", flush=True)
    number = int(prompt.split()[2])
    if number == 0:
        return "0" in answer and reference == "0"
    if number == 1:
        return False
    if number == 2:
        raise ValueError("two\\nlines")
    if number == 3:
        return None
    if number == 4:
        while True:
            time.sleep(1)
    if number == 5:
        os._exit(3)
    if number == 6:
        sys.exit(4)
    if number == 7:
        return "yes"
    if number == 8:
        return 0.5
    import numpy
    return numpy.bool_(True)
"""


def written(folder: Path, text: str = CHECK) -> str:
    (folder / "check.py").write_text(text)
    return f"{folder / 'check.py'}:right"


def test_whatever_a_function_does_is_a_reason_and_the_next_answer_is_judged(server, tmp_path, capsys):
    server.script = lambda n, body: Action(text="It is 0.")
    select = [{"verify": {"function": written(tmp_path), "timeout_s": 0.6}}]
    made = generate(tmp_path, server.url, n=10, select=select)
    (verify,) = (step for step in made.card.dropped if step.step == "verify")
    assert verify.reasons == {
        "refused by the function": 1,
        "function raised ValueError": 1,
        "function returned NoneType": 1,
        "function took more than 0.6 s": 1,
        "function ended its process": 1,
        "function raised SystemExit": 1,
        "function returned str": 1,
        "function returned a number, not true or false": 1,
    }
    assert [row["messages"][0]["content"].split()[2] for row in rows(tmp_path)] == ["0", "9"]
    (example,) = (e for e in verify.examples if "ValueError" in e["why"])
    assert (example["about"], example["prompt"], example["text"]) == ("two lines", "prompts.jsonl:3", "It is 0.")
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning[FUNCTION]"))
    assert "1: function raised ValueError" in warning and "(first: prompts.jsonl:3 two lines)" in warning
    assert "refused" not in warning and len(server.seen) == 10


def test_a_repaired_function_judges_the_same_answers_again_and_nothing_is_asked(server, tmp_path):
    bad = "def right(prompt, answer, reference):\n    return answer.strip\n"
    select = [{"verify": {"function": written(tmp_path, bad)}}]
    first = generate(tmp_path, server.url, n=3, select=select)
    good = "def right(prompt, answer, reference):\n    return len(answer) > 0\n"
    written(tmp_path, good)
    second = generate(tmp_path, server.url, n=3, select=select)
    assert (first.card.rows, second.card.rows, len(server.seen)) == (0, 3, 3)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in (bad, good)]
    assert [made.card.select_files for made in (first, second)] == [{"check.py:right": h} for h in hashes]
    card = json.loads((tmp_path / "answers" / "card.json").read_text())
    assert card["select"][1]["verify"]["function"] == "check.py:right" and str(tmp_path) not in json.dumps(card)


def test_a_function_of_a_module_and_what_lies_beside_a_file_are_found(server, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("WORD = 'answer'\n")
    written(tmp_path, "from beside import WORD\ndef right(prompt, answer, reference):\n    return WORD in answer\n")
    relative = {"verify": {"function": "check.py:right"}}
    monkeypatch.chdir(tmp_path)
    assert generate(tmp_path, server.url, n=1, select=[relative]).card.rows == 1
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").write_text("def right(prompt, answer, reference):\n    return False\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    assert generate(tmp_path, server.url, n=1, select=[{"verify": {"function": "mine:right"}}]).card.rows == 0


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        (None, "right", "FileNotFoundError"),
        ("x = 1/0", "right", "ZeroDivisionError"),
        ("def wrong(): pass", "right", "has no attribute 'right'"),
        ("right = 3", "right", "right is a int, no function"),
        ("import os; os._exit(0)", "right", "its process ended"),
    ],
)
def test_a_function_that_cannot_be_imported_is_said_before_anything_is_sent(text, name, found, server, tmp_path):
    if text is not None:
        written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        generate(tmp_path, server.url, select=[{"verify": {"function": f"{tmp_path / 'check.py'}:{name}"}}])
    message = caught.value.message
    assert found in message and "check.py:right" in message and "\n" not in message and server.seen == []


@pytest.mark.parametrize(
    ("verify", "message"),
    [
        ({"function": "check.py"}, "must be module:name or path.py:name, got 'check.py'"),
        ({"function": "a b:c"}, "must be module:name or path.py:name"),
        ({"number": True, "timeout_s": 3}, "timeout_s has no effect without function"),
        ({"number": True, "function": "a:b"}, "found number and function"),
    ],
)
def test_mistakes_of_the_recipe_are_said_with_their_path(verify, message, tmp_path):
    from tests.generation.asking import recipe

    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, "http://127.0.0.1:1/v1", select=[{"verify": verify}]))
    assert message in caught.value.message and "generate.select" in caught.value.message


def test_a_process_that_is_closed_is_gone_with_what_it_started(tmp_path):
    text = "import subprocess\ndef right(**_):\n    return float(subprocess.Popen(['sleep', '60']).pid)\n"
    function = FunctionProcess(written(tmp_path, text))
    pid = int(function(prompt="", answer="", reference="").value)
    long = "x" * 3_000_000
    assert function(prompt=long, answer=long, reference="").value is not None
    function.close()
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        raise AssertionError("what the function started still runs")


def test_a_module_that_can_no_longer_be_imported_is_not_tried_for_every_answer(tmp_path):
    once = "import os\nif os.path.exists('{0}'):\n    raise OSError('gone')\nopen('{0}', 'w').close()\n"
    text = once.format(tmp_path / "started") + "def right(**_):\n    os._exit(1)\n"
    function = FunctionProcess(written(tmp_path, text))
    said = [function(prompt="", answer="", reference="") for _ in range(6)]
    assert [made.why for made in said] == ["function ended its process", *["function could not be started again"] * 5]
    assert [bool(made.about) for made in said] == [False, True, True, True, False, False] and "gone" in said[1].about
