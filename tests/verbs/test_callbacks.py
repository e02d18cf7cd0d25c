"""Functions of the user's own: what they hear, what stops a run, and where their mistakes are said to be."""

import json

import pytest

import tutelage
from tests.verbs.tiny_runs import recipe, weights_of
from tutelage.errors import ConfigError
from tutelage.training.callbacks import loaded

WATCH = """
import json
from beside import ENDING

def watch(event):
    line = [event.kind, event.step, event.n_steps, event.name, sorted(event.models), dict(event.figures)]
    with open(f"{event.run}{ENDING}", "a") as file:
        file.write(json.dumps(line) + "\\n")
"""
FAILING = """
def watch(event):
    look(event)

def look(event):
    if event.kind == "step" and event.step == 3:
        raise ValueError("step three")
"""


def callback(folder, text, name="watch.py"):
    path = folder / name
    path.write_text(text.replace("\\\\", "\\"))
    return str(path)


@pytest.mark.slow
def test_a_function_hears_of_every_step_evaluation_and_checkpoint_and_of_the_end(base, tmp_path):
    (tmp_path / "beside.py").write_text("ENDING = '.told'\n")
    training = {"callbacks": callback(tmp_path, WATCH) + ":watch", "evaluate_every": 0.5, "save_every": 0.5}
    run = tutelage.train(recipe(base, training=training), run_dir=tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run.told").read_text().splitlines()]
    assert [(kind, step) for kind, step, *_ in told] == [
        ("step", 1), ("step", 2), ("evaluate", 2), ("checkpoint", 2),
        ("step", 3), ("step", 4), ("evaluate", 4), ("checkpoint", 4), ("end", 4),
    ]  # fmt: skip
    assert all(rest[:3] == [4, "student", ["student"]] for _, _, *rest in told)
    by_step = {step: figures for kind, step, *_, figures in told if kind == "step"}
    for row in run.metrics:
        if "student/total" in row:
            assert by_step[row["step"]]["student/total"] == row["student/total"]
    held_out = [row["student/held_out/forward_kl"] for row in run.metrics if "student/held_out/forward_kl" in row]
    assert [figures["student/forward_kl"] for kind, *_, figures in told if kind == "evaluate"] == held_out


@pytest.mark.slow
def test_what_a_function_raises_is_said_with_file_and_line_and_the_corrected_run_is_the_undisturbed_one(base, tmp_path):
    path = callback(tmp_path, FAILING)
    whole = recipe(base, training={"callbacks": f"{path}:watch", "save_every": 0.25})
    with pytest.raises(ConfigError) as caught:
        tutelage.train(whole, run_dir=tmp_path / "run")
    assert caught.value.code == "CALLBACK"
    assert f"{path}:watch at step 3 raised ValueError: step three ({path}, line 7)" in caught.value.message
    callback(tmp_path, FAILING.replace("event.step == 3", "event.step == 30"))
    run = tutelage.train(whole, run_dir=tmp_path / "run")
    plain = tutelage.train(recipe(base, training={"save_every": 0.25}), run_dir=tmp_path / "plain")
    assert [row for row in run.metrics if row["step"] > 0] == plain.metrics
    for name, value in weights_of(plain.path / "student").items():
        assert (weights_of(run.path / "student")[name] == value).all()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "watch", "raised FileNotFoundError: there is no file "),
        ("x = 1\n", "watch", "raised AttributeError: module 'callback_watch' has no attribute 'watch'"),
        ("watch = 3\n", "watch", "is a int, no function"),
        ("\ndef watch(:\n", "watch", "watch.py, line 2)"),
        ("\n\nimport no_such_module_here\n", "watch", "watch.py, line 3)"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_anything_is_loaded(tmp_path, text, name, message):
    path = tmp_path / "watch.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        loaded([f"{path}:{name}"])
    assert caught.value.code == "CALLBACK" and message in caught.value.message
