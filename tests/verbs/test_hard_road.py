"""The whole road of hard labels with the real teacher: prompts, its answers, verified, learned, measured by tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tutelage
from tests.generation.asking import ledger_of, rows
from tutelage.data.answers import ROWS, VERDICTS, read_card
from tutelage.generation.verdicts import read_verdicts
from tutelage.models.load import load_tokenizer

TEACHER = "package:smollm2-135m-instruct"
COUNTED = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
N = len(COUNTED) + 1


def small_student(folder: Path) -> Path:
    """A Llama of the teacher's tokenizer that knows nothing; it has the positions that training needs, no more."""
    tokenizer = load_tokenizer(TEACHER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipes(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What asks, and what learns."""
    question = "Write the number {} in digits. Answer with digits only."
    asked = [{"q": question.format(word), "a": str(n)} for word, n in COUNTED.items()]
    asked.append({"q": question.format("three hundred"), "a": "777777"})  # nobody is right
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    same = {
        "student": str(small_student(folder / "small")),
        "data": {"held_out": 0.4, "max_length": 64},
        "loss": "cross_entropy",
        "training": {"steps": 3, "batch_tokens": 128, "learning_rate": 1e-3, "precision": "float32"},
        "evaluation": {"prompts": [], "task_prompts": 3},
    }
    generate = {
        "prompts": {"jsonl": str(folder / "prompts.jsonl"), "prompt": "q", "answer": "a"},
        "max_tokens": 8, "temperature": 0.0, "select": [{"complete": False}, {"verify": "number"}],
    }  # fmt: skip
    answers = {"answers": str(folder / "answers")}
    teacher = {**answers, "model": TEACHER, "terms": "Apache-2.0", "dtype": "float32", "device": "cpu"}
    return {**same, "teacher": teacher, "generate": generate}, {**same, "teacher": answers}


@pytest.mark.real
@pytest.mark.slow
def test_prompts_become_verified_answers_a_trained_student_and_its_accuracy(tmp_path):
    asking, learning = recipes(tmp_path)
    made = tutelage.generate(asking)
    folder, card = tmp_path / "answers", read_card(tmp_path / "answers")
    head, asked = read_verdicts(folder, card)
    assert card.asked == made.n_sent == N == len(ledger_of(tmp_path).final) and head.max_tokens == 8
    assert 0 < card.rows == sum(one.right for one in asked) == len(rows(tmp_path)) < N, "verified one by one"
    assert sum(step.n for step in card.dropped) == N - card.rows, "every drop is counted"
    assert all(str(row["reference"]) in row["messages"][-1]["content"] for row in rows(tmp_path))
    run = tutelage.train(learning, run_dir=tmp_path / "run")
    result = run.evaluation().tasks
    assert result.models == ("teacher", "student_before", "student") and 0 < result.n_prompts <= 3
    assert all(0 <= result.estimates[model]["right_answers"].value <= 1 for model in result.models)
    assert "Held-out prompts, answered" in str(run) and "Right answers" in str(run)
    student = AutoModelForCausalLM.from_pretrained(run.path / "student")
    assert student.config.num_hidden_layers == 2
    for path in (folder / ROWS, folder / VERDICTS, run.path / "report.html", run.path / "evaluation" / "tasks.json"):
        assert path.stat().st_size > 100
