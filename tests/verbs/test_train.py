"""`tutelage train`: from a recipe, by command line and by function, to a folder that anybody can load."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tests.verbs import tiny_runs
from tests.verbs.tiny_runs import (
    assert_equal_weights,
    call,
    chats,
    documents,
    model_folder,
    recipe,
    run_command,
    tokenizer,
    weights_of,
    written,
)
from tutelage.errors import ConfigError, IntegrityError
from tutelage.recipe import load_recipe
from tutelage.training import checkpoint

IDS = torch.arange(24)[None] % 290


def masters(run, name="student"):
    found = checkpoint.newest(
        run.directory.checkpoints / name, run_id=run.directory.run_id, required=(f"{name}.weights",)
    )
    return found.tensors[f"{name}.weights"]


def test_a_run_holds_what_the_design_lists(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert {"recipe.yaml", "provenance.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "models"} <= names
    assert {"student", "evaluation", "report.html", "finished.json"} <= names
    assert {path.name for path in (finished.path / "models").iterdir()} == {"student", "control"}
    assert (finished.path / "student").resolve() == (finished.path / "models" / "student").resolve()
    assert {"transfer.json", "records.jsonl"} <= {path.name for path in (finished.path / "evaluation").iterdir()}
    stored = load_recipe(finished.path / "recipe.yaml")
    assert stored.resolved() == load_recipe(stored).resolved()


def test_the_run_gives_metrics_student_report_measurements_text_and_a_table(finished):
    steps = [row["step"] for row in finished.metrics if row["model"] == "student"]
    assert steps == [1, 2, 3, 4]
    assert {"student/forward_kl", "student/total", "tokens"} <= finished.metrics[0].keys()
    assert_equal_weights(dict(finished.student().named_parameters()), masters(finished))
    assert finished.report().read_text().startswith("<!DOCTYPE html>") or "<html" in finished.report().read_text()
    assert set(finished.evaluation().transfer.json()["costs"]) == {"teacher", "student_before", "student", "control"}
    assert f"student: {finished.path / 'student'}" in str(finished)
    assert "<table" in finished._repr_html_()
    assert json.dumps(finished.as_json())


def test_training_changed_the_student_and_it_imitates_the_teacher_better(finished):
    estimates = finished.evaluation().transfer.json()["sets"]["held_out"]["estimates"]
    kl = {model: estimates[model]["kl_to_teacher"]["value"] for model in estimates}
    assert kl["teacher"] == 0.0
    assert kl["student"] < kl["student_before"]


@pytest.mark.slow
def test_the_student_loads_where_tutelage_was_never_imported_with_the_logits_of_the_trained_weights(finished, tmp_path):
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = torch.arange(24)[None] % 290\n"
        "from safetensors.torch import save_file\n"
        "save_file({'logits': model(input_ids=ids).logits.detach()}, sys.argv[2])\n"
        "assert not any(name.split('.')[0] == 'tutelage' for name in sys.modules)\n"
    )
    out = tmp_path / "logits.safetensors"
    command = [sys.executable, "-c", code, str(finished.path / "student"), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(finished.path / "models" / "control")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(masters(finished)[name])
        assert torch.equal(load_file(out)["logits"], model.eval()(input_ids=IDS).logits)


@pytest.mark.slow
def test_the_command_prints_the_folder_and_with_json_one_object_and_progress_goes_to_stderr(base, tmp_path):
    path = written(base)
    done = run_command("train", path, "--json", "training.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"] == "runs/recipe"
    assert result["step"] == 2
    assert "evaluation" in result
    assert "training the student: 2 of 2" in done.stderr
    assert "%|" not in done.stderr  # no bar of another library
    same = tutelage.train(path, run_dir=tmp_path / "by-function", overrides=["training.steps=2"])
    tiny_runs.assert_same_outcome(same.path, tmp_path / "runs" / "recipe")
    code, out, err = call(
        "train", path, "--run-dir", tmp_path / "plain", "--quiet", "training.steps=1", "evaluation.overlap=false"
    )
    assert (code, out, err) == (0, f"{tmp_path / 'plain'}\n", "")


@pytest.mark.slow
def test_file_mapping_and_recipe_train_the_same(base, tmp_path, finished):
    fields = {"control": True, "evaluation": {"prompts": ["the cat"]}}
    by_file = tutelage.train(written(base, **fields), run_dir=tmp_path / "file")
    by_recipe = tutelage.train(load_recipe(recipe(base, **fields)), run_dir=tmp_path / "recipe")
    for run in (by_file, by_recipe):
        tiny_runs.assert_same_outcome(run.path, finished.path)


@pytest.mark.slow
def test_objects_in_memory_train_the_student_that_files_train(base, tmp_path, finished):
    teacher = AutoModelForCausalLM.from_pretrained(base / "teacher")
    whole = recipe(base, teacher=None)
    whole["data"] = {"held_out": 0.25, "max_length": 32}
    texts = [(base / "corpus" / f"{i}.txt").read_text() for i in sorted(range(20), key=str)]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = tutelage.train(
        whole, run_dir=tmp_path / "run", teacher=teacher, tokenizer=AutoTokenizer.from_pretrained(base / "teacher"),
        data=texts,
    )  # fmt: skip
    assert_equal_weights(weights_of(run.path / "student"), masters(finished))
    assert_equal_weights(teacher.state_dict(), before)
    assert teacher.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"objects in memory, and data .* the teacher cannot be read"):
        tutelage.evaluate(run.path, force=True)
    assert run.evaluation() is not None


IN_MEMORY = {
    "chats": [*chats(24), *({"prompt": "what?", "answer": text} for text in documents(4, seed=9))],
    "rows": [{"token_ids": [5 + i, 9, 11, 12, 13], "loss_mask": [False, True, True, True, True]} for i in range(30)],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_chats_and_tokenised_rows_in_memory_are_trained_on(kind, base, tmp_path):
    student = AutoModelForCausalLM.from_pretrained(model_folder(tmp_path / "student", layers=1, seed=5))
    whole = recipe(base)
    del whole["student"]
    whole["data"] = {"held_out": 0.25, "max_length": 32, "train_on": "answers"}
    own = AutoTokenizer.from_pretrained(base / "teacher")
    data = IN_MEMORY[kind]
    run = tutelage.train(whole, run_dir=tmp_path / "run", student=student, tokenizer=own, data=data)
    trained = weights_of(run.path / "student")
    assert any(not torch.equal(trained[name], start) for name, start in student.named_parameters())
    assert run.metrics[-1]["step"] == 4


STUDENTS = {
    "important": {"layers": 2},
    "evenly": {"layers": {"evenly": 3}},
    "listed": {"layers": [0, 2]},
    "model": {"model": "student"},
    "config": {"config": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STUDENTS)
def test_every_kind_of_student_is_trained_and_saved(kind, base, tmp_path):
    section = dict(STUDENTS[kind])
    if kind == "model":
        section = {"model": str(model_folder(tmp_path / "student", layers=1, seed=5))}
    whole = recipe(base, student=section, training={"steps": 2, "precision": "float64"}, evaluation={"prompts": []})
    run = tutelage.train(whole, run_dir=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(run.path / "student", dtype="auto")
    n_layers = {"important": 2, "evenly": 3, "listed": 2, "model": 1, "config": 1}[kind]
    assert model.config.num_hidden_layers == n_layers
    assert model.dtype == torch.float64
    assert_equal_weights(dict(model.named_parameters()), masters(run))
    chosen = json.loads((run.path / "provenance.json").read_text())["layers"]["student"]
    assert (chosen is not None) == (kind == "important")


@pytest.mark.slow
def test_a_padded_vocabulary_is_warned_of_and_cut_when_it_is_saved(base, tmp_path):
    padded = model_folder(tmp_path / "padded", extra_rows=6, phantom=0.5)
    whole = recipe(base, teacher=str(padded), training={"save_dtype": "bfloat16"})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(whole))
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 0, err
    rows = len(tokenizer())
    assert f"warning[VOCAB_PAD]: teacher {rows + 6} rows, tokenizer {rows} tokens: 6 unused ids dropped" in err
    assert f"note[VOCAB_PAD]: 6 rows beyond the tokenizer's {rows}" in err
    for name in ("student", "student-bfloat16"):
        saved = weights_of(tmp_path / "run" / "models" / name)
        assert len(saved["lm_head.weight"]) == len(saved["model.embed_tokens.weight"]) == rows
    again = tutelage.evaluate(tmp_path / "run", force=True)
    assert again.transfer.json()["costs"]["student"]


def test_a_teacher_that_means_the_rows_beyond_its_vocabulary_is_refused(base, tmp_path):
    padded = model_folder(tmp_path / "padded", extra_rows=6, phantom=4.0)
    with pytest.raises(IntegrityError, match="6 ids that its tokenizer does not have") as refused:
        tutelage.train(recipe(base, teacher=str(padded)), run_dir=tmp_path / "run")
    assert refused.value.code == "VOCAB_PAD"
    assert refused.value.exit_code == 3
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_student_that_ends_otherwise_is_saved_with_both_ends(base, tmp_path):
    other = model_folder(tmp_path / "student", own=tokenizer(end="<|im_start|>"), layers=2)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(base, student={"model": str(other)})))
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 0, err
    assert "warning[EOS_MISMATCH]: teacher ends on 1 '<|im_end|>', student on 0 '<|im_start|>'" in err
    assert json.loads((tmp_path / "run/student/generation_config.json").read_text())["eos_token_id"] == [1, 0]


@pytest.mark.parametrize(
    ("own", "code"),
    [(dict(seed=1), "TOKENIZER_MISMATCH"), (dict(template="{{ messages }}"), "TEMPLATE_MISMATCH")],
)
def test_another_tokenizer_or_template_is_refused_before_a_model_is_read(own, code, base, tmp_path):
    other = model_folder(tmp_path / "student", own=tokenizer(**own))
    teacher = model_folder(tmp_path / "teacher")
    for folder in (other, teacher):
        save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(IntegrityError) as refused:
        tutelage.train(recipe(base, teacher=str(teacher), student={"model": str(other)}), run_dir=tmp_path / "run")
    assert refused.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_run_without_held_out_rows_is_refused_before_any_task_is_asked(tmp_path):
    run = tutelage.train(recipe(tmp_path, data={"held_out": None}, training={"steps": 1}), run_dir=tmp_path / "run")
    with pytest.raises(IntegrityError, match=r"NO_SCORED_TOKENS\]: no held-out rows to measure on; set data.held_out"):
        tutelage.evaluate(run.path, tasks=["no_such"])
    assert not (run.path / "evaluation").exists()
