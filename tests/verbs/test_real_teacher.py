"""The real teacher teaches: SmolLM2-135M-Instruct from its package, a few steps on Python's documentation."""

import pytest
from transformers import AutoModelForCausalLM

import tutelage

RECIPE = {
    "teacher": "package:smollm2-135m-instruct",
    "student": {"layers": [*range(12), *range(12, 24, 2), 28, 29]},
    "data": {"sources": [{"python_docs": True, "limit": 400}], "held_out": 0.05, "max_length": 128},
    "loss": "forward_kl",
    "training": {"tokens": 1536, "batch_tokens": 256, "learning_rate": 4e-4, "warmup": 0.2, "save_every": 1.0},
    "evaluation": {"rows": 6},
}


@pytest.mark.real
@pytest.mark.slow
def test_a_few_steps_bring_a_student_of_the_real_teacher_nearer_to_it(tmp_path):
    run = tutelage.train(RECIPE, run_dir=tmp_path / "run")
    measured = run.evaluation()
    assert measured is not None
    kl = {name: metrics["kl_to_teacher"] for name, metrics in measured.transfer.sets["held_out"].estimates.items()}
    assert kl["teacher"].value == pytest.approx(0.0, abs=1e-9)
    assert kl["student"].value < 0.9 * kl["student_before"].value
    assert (run.path / "report.html").stat().st_size > 10_000
    student = AutoModelForCausalLM.from_pretrained(run.path / "student")
    assert student.config.num_hidden_layers == 20
