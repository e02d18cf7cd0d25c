"""The recipes that `tutelage init` writes run as they are, at tiny size; hard and cached in test_documentation.py."""

import pytest

import tutelage
from tests.verbs.tiny_runs import call
from tutelage.recipe.templates import techniques

TINY = (
    "data.max_length=32", "training.batch_tokens=64", "training.micro_batch=1", "training.precision=float32",
    "training.threads=1", "training.tokens=256", "data.held_out=0.25",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("technique", [name for name in techniques() if name not in ("hard", "cached")])
def test_every_template_trains_a_student(technique, base, tmp_path):
    recipe = tmp_path / f"{technique}.yaml"
    assert call("init", technique, "--output", recipe)[0] == 0
    sources = f"data.sources=[{{text: {base}/corpus/*.txt}}]"
    smaller = "student={layers: 2}"
    if technique == "scratch":
        smaller = "student.config={model_type: llama, hidden_size: 10, intermediate_size: 12, num_hidden_layers: 2, "
        smaller += "num_attention_heads: 5, num_key_value_heads: 5, tie_word_embeddings: true}"
    students = {"co": ("two_thirds", "half"), "family": ("large", "medium", "small")}.get(technique, ())
    teacher = f"teacher{'.model' if technique == 'co' else ''}={base}/teacher"
    smallest = [f"students.{name}.layers={2 - i % 2}" for i, name in enumerate(students)]
    arguments = [teacher, sources, *(smallest or [smaller]), *TINY]
    arguments += ["evaluation.prompts=[]"] if technique != "soft" else []
    code, out, err = call("train", recipe, "--run-dir", tmp_path / "run", *arguments)
    assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
    run = tutelage.Run(tmp_path / "run")
    expected = {"teacher", "student_before", "student"} | ({"control"} if technique != "control" else set())
    if students:
        controls = {f"control-{name}" for name in students} if technique == "co" else set()
        expected = {"teacher", *students} | controls
    assert set(run.evaluation().transfer.models) == expected
