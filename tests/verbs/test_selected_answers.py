"""The whole road with every selection: a template, a function, a judge, decontamination, near-duplicates, data."""

import json
from pathlib import Path

import pytest
import yaml

import tutelage
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs import tiny_runs
from tests.verbs.tiny_runs import call
from tutelage.training.prepare import InMemory, prepare

CHECK = """
def right(prompt, answer, reference):
    return reference in answer
"""


def answering(n: int, body: dict) -> Action:
    if body["model"] == "judge":
        return Action(text="Score: 8" if "surely" in body["messages"][0]["content"] else "Score: 2")
    word = body["messages"][-1]["content"].split()[3]
    return Action(text=f"It was the {word}." if body["seed"] else f"It was surely the {word}.")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "student")


def written(folder: Path, student: Path, url: str) -> Path:
    texts = tiny_runs.documents(24)
    lines = [{"about": t.split()[1], "text": t, "gold": t.split()[1]} for t in texts]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "exam.jsonl").write_text(json.dumps({"question": lines[3]["text"]}) + "\n")
    (folder / "check.py").write_text(CHECK)
    price = {"prompt_usd": 1.0, "answer_usd": 2.0}
    best = {"by": "judge", "judge": {"api": {"base_url": url, "model": "judge"}, "price": price}}
    recipe = {
        "teacher": {"answers": "answers", "api": {"base_url": url, "model": "m", "terms": "own"}},
        "student": str(student),
        "data": {"held_out": 0.25, "max_length": 128},
        "loss": "cross_entropy",
        "training": {"steps": 2, "batch_tokens": 128, "micro_batch": 1, "learning_rate": 1e-2, "precision": "float32"},
        "generate": {
            "prompts": {"jsonl": "q.jsonl", "template": "Which animal? {text}", "answer": "gold"},
            "system": "Answer about {about}.",
            "samples": 2,
            "seed": 0,
            "max_tokens": 20,
            "budget_usd": 1.0,
            "price": price,
            "select": [
                {"verify": {"function": "check.py:right"}},
                {"decontaminate": {"against": "exam.jsonl", "columns": ["question"]}},
                {"best": best},
                {"deduplicate": {"near": 0.9}},
            ],
        },
        "evaluation": {"prompts": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def test_from_columns_to_what_a_student_learns_through_every_selection(student, tmp_path):
    with Endpoint(answering) as server:
        path = written(tmp_path, student, server.url)
        code, out, err = call("generate", path)
        assert (code, out) == (0, f"{tmp_path / 'answers'}\n"), err
        n_seen = len(server.seen)
        assert call("generate", path, "--json")[0] == 0 and len(server.seen) == n_seen
    rows = [json.loads(line) for line in (tmp_path / "answers" / "answers.jsonl").read_text().splitlines()]
    roles = [[turn["role"] for turn in row["messages"]] for row in rows]
    assert set(map(tuple, roles)) == {("system", "user", "assistant")}
    assert all("surely" in row["messages"][-1]["content"] and row["sample"] == 0 for row in rows)
    card = json.loads((tmp_path / "answers" / "card.json").read_text())
    dropped = {step["step"]: step["reasons"] for step in card["dropped"]}
    n_exam = dropped["decontaminate"]["overlaps exam.jsonl"]
    assert n_exam >= 2 and dropped["best"] == {"not the best of its prompt": len(rows)}
    assert len(rows) == 24 - n_exam // 2 and set(card["select_files"]) == {"check.py:right", "exam.jsonl"}
    made = prepare(tutelage.load_recipe(path), memory=InMemory())  # what `train` begins with; test_answers.py trains
    row = made.loader.store.row(0)
    learned = made.tokenizer.decode(row.ids[row.loss_mask].tolist())
    assert len(made.loader.store) == len(rows) and "surely" in learned and "about" not in learned
