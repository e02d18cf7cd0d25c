"""From a teacher's text to a student: generate, train on the answers alone, measure on prompts that were held out."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import tutelage
from tests.instruments.endpoint import Action
from tests.verbs import tiny_runs
from tests.verbs.taught import written
from tests.verbs.tiny_runs import call
from tutelage.data.answers import CARD, ROWS
from tutelage.data.sources import SourceSpec, read
from tutelage.errors import ConfigError, IntegrityError
from tutelage.training.prepare import InMemory, prepare


def test_one_recipe_asks_the_teacher_trains_a_student_and_measures_it_on_held_out_prompts(server, student, tmp_path):
    path = written(tmp_path, student, server.url, seed=0)
    code, out, err = call("train", path, "--run-dir", tmp_path / "run", "--no-ask")
    assert code == 2 and "error[ANSWERS_ABSENT]" in err and "tutelage generate RECIPE" in err and server.seen == []
    code, out, err = call("generate", path)
    assert (code, out) == (0, f"{tmp_path / 'answers'}\n"), err
    code, out, err = call("train", path, "--run-dir", tmp_path / "run")
    assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
    transfer = tutelage.Run(tmp_path / "run").evaluation().transfer
    assert set(transfer.models) == {"student_before", "student"}
    loss = {name: metrics["held_out_loss"].value for name, metrics in transfer.sets["held_out"].estimates.items()}
    assert loss["student"] < loss["student_before"] - 0.5


def prepared(path: Path):
    return prepare(tutelage.load_recipe(path), memory=InMemory())


def test_only_the_answers_are_trained_and_all_samples_of_a_prompt_are_on_one_side(server, student, tmp_path):
    path = written(tmp_path, student, server.url, seed=0)
    tutelage.generate(path)
    made = prepared(path)
    store = made.loader.store
    train = {store.documents[row].tobytes() for row in made.loader.rows}
    held_out = {row.tobytes() for row in store.documents} - train
    assert len(train | held_out) == 24 and 1 < len(held_out) < 12 and len(store) == 48
    decode = made.tokenizer.decode
    row = store.row(0)
    learned = decode(row.ids[row.loss_mask].tolist())
    assert "It was the" in learned and "user" not in learned and decode(row.ids.tolist()).count("It was the") == 1


def test_answers_alone_need_no_endpoint_and_two_sources_mix(server, student, tmp_path):
    tutelage.generate(written(tmp_path, student, server.url))
    recipe = yaml.safe_load((written(tmp_path, student, server.url, api=False)).read_text())
    recipe.pop("generate")
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(recipe))
    assert len(prepared(tmp_path / "alone.yaml").loader.store) == 48
    recipe["data"]["sources"] = [{"answers": "answers", "weight": 2.0}, {"jsonl": "more.jsonl", "messages": "messages"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(c) + "\n" for c in tiny_runs.chats(5)))
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(recipe))
    assert len(prepared(tmp_path / "mixed.yaml").loader.store) == 48 + 5


def test_reasoning_is_learned_only_when_the_recipe_says_so(server, student, tmp_path):
    server.script = lambda n, body: Action(text="<think>\nlook at it\n</think>\n\nA cat.")
    tutelage.generate(written(tmp_path, student, server.url, samples=1))
    folder = str(tmp_path / "answers")
    plain, with_it = (
        next(iter(read(SourceSpec(kind="answers", patterns=(folder,), reasoning=reasoning)))).messages[-1].content
        for reasoning in (False, True)
    )
    assert plain == "A cat." and with_it == "<think>\nlook at it\n</think>\n\nA cat."


def test_a_plain_text_is_continued_and_learned_without_a_template(server, student, tmp_path):
    server.script = lambda n, body: Action(text=" on and on", finish="length" if n else "stop")
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 20)
    (tmp_path / "b.txt").write_text("the dog saw the frog. " * 20)
    fields = {"prompts": {"text": "*.txt"}, "samples": 1, "prompt_tokens": 8, "select": [{"complete": False}]}
    path = written(tmp_path, student, server.url, **fields)
    tutelage.generate(path, overrides=["teacher.api.concurrency=1"])
    assert [s.path for s in server.seen] == ["/v1/completions"] * 2
    tokenizer = tiny_runs.tokenizer()
    assert [len(tokenizer(s.body["prompt"]).input_ids) for s in server.seen] == [8, 8]
    recipe = tutelage.load_recipe(path, ["data.held_out=null"])
    store = prepare(recipe, memory=InMemory()).loader.store
    ends = []
    for number in range(2):
        row = store.row(number)
        assert tokenizer.decode(row.ids[row.loss_mask].tolist()).startswith(" on and on")
        assert "user" not in tokenizer.decode(row.ids.tolist())
        ends.append(int(row.ids[-1]) == tokenizer.eos_token_id)
    assert ends == [True, False], "what max_tokens cut does not teach an end"


def test_a_set_that_was_cut_or_changed_cannot_be_trained_on(server, student, tmp_path):
    path = written(tmp_path, student, server.url, samples=1)
    tutelage.generate(path)
    rows = tmp_path / "answers" / ROWS
    whole = rows.read_bytes()
    lines = whole.splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:10]))
    with pytest.raises(IntegrityError, match="has 10 of 24 rows; write it again, nothing is asked twice") as caught:
        prepared(path)
    assert caught.value.code == "TRUNCATED"
    rows.write_bytes(whole.replace(b"It was", b"It wax", 1))
    with pytest.raises(IntegrityError, match="is not what card.json says") as caught:
        prepared(path)
    assert caught.value.code == "CHECKSUM"
    card = tmp_path / "answers" / CARD
    card.write_text(card.read_text().replace('"rows": 24', '"rows": 25'))
    with pytest.raises(IntegrityError, match="does not have its own checksum"):
        prepared(path)
    n = len(server.seen)
    tutelage.generate(path)
    assert rows.read_bytes() == whole and len(server.seen) == n
    assert np.any(prepared(path).loader.store.n_trained > 0)


def test_a_teacher_whose_weights_are_there_may_also_score_its_own_text(server, student, tmp_path):
    tutelage.generate(written(tmp_path, student, server.url, samples=1))
    changes = [f"teacher={{model: {student}, answers: answers}}", "student={layers: {evenly: 2}}", "loss=forward_kl"]
    recipe = tutelage.load_recipe(tmp_path / "recipe.yaml", [*changes, "generate=null"])
    made = prepare(recipe, memory=InMemory())
    assert made.teacher is not None and len(made.loader.store) == 24 and made.recipe.data.train_on == "answers"


def test_text_gives_no_distributions(student, tmp_path):
    path = written(tmp_path, student, "http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=r"loss needs a teacher that gives distributions; answers are text"):
        tutelage.load_recipe(path, ["loss=forward_kl"])
    with pytest.raises(ConfigError, match=r"student.layers needs teacher.model: text has no weights"):
        tutelage.load_recipe(path, ["student={layers: 2}"])


def test_the_rows_load_with_datasets_like_any_json_lines(server, student, tmp_path):
    tutelage.generate(written(tmp_path, student, server.url, samples=1))
    found = [json.loads(line) for line in (tmp_path / "answers" / ROWS).read_text().splitlines()]
    assert len(found) == 24 and all(list(r) == list(found[0]) for r in found)
