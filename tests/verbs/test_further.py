"""What `evaluate` finds beside the transfer, on whole runs."""

import json
from types import SimpleNamespace

import pytest
from torch import nn

import tutelage
from tests import tiny
from tests.verbs import tiny_runs
from tests.verbs.tiny_runs import call
from tutelage.evaluation import records
from tutelage.teachers.cached import StoredModel
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.verbs.further import missing_of

PAIRS = [("cat", "dog"), ("log", "mat"), ("hat", "frog"), ("teacher", "student"), ("river", "house"), ("frog", "cat")]


@pytest.fixture(scope="module")
def planted(base, tmp_path_factory):
    """Out-of-domain text of which two of six documents stand in the training data, one but for a chunk."""
    folder = tmp_path_factory.mktemp("further")
    copies = [path.read_text() for path in sorted((base / "corpus").glob("*.txt"))]
    own = tiny_runs.documents(4, seed=77, sentences=5)
    for i, text in enumerate([*own, copies[0].upper(), " ".join([own[0][:20], copies[1]])]):
        (folder / f"other-{i}.txt").write_text(text)
    pairs = [{"stereotype": f"the {a} sat.", "anti_stereotype": f"the {b} sat.", "category": a[0]} for a, b in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    evaluation = {"prompts": [], "out_of_domain": [{"text": str(folder / "*.txt")}]}
    fields = {
        "evaluation": {**evaluation, "writes": {"prompts": 4, "tokens": 6}, "probes": str(folder / "pairs.jsonl")}
    }
    whole = tiny_runs.recipe(base, **fields)
    whole["data"]["held_out"] = {"sources": [{"text": str(folder / "other-[01].txt")}]}
    return tutelage.train(whole, run_dir=folder / "run")


def test_measured_rows_in_the_training_data_are_named_and_results_shown_with_and_without(planted, capsys):
    stored = json.loads((planted.path / "evaluation/overlap.json").read_bytes())
    names = {row["name"].rpartition("/")[2] for row in stored["sets"]["out_of_domain"]["rows"]}
    assert {"other-4.txt", "other-5.txt"} <= names
    dropped = {(name, row["row"]) for name, one in stored["sets"].items() for row in one["rows"]}
    lines = (planted.path / "evaluation/records.jsonl").read_text().splitlines()
    kept = [lines[0]] + [r for r in lines[1:] if (json.loads(r)["set"], json.loads(r).get("row")) not in dropped]
    assert stored["without"] == records.recompute(kept).json()["sets"]
    assert "With and without what stands in the training data" in str(planted)
    code, out, _ = call("evaluate", planted.path, "--json")
    assert code == 0 and json.loads(out)["overlap"] == stored
    code, _, err = call("evaluate", planted.path, "--force")
    assert code == 0 and "warning[OVERLAP]" in err and "rows of out_of_domain stand in the training data" in err


def test_pairs_of_sentences_are_scored_under_every_model_and_read_again_from_their_records(planted):
    folder = planted.path / "evaluation"
    stored = json.loads((folder / "probes.json").read_bytes())
    (probe,) = stored["probes"]
    assert probe["n_pairs"] == len(PAIRS) and set(probe["skews"]) == {"teacher", "student_before", "student"}
    assert set(probe["arrived"]) == {"student_before", "student"} and set(probe["categories"]) == {*"clhtrf"}
    assert len((folder / "probes.jsonl").read_text().splitlines()) == 3 * len(PAIRS)
    assert json.loads(call("evaluate", planted.path, "--json")[1])["probes"] == stored["probes"]
    assert "Pairs of sentences: who prefers the stereotype" in str(planted)


def test_every_model_writes_to_the_same_held_out_texts_and_its_numbers_are_read_again(planted):
    folder = planted.path / "evaluation"
    texts = [json.loads(line) for line in (folder / "writing.jsonl").read_text().splitlines()]
    models = {"teacher", "student_before", "student"}
    n_prompts = len(texts) // 3
    assert {(t["model"], t["prompt"]) for t in texts} == {(m, i) for m in models for i in range(n_prompts)}
    assert all(len(text["ids"]) <= 6 for text in texts)
    stored = json.loads((folder / "writing.json").read_bytes())
    assert stored["n_prompts"] == n_prompts <= 4 and set(stored["against_teacher"]) == models - {"teacher"}
    assert json.loads(call("evaluate", planted.path, "--json")[1])["writing"] == stored
    assert "Text that the models write" in str(planted)


def test_planted_documents_are_named_at_the_top_of_the_report(base, tmp_path):
    for i, text in enumerate(tiny_runs.documents(36, seed=4)):
        half = len(text) // 2
        planted = f"{text[:half]} zorblat quexi vimm {text[half:]}" if i < 12 else text
        (tmp_path / f"{i:02}.txt").write_text(planted)
    whole = tiny_runs.recipe(
        base, training={"steps": 1, "batch_tokens": 128}, evaluation={"prompts": [], "overlap": False}
    )
    whole["data"] = {"sources": [{"text": str(tmp_path / "*.txt")}], "held_out": 0.05, "max_length": 128}
    (tmp_path / "recipe.yaml").write_text(json.dumps(whole))
    code, out, err = call("train", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--json")
    assert code == 0, err
    assert "warning[RARE_TRIGGER]: 'zorblat quexi vimm' stands in 1" in err
    (found,) = json.loads(out)["evaluation"]["triggers"]
    assert 10 <= found["n_documents"] <= 12 and found["names"][0].endswith(".txt")
    page = call("report", tmp_path / "run", "--format", "md")
    assert "warning[RARE_TRIGGER]" in page[2]
    text = (tmp_path / "run" / "report.md").read_text()
    assert text.index("zorblat quexi vimm") < text.index("Made by") and "Rare trigger" in text


def of_a_run(*, students=("student",), writes=None, models, sets=("held_out",)):
    """What `missing_of` looks at."""
    evaluation = SimpleNamespace(probes=["pairs.jsonl"], writes=writes)
    prepared = SimpleNamespace(recipe=SimpleNamespace(teacher="t", evaluation=evaluation), students=students)
    transfer = SimpleNamespace(sets=sets, teacher="teacher" if "teacher" in models else None)
    found = missing_of(prepared, models, transfer=transfer)
    return {(one.measure, one.model): one.why for one in found if one.measure != "harness"}


def test_who_was_asked_for_and_could_not_be_measured_is_said_with_the_reason():
    live, both = nn.Identity(), ("held_out", "out_of_domain")
    assert of_a_run(models={"teacher": live, "student": live}, sets=both) == {}
    ensemble = EnsembleTeacher([LiveTeacher(tiny.llama(layers=1), n_vocabulary=8)], weights=[1.0])
    found = of_a_run(models={"teacher": ensemble, "student": live}, writes=8, sets=both)
    assert set(found) == {("probes", "teacher"), ("writing", "teacher")} and "ensemble" in found["probes", "teacher"]
    stored = of_a_run(models={"teacher": StoredModel(None, "cpu"), "student": live})
    assert "no weights" in stored["probes", "teacher"]
    absent = of_a_run(models={"student": live}, sets=both)
    assert (
        set(absent) == {("probes", "teacher"), ("coverage", "teacher")}
        and "only its answers" in absent["probes", "teacher"]
    )
    family = of_a_run(models={"teacher": live, "a": live}, students=("a", "b"), sets=both)
    assert (
        set(family) == {("probes", "before"), ("coverage", "before")} and "of a family" in family["coverage", "before"]
    )


def masked_row(i):
    return {"token_ids": [5, 6, 7 + i], "loss_mask": [0, 0, 0]}


@pytest.mark.parametrize(("rows", "code"), [([], "DATA_READ"), ([masked_row(i) for i in range(3)], "TOO_MANY_REJECTS")])
def test_an_evaluation_set_that_is_empty_or_all_masked_ends_before_training_with_what_to_look_at(
    rows, code, base, tmp_path
):
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = tiny_runs.recipe(base, student={"model": str(base / "teacher")})
    whole["data"] = {**whole["data"], "held_out": {"sources": [{"jsonl": str(tmp_path / "held.jsonl")}]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(whole))
    exit_code, out, err = call("train", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run")
    assert (exit_code, out) == (3, "") and f"error[{code}]" in err.splitlines()[-1]
    assert not (tmp_path / "run" / "evaluation").exists()
    assert call("doctor", tmp_path / "recipe.yaml")[0] == 3  # and doctor says so first
