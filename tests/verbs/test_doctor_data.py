"""`doctor` before training: is the teacher better here at all, and what of real traffic do the data not cover?"""

import json

import pytest

import tutelage
from tests.verbs import tiny_runs
from tests.verbs.tiny_runs import call


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor")
    run = tutelage.train(
        tiny_runs.recipe(base, training={"steps": 40}, loss=[{"cross_entropy": "ground_truth"}], teacher=None,
                         student={"model": str(base / "teacher")}),
        run_dir=path / "run",
    )  # fmt: skip
    for i, text in enumerate(tiny_runs.documents(120, seed=8)):
        (path / f"{i}.txt").write_text(text)
    return path, run.path / "student"


def recipe(folder, base, *, teacher, student):
    whole = tiny_runs.recipe(base, teacher=str(teacher), student={"model": str(student)})
    whole["data"]["sources"] = [{"text": f"{folder}/*.txt"}]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(whole))
    return path


def test_a_teacher_that_is_worse_on_the_data_is_warned_of_and_a_better_one_is_said_to_be(folder, base):
    path, trained = folder
    code, out, err = call("doctor", recipe(path, base, teacher=trained, student=base / "teacher"))
    assert code == 0, err
    assert "note[TEACHER_LOSS]" in out and "the teacher is better by" in out
    code, out, err = call("doctor", recipe(path, base, teacher=base / "teacher", student=trained), "--json")
    (found,) = [one for one in json.loads(out)["findings"] if one["code"] == "TEACHER_LOSS"]
    assert code == 0 and found["level"] == "warning" and "the teacher is worse by" in found["message"]
    same = recipe(path, base, teacher=base / "teacher", student=base / "teacher")
    assert "no difference (0.000 to 0.000)" in call("doctor", same)[1]
    assert "TEACHER_LOSS" not in call("doctor", same, "--no-measure")[1]


def test_the_traffic_that_the_training_data_lack_is_named(folder, base):
    path, trained = folder
    prompts = [text[:40] for text in tiny_runs.documents(30, seed=9)] + ["quantum chromodynamics for beginners please"]
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    own = recipe(path, base, teacher=trained, student=base / "teacher")
    code, out, err = call("doctor", own, "--traffic", path / "prompts.jsonl", "--no-measure", "--json")
    assert code == 0, err
    facts = json.loads(out)["models"][f"traffic {path / 'prompts.jsonl'}"]
    assert facts["items"] == 31 and facts["not covered"] >= 1
    assert "prompts.jsonl:31" in facts["worst 1"] and "quantum" in facts["worst 1"] and "0% seen" in facts["worst 1"]
    code, out, _ = call("doctor", own, "data.held_out=null", "--traffic", path / "prompts.jsonl", "--no-measure")
    assert code == 3 and "nothing is held out" in out
    assert call("doctor", base / "teacher", "--traffic", path / "prompts.jsonl")[0] == 2
