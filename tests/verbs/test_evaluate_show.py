"""`evaluate` and `show`: a run measured again gives its numbers again, and any model says what comes next."""

import json

import pytest

import tutelage
from tests.verbs.tiny_runs import call, recipe


def numbers(measured):
    whole = measured.transfer.json()
    return {key: whole[key] for key in ("teacher", "models", "sets")}


def test_what_was_measured_is_read_from_its_records(finished):
    before = (finished.path / "evaluation/records.jsonl").read_bytes()
    code, out, _ = call("evaluate", finished.path, "--json")
    assert code == 0
    assert json.loads(out)["sets"] == finished.evaluation().transfer.json()["sets"]
    code, out, err = call("evaluate", finished.path)
    assert (code, out) == (0, f"{finished.path / 'evaluation/transfer.json'}\n")
    assert "KL to teacher" in err
    assert (finished.path / "evaluation/records.jsonl").read_bytes() == before


def test_a_run_names_its_slices_and_its_hardest_inputs_with_words_to_read(finished):
    result = finished.evaluation().transfer.sets["held_out"]
    assert "position" in {s.kind for s in result.slices}  # of the other kinds this text has one slice each
    record = json.loads((finished.path / "evaluation/records.jsonl").read_text().splitlines()[-1])
    assert {"position", "rarity", "teacher_confidence"} == record["cells"].keys()
    assert all("⟦" in h.text for h in result.hardest)
    assert {"bits_per_byte", "acceptance", "mending_temperature"} <= result.estimates["student"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_run_measured_again_gives_the_same_numbers(precision, base, tmp_path):
    fields = {
        "evaluation": {"prompts": ["the cat"]},
        "training": {"precision": precision, "steps": 2},
        "student": {"layers": 2},
    }
    run = tutelage.train(recipe(base, **fields), run_dir=tmp_path / "run")
    first, views = run.evaluation(), (run.path / "evaluation/next_tokens.json").read_bytes()
    again = tutelage.evaluate(run.path, force=True)
    assert numbers(again) == numbers(first)
    assert (run.path / "evaluation/next_tokens.json").read_bytes() == views


@pytest.mark.parametrize("verb", ["evaluate", "show"])
def test_a_folder_without_a_run_is_named(verb, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = call(verb, tmp_path / "empty", *(["the cat"] if verb == "show" else []))
    assert (code in (2, 3), out) == (True, "")
    assert str(tmp_path / "empty") in err
    assert len(err.splitlines()) == 1


def test_show_puts_the_models_of_a_run_side_by_side_and_takes_a_folder_alone(finished, base):
    code, out, err = call("show", finished.path, "the cat sat", "--json", "--tokens", 3, "--top", 2)
    assert code == 0, err
    (view,) = json.loads(out)["prompts"]
    assert set(view["models"]) == {"teacher", "student", "control"}
    assert all(len(model["candidates"]) >= 2 for model in view["models"].values())
    for folder in (base / "teacher", finished.path / "student"):
        code, out, err = call("show", folder, "the cat sat", "--tokens", 3)
        assert code == 0, err
        assert "the cat sat" in out
