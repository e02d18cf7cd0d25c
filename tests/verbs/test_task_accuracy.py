"""Task accuracy: held-out prompts, the teacher's verdicts, and what the student writes before and after."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import tutelage
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs.taught import TRAINING
from tests.verbs.tiny_runs import call
from tutelage.data.answers import VERDICTS, example_of, read_card
from tutelage.data.split import is_held_out
from tutelage.errors import IntegrityError
from tutelage.evaluation.written import write_answers
from tutelage.generation.verdicts import read_verdicts
from tutelage.models import load
from tutelage.verbs.bring import bring_answers

N = 40


def right(i: int) -> bool:
    """Whether the teacher knows this one: two of three."""
    return i % 3 != 0


def number_of(body) -> int:
    return int(body["messages"][-1]["content"].split()[2])


def answering(n, body):
    i = number_of(body)
    return Action(text=f"It is {7 if right(i) else 9}.")


def written(folder: Path, student: Path, url: str, *, text=answering, **fields: object) -> Path:
    rows = [{"prompt": f"What is {i} the?", "answer": "7"} for i in range(N)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "teacher": {"answers": "answers", "api": {"base_url": url, "model": "m", "terms": "own"}},
        "student": str(student),
        "data": {"held_out": 0.4, "max_length": 64},
        "loss": "cross_entropy",
        "training": {**TRAINING, "steps": 40, "learning_rate": 1e-2},
        "generate": {
            "prompts": {"jsonl": "prompts.jsonl", "prompt": "prompt", "answer": "answer"},
            "max_requests": 200,
            "max_tokens": 12,
            "select": [{"verify": "number"}],
        },
        "evaluation": {"prompts": []},
    }
    for name, value in fields.items():
        whole[name] = {**whole[name], **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def held_out(folder: Path, share: float) -> list[int]:
    """The numbers of the prompts that the split holds out, whether their answers were kept or not."""
    _, asked = read_verdicts(folder, read_card(folder))
    examples = [example_of(one.row) for one in asked]
    return [int(e.messages[0].content.split()[2]) for e in examples if is_held_out(e.document, share)]


def test_teacher_and_student_are_judged_on_the_same_held_out_prompts_wrong_answers_counted(student, tmp_path):
    with Endpoint(answering) as server:
        path = written(tmp_path, student, server.url)
        made = tutelage.generate(path)
        assert made.card.rows == sum(right(i) for i in range(N))
        code, _, err = call("train", path, "--run-dir", tmp_path / "run")
        assert code == 0, err
    numbers = held_out(tmp_path / "answers", 0.4)
    result = tutelage.Run(tmp_path / "run").evaluation().tasks
    assert result.models == ("teacher", "student_before", "student") and result.n_prompts == len(numbers) > 5
    share = {model: result.estimates[model]["right_answers"].value for model in result.models}
    assert share["teacher"] == pytest.approx(np.mean([right(i) for i in numbers])) and 0 < share["teacher"] < 1
    assert share["student_before"] == 0 and share["student"] > 0.8  # it learned right answers alone
    difference = result.difference("right_answers", first="student", second="student_before")
    assert difference.decided and difference.n == len(numbers)
    _, against = result.contingencies
    cells = (against.both, against.only_first, against.only_second, against.neither)
    assert (against.first, against.second) == ("teacher", "student") and sum(c.value for c in cells) == pytest.approx(1)
    assert against.difference.value == pytest.approx(share["teacher"] - share["student"])
    assert result.contingencies[0].same_wrong.share.n == sum(not right(i) for i in numbers)  # what it said was kept
    assert "Right where the other is wrong" in str(tutelage.Run(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Held-out prompts, answered" in page and "Right answers, %" in page
    assert "Held-out prompts, answered" in str(tutelage.Run(tmp_path / "run"))
    told = json.loads(call("evaluate", tmp_path / "run", "--json")[1])
    assert told["tasks"]["n_prompts"] == len(numbers) and "right_answers" in told["tasks"]["estimates"]["student"]
    texts = [json.loads(line) for line in (tmp_path / "run/evaluation/answers.jsonl").read_text().splitlines()]
    assert len(texts) == 3 * len(numbers) and all(row["text"] for row in texts if row["model"] != "teacher")


def test_valid_json_is_counted_where_a_schema_is_asked_for(student, tmp_path):
    def script(n, body):
        i = number_of(body)
        return Action(text='{"a": 1}' if right(i) else '{"b": 1}' if i % 2 else "no json")

    schema = {"type": "object", "required": ["a"]}
    with Endpoint(script) as server:
        select = {"select": [{"verify": {"json_schema": schema}}]}
        path = written(tmp_path, student, server.url, generate=select, training={"steps": 1})
        tutelage.generate(path)
        run = tutelage.train(path, run_dir=tmp_path / "run")
    numbers = held_out(tmp_path / "answers", 0.4)
    found = run.evaluation().tasks.estimates["teacher"]
    assert found["right_answers"].value == pytest.approx(np.mean([right(i) for i in numbers]))
    assert found["valid_json"].value == pytest.approx(np.mean([right(i) or i % 2 for i in numbers]))


def test_a_damaged_or_shortened_file_of_verdicts_is_refused(student, tmp_path):
    with Endpoint(answering) as server:
        tutelage.generate(written(tmp_path, student, server.url))
    folder = tmp_path / "answers"
    path, card = folder / VERDICTS, read_card(folder)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(list(read_verdicts(folder, card)[1])) == N
    other = whole.replace(b'"right":1', b'"right":0', 1)  # sound JSON, and another verdict
    spoilt = (other, b"".join(lines[:-1]), b"".join(lines[:3] + lines[4:]), whole[:-1][:-5], b"")
    for data in spoilt:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="the file is damaged; write it anew: tutelage generate") as caught:
            list(read_verdicts(folder, card)[1])
        assert caught.value.code == "DATA_READ"


def test_a_verified_set_whose_verdicts_are_of_an_older_form_says_how_to_write_them(student, tmp_path, capsys):
    with Endpoint(answering) as server:
        path = written(tmp_path, student, server.url, training={"steps": 1})
        tutelage.generate(path)
    folder = tmp_path / "answers"
    (folder / VERDICTS).rename(folder / "verdicts.jsonl")
    alone = yaml.safe_load(path.read_text())
    del alone["generate"], alone["teacher"]["api"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
    tutelage.train(tmp_path / "alone.yaml", run_dir=tmp_path / "run")
    said = capsys.readouterr().err
    assert "note[TASKS]: task accuracy is not measured" in said and "(an older tutelage wrote verdicts.jsonl)" in said
    assert "nothing is asked: tutelage generate RECIPE --no-ask" in said
    (folder / "journal.jnl").rename(tmp_path / "journal.jnl")
    tutelage.train(tmp_path / "alone.yaml", run_dir=tmp_path / "foreign", overrides=["training.seed=1"])
    assert "and the journal.jnl that it follows from" in capsys.readouterr().err
    (tmp_path / "journal.jnl").rename(folder / "journal.jnl")
    bring_answers(tutelage.load_recipe(path), ask=False, allow_private_host=False, before=lambda: None)
    assert len(list(read_verdicts(folder, read_card(folder))[1])) == N, "a recipe that generates repairs it by itself"


def test_no_prompt_is_asked_without_a_verifier_without_held_out_rows_or_where_none_is_wanted(student, tmp_path):
    with Endpoint(answering) as server:
        quick = {"steps": 1}
        path = written(tmp_path, student, server.url, training=quick, evaluation={"task_prompts": None})
        tutelage.generate(path)
        assert tutelage.train(path, run_dir=tmp_path / "a").evaluation().tasks is None
        few = written(tmp_path, student, server.url, training=quick, evaluation={"task_prompts": 3})
        assert tutelage.train(few, run_dir=tmp_path / "b").evaluation().tasks.n_prompts == 3
        tutelage.generate(path, overrides=["generate.select=[]"], ask=False)
        assert not (tmp_path / "answers" / VERDICTS).exists()


def test_a_function_judges_students_only_where_the_recipe_names_it_itself(student, tmp_path, capsys):
    """A set may come from somebody else, and its verdicts name code."""
    ran = tmp_path / "ran"
    (tmp_path / "check.py").write_text(
        f"def right(prompt, answer, reference):\n    open({str(ran)!r}, 'a').write('x')\n    return '7' in answer\n"
    )
    with Endpoint(answering) as server:
        select = {"select": [{"verify": {"function": "check.py:right"}}]}
        path = written(tmp_path, student, server.url, generate=select, training={"steps": 1})
        tutelage.generate(path)
    tutelage.train(path, run_dir=tmp_path / "named")
    assert ran.stat().st_size > N and (tmp_path / "named" / "evaluation" / "tasks.json").is_file()
    before = ran.stat().st_size
    changed = yaml.safe_load(path.read_text())
    del changed["generate"], changed["teacher"]["api"]
    path.write_text(yaml.safe_dump(changed))
    tutelage.train(path, run_dir=tmp_path / "foreign")
    assert "note[TASKS]" in capsys.readouterr().err
    assert ran.stat().st_size == before and not (tmp_path / "foreign" / "evaluation" / "tasks.json").exists()


def test_a_batch_writes_what_each_prompt_alone_would_write(student):
    model, tokenizer = load.load_model(str(student), dtype="float32", device="cpu"), load.load_tokenizer(str(student))
    ids = [tokenizer.encode(text) for text in ("the cat", "the dog saw the frog. the", "a", "the river")]
    together = write_answers(model, tokenizer, ids, n_vocabulary=len(tokenizer), max_tokens=9)
    alone = [write_answers(model, tokenizer, [one], n_vocabulary=len(tokenizer), max_tokens=9)[0] for one in ids]
    assert together == alone
    for one, text in zip(ids, together, strict=True):
        with torch.no_grad():
            made = list(one)
            while len(made) < len(one) + 9:
                made.append(int(model(input_ids=torch.tensor([made])).logits[0, -1].argmax()))
                if made[-1] == tokenizer.eos_token_id:
                    made.pop()
                    break
        assert text == tokenizer.decode(made[len(one) :], clean_up_tokenization_spaces=False)
