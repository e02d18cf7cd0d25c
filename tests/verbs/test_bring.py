"""One recipe for both: `train` buys the answers that are missing, only under a cap, and none twice."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import tutelage
from tests.generation.asking import ledger_of, rows
from tests.instruments import faults
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs.taught import written
from tests.verbs.tiny_runs import call
from tutelage.data.answers import ROWS
from tutelage.errors import ConfigError, LimitError
from tutelage.generation import journal as journals
from tutelage.recipe import load_recipe
from tutelage.verbs.bring import bring_answers

N = 24  # prompts of the recipe


def bring(path: Path, *overrides: str, ask: bool = True) -> None:
    bring_answers(load_recipe(path, overrides), ask=ask, allow_private_host=False, before=lambda: None)


def test_train_buys_what_is_missing_under_the_cap_of_the_recipe_and_trains(server, student, tmp_path):
    priced = {"budget_usd": 1.0, "price": {"prompt_usd": 1.0, "answer_usd": 2.0}, "max_requests": None, "samples": 1}
    path = written(tmp_path, student, server.url, **priced)
    code, out, err = call("train", path, "--run-dir", tmp_path / "run")
    assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
    assert len(server.seen) == N and (tmp_path / "run" / "student").is_dir()
    lines = err.splitlines()
    cap = next(i for i, line in enumerate(lines) if line.startswith("cap: $0 of $1 spent; these answers cost at most"))
    assert cap < next(i for i, line in enumerate(lines) if line.startswith("answers: "))
    shutil.rmtree(tmp_path / "run")
    assert call("train", path, "--run-dir", tmp_path / "run")[0] == 0 and len(server.seen) == N, "bought once"


def test_without_a_cap_nothing_is_bought_and_the_error_names_the_command(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1, max_requests=None)
    with pytest.raises(ConfigError, match=f"holds 0 of the {N} answers, and train buys none without a cap") as caught:
        tutelage.train(path, run_dir=tmp_path / "run")
    assert caught.value.code == "ANSWERS_ABSENT" and "type: tutelage generate RECIPE gen" in caught.value.message
    with pytest.raises(ConfigError, match="needs a cap"):
        tutelage.generate(path)
    assert server.seen == []
    tutelage.generate(path, overrides=["generate.max_requests=100"])
    bring(path)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "the new one"}\n')
    with pytest.raises(ConfigError, match=f"holds {N} of the {N + 1} answers"):
        bring(path)
    assert len(server.seen) == N


def test_killed_anywhere_train_goes_on_and_buys_nothing_twice(server, student, tmp_path):
    def train() -> None:
        tutelage.train(path, run_dir=tmp_path / "run", overrides=["teacher.api.concurrency=2"])

    path = written(tmp_path, student, server.url, samples=1)
    acknowledged = set[str]()
    for n in (4, 9, 12, 20, 26):
        assert faults.in_child(train, faults.die_inside(n)) == faults.DIED
        known = set(ledger_of(tmp_path).final) if (tmp_path / "answers" / journals.NAME).exists() else set()
        assert acknowledged <= known
        acknowledged = known
    assert acknowledged
    train()
    assert len(rows(tmp_path)) == N and (tmp_path / "run" / "finished.json").is_file()
    assert len(server.seen) <= N + 5 * 2, "what was under way when it died, and nothing else"


def test_at_the_cap_it_stops_and_no_ask_trains_on_what_is_there(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1, max_requests=9)
    with pytest.raises(LimitError, match="9 of 24 answers are safe.*or train on what is there: --no-ask"):
        tutelage.train(path, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    code, _, err = call("train", path, "--no-ask", "--run-dir", tmp_path / "run")
    assert code == 0, err
    assert len(rows(tmp_path)) == len(server.seen) == 9


def test_answers_that_are_there_need_neither_key_nor_server_nor_lock(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1)
    tutelage.generate(path)
    before = (tmp_path / "answers" / ROWS).stat().st_mtime_ns
    holder = journals.Journal(tmp_path / "answers", lambda _: None)
    try:
        bring(path, "teacher.api.key_env=NOT_SET_ANYWHERE")
    finally:
        holder.close()
    assert (tmp_path / "answers" / ROWS).stat().st_mtime_ns == before
    (tmp_path / "answers" / journals.NAME).unlink()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a set from elsewhere is what it is"}\n')
    bring(path)
    assert len(server.seen) == N


def test_a_changed_selection_is_followed_without_asking(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1)
    tutelage.generate(path)
    kept = [r for r in rows(tmp_path) if "cat" in r["messages"][-1]["content"]]
    bring(path, "generate.select=[{verify: {regex: cat}}]")
    assert rows(tmp_path) == kept and 0 < len(kept) < N and len(server.seen) == N


def test_a_corrected_reference_makes_the_set_anew_without_asking(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1, select=[{"verify": {"regex": "."}}, {"verify": "exact"}])
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]

    def write(answer: str) -> None:
        rows_ = [{**prompt, "answer": answer.format(prompt["prompt"].split()[1])} for prompt in prompts]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))

    asked = ["generate.prompts={jsonl: prompts.jsonl, prompt: prompt, answer: answer}"]
    write("It was another.")
    tutelage.generate(path, overrides=asked)
    assert rows(tmp_path) == []
    write("It was the {} .")
    bring(path, *asked)
    assert len(rows(tmp_path)) == len(server.seen) == N


def test_answers_that_are_not_judged_yet_are_judged_before_the_training(server, student, tmp_path):
    with Endpoint(lambda n, body: Action(text="Score: 5")) as judge:
        path = written(tmp_path, student, server.url, samples=2, seed=0, max_requests=2 * N + 5)
        tutelage.generate(path)
        api = f"{{base_url: '{judge.url}', model: j}}"
        step = f"generate.select=[{{best: {{by: judge, judge: {{api: {api}}}}}}}]"
        with pytest.raises(LimitError, match="max_requests"):
            bring(path, step)
        assert 0 < len(judge.seen) <= 5
        bring(path, step, "generate.max_requests=1000")
        assert len(judge.seen) == 2 * N and len(rows(tmp_path)) == N and len(server.seen) == 2 * N
        bring(path, step, "generate.max_requests=1000")
        assert len(judge.seen) == 2 * N


def test_what_would_stop_the_training_is_said_before_anything_is_bought(server, student, tmp_path):
    path = written(tmp_path, tmp_path / "nowhere", server.url, samples=1)
    with pytest.raises(ConfigError, match="nowhere is not there"):
        tutelage.train(path, run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        tutelage.train(written(tmp_path, student, server.url, samples=1), run_dir=tmp_path / "run")
    assert caught.value.code == "EXISTS" and server.seen == []


def test_the_library_trains_from_a_dict_and_asks_nothing_when_told(server, student, tmp_path):
    recipe = yaml.safe_load(written(tmp_path, student, server.url, samples=1).read_text())
    recipe["teacher"]["answers"] = str(tmp_path / "answers")
    recipe["generate"]["prompts"] = str(tmp_path / "prompts.jsonl")
    with pytest.raises(ConfigError, match="holds no answers, and --no-ask buys none"):
        tutelage.train(recipe, run_dir=tmp_path / "run", ask=False)
    assert server.seen == []
    run = tutelage.train(recipe, run_dir=tmp_path / "run")
    assert json.loads((run.path / "finished.json").read_text())["step"] == 4 and len(server.seen) == N


def test_the_student_itself_writes_verifies_and_learns_its_own_right_answers(student, tmp_path):
    recipe = yaml.safe_load(written(tmp_path, student, "", api=False).read_text())
    recipe["teacher"] = {"model": str(student), "dtype": "float32", "terms": "own", "answers": "answers"}
    recipe["generate"] = {
        "prompts": "prompts.jsonl", "samples": 2, "max_tokens": 6, "seed": 0, "batch": 16,
        "select": [{"complete": False}, {"verify": {"regex": "[aeiou]"}}, {"length": {"least": 3}}],
    }  # fmt: skip
    path = tmp_path / "self.yaml"
    path.write_text(yaml.safe_dump(recipe))
    code, _, err = call("train", path, "--run-dir", tmp_path / "run", "--no-ask")
    assert code == 2 and "error[ANSWERS_ABSENT]" in err
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 0, err
    kept = rows(tmp_path)
    assert 2 < len(kept) < 2 * N and (tmp_path / "run" / "finished.json").is_file()
    assert call("status", tmp_path / "answers")[0] == 0


def test_a_model_here_does_not_write_over_the_answers_of_another_teacher(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1)
    tutelage.generate(path)
    bought = rows(tmp_path)
    changes = [f"teacher={{model: {student}, dtype: float32, answers: answers}}", "generate.max_requests=null"]
    with pytest.raises(
        ConfigError, match="holds answers of m to other requests, none that the recipe asks; leave generate"
    ):
        bring(path, *changes)
    assert rows(tmp_path) == bought
    bring(path, changes[0], "generate=null")
