"""Families, co-distillation and mutual learning by one recipe: trained, killed, resumed, forked, measured, refused."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tutelage
from tests.verbs.tiny_runs import (
    assert_equal_weights,
    assert_same_outcome,
    call,
    command_in_fork,
    model_folder,
    recipe,
    tokenizer,
    wait,
    weights_of,
    written,
)
from tutelage.errors import ConfigError

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STUDENTS = {
    "small": {"layers": {"evenly": 2}},
    "tiny": {"config": SMALL, "learning_rate": 3e-3, "start_at_step": 2, "loss": ["reverse_kl"]},
}
LOSS = [{"divergence": "forward_kl", "weight": 0.5}, {"cross_entropy": "ground_truth", "weight": 0.5}]


def co(base: Path, **fields) -> dict:
    teacher = {"model": str(base / "teacher"), "train": {"learning_rate": 5e-3, "freeze_at_step": 3}}
    return recipe(base, **{"teacher": None, "student": None, "students": STUDENTS, "loss": LOSS, **fields}) | (
        {"teacher": teacher} if "teacher" not in fields else {}
    )


@pytest.fixture(scope="module")
def path(base: Path, tmp_path_factory) -> Path:
    recipe(base)
    file = tmp_path_factory.mktemp("families") / "co.yaml"
    file.write_text(json.dumps(co(base, control=True)))
    return file


@pytest.fixture(scope="module")
def whole(path: Path) -> tutelage.Run:
    """The run that nobody interrupted."""
    return tutelage.train(path, run_dir=path.parent / "whole")


def test_every_model_is_saved_measured_and_shown(whole, base):
    names = ["teacher", "small", "control-small", "tiny", "control-tiny"]
    assert sorted(folder.name for folder in (whole.path / "models").iterdir()) == sorted(names)
    measured = whole.evaluation()
    assert list(measured.transfer.models) == names
    losses = {n: measured.transfer.sets["held_out"].estimates[n]["held_out_loss"].value for n in ("small", "tiny")}
    assert os.readlink(whole.path / "student") == f"models/{min(losses, key=losses.get)}"
    given = weights_of(base / "teacher")
    trained = weights_of(whole.path / "models" / "teacher")
    assert any(not torch.equal(given[key], trained[key]) for key in given)
    AutoModelForCausalLM.from_pretrained(whole.path / "models" / "tiny")
    page = whole.report().read_text()
    assert "control-tiny" in page
    text = str(whole)
    assert "small, held-out loss: " in text and "Size against quality" in text
    assert call("show", whole.path, "the cat")[0] == 0


def test_each_model_has_its_lines_in_the_metrics_for_the_steps_that_it_trained(whole):
    steps = {}
    for row in whole.metrics:
        steps.setdefault(row["model"], []).append(row["step"])
    all_steps, late = [1, 2, 3, 4], [3, 4]
    assert steps.pop("teacher") == [1, 2, 3]
    assert steps == {"small": all_steps, "tiny": late, "control-small": all_steps, "control-tiny": late}
    row = next(r for r in whole.metrics if r["model"] == "small")
    assert {"small/forward_kl", "small/cross_entropy", "small/learning_rate"} <= row.keys()
    assert not any(key.startswith("tiny/") for key in row)


def test_the_evaluation_is_made_again_from_what_was_saved(whole):
    before = whole.evaluation().transfer.json()["sets"]
    assert tutelage.evaluate(whole.path, force=True).transfer.json()["sets"] == before


PLACES = ("checkpoints/family/step-000003.partial", "checkpoints/controls/step", "models/tiny")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_family_killed_anywhere_ends_in_the_same_bits(place, path, whole, tmp_path):
    run = tmp_path / "run"

    def before():
        from tutelage import io

        def die_there(operation):
            if place in str(operation.path):
                os.kill(os.getpid(), signal.SIGKILL)

        io.FAULTS = die_there

    pid = command_in_fork("train", path, "--run-dir", run, log=tmp_path / "log", before=before)
    assert wait(pid) == -signal.SIGKILL
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 0, err
    assert_same_outcome(run, whole.path)


@pytest.mark.slow
def test_a_fork_of_a_family_goes_on_from_all_its_weights(path, whole):
    forked = tutelage.train(path, run_dir=whole.path, fork=True)
    start = tutelage.training.checkpoint.newest(
        forked.directory.checkpoints / "start", run_id=forked.directory.run_id
    ).tensors
    for name in ("teacher", "small", "tiny"):
        assert_equal_weights(start[f"{name}.weights"], weights_of(whole.path / "models" / name))


def test_one_student_of_a_family_is_the_student_of_a_run_of_its_own(base, tmp_path):
    section = {"layers": {"evenly": 2}}
    alone = tutelage.train(recipe(base, student=section), run_dir=tmp_path / "alone")
    two = recipe(base, student=None, students={"a": section, "b": {"config": SMALL}})
    family = tutelage.train(two, run_dir=tmp_path / "family")
    assert_equal_weights(weights_of(family.path / "models/a"), weights_of(alone.path / "student"))


def test_equals_learn_from_each_other_without_any_teacher(base, tmp_path):
    def learns(other: str) -> dict:
        loss = [{"divergence": "forward_kl", "teacher": other}, {"cross_entropy": "ground_truth"}]
        return {"model": str(base / "teacher"), "loss": loss}

    run = tutelage.train(
        recipe(base, teacher=None, student=None, loss=None, students={"a": learns("b"), "b": learns("a")}),
        run_dir=tmp_path / "run",
    )
    assert {"a/forward_kl.b", "a/cross_entropy"} <= run.metrics[0].keys()
    assert_equal_weights(weights_of(run.path / "models/a"), weights_of(run.path / "models/b"))


def test_a_teacher_from_nothing_takes_the_tokenizer_and_the_config_of_a_model(base, tmp_path):
    teacher = {"config": {**SMALL, "num_hidden_layers": 2}, "tokenizer": str(base / "teacher"), "train": True}
    run = tutelage.train(co(base, teacher=teacher, students={"tiny": {"config": SMALL}}), run_dir=tmp_path / "run")
    made = AutoModelForCausalLM.from_pretrained(run.path / "models/teacher")
    assert (made.config.num_hidden_layers, made.config.hidden_size) == (2, 16)
    assert "tiny/forward_kl" in run.metrics[1]


def test_a_line_of_progress_for_each_model(path, tmp_path):
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("  ")]
    assert any(line.startswith("  teacher: cross_entropy ") for line in lines)
    assert any(line.startswith("  small: forward_kl ") for line in lines)
    assert "  tiny: does not train" in lines


def probed(folder: Path) -> dict:
    (folder / "pairs.jsonl").write_text(json.dumps({"stereotype": "the cat sat.", "anti_stereotype": "the dog sat."}))
    return {"probes": str(folder / "pairs.jsonl")}


def test_an_ensemble_teaches_its_average_and_is_measured_as_the_teacher(base, tmp_path):
    model_folder(tmp_path / "second", seed=5)
    both = [{"model": str(base / "teacher"), "weight": 3.0}, {"model": str(tmp_path / "second")}]
    run = tutelage.train(
        recipe(base, teacher=None, student={"config": SMALL}, loss=["forward_kl"], evaluation=probed(tmp_path))
        | {"teacher": {"ensemble": both}},
        run_dir=tmp_path / "run",
    )
    (missing,) = run.evaluation().further.missing
    assert (missing.measure, missing.model) == ("probes", "teacher") and missing.why.startswith("an ensemble gives")
    assert "Not measured" in str(run)
    assert "student/forward_kl" in run.metrics[0]
    transfer = run.evaluation().transfer
    assert transfer.models[0] == "teacher"
    sizes = [sum(w.numel() for w in weights_of(Path(member["model"])).values()) for member in both]
    assert transfer.costs["teacher"].parameters == sum(sizes)
    assert transfer.sets["held_out"].estimates["teacher"]["kl_to_teacher"].value == 0.0
    code, _, err = call("train", written(base, teacher={"ensemble": both}, student={"layers": 2}))
    assert code == 2
    assert "copies layers of one teacher, and there are several" in err


def test_doctor_looks_at_every_member_of_an_ensemble_and_at_the_tokenizer_of_a_teacher_from_nothing(base, tmp_path):
    absent = str(tmp_path / "absent")
    ensemble = {"ensemble": [{"model": str(base / "teacher")}, {"model": absent}]}
    nothing = {"config": SMALL, "tokenizer": absent, "train": True}
    for teacher in (ensemble, nothing):
        written_to = tmp_path / "recipe.yaml"
        written_to.write_text(json.dumps(co(base, teacher=teacher, students={"tiny": {"config": SMALL}})))
        code, out, err = call("doctor", written_to)
        assert code != 0
        assert absent in out + err


@pytest.mark.slow
def test_a_student_of_a_sampled_cache_may_learn_anything_from_another_student(base, tmp_path):
    teacher = {"model": str(base / "teacher"), "cache": str(tmp_path / "cache")}
    other = [{"divergence": "reverse_kl", "teacher": "a"}, "forward_kl"]
    students = {"a": {"layers": {"evenly": 2}, "loss": ["forward_kl"]}, "b": {"layers": {"evenly": 2}, "loss": other}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**co(base, teacher=teacher, students=students), "loss": None}))
    for verb in ("label", "doctor"):
        code, _, err = call(verb, path)
        assert code == 0, err
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 0, err
    rows = [row for row in tutelage.Run(tmp_path / "run").metrics if row["model"] == "b"]
    assert {"b/reverse_kl.a", "b/soft_cross_entropy"} <= rows[0].keys()


WRONG = {
    "teacher.train and teacher.cache exclude each other": {"teacher": {"model": "t", "cache": "c", "train": True}},
    "teacher.tokenizer is missing": {"teacher": {"config": SMALL, "train": True}},
    "teacher.train is missing: a teacher from nothing": {"teacher": {"config": SMALL, "tokenizer": "t"}},
    "students.teacher is a name that a run uses itself": {"students": {"teacher": {"model": "m"}}},
    "students.Small is small where file names have no case": {
        "students": {"small": {"model": "m"}, "Small": {"model": "m"}}
    },
    "student and students exclude each other": {"student": {"model": "m"}},
    "must be one of students (a), got 'b'": {
        "students": {"a": {"model": "m", "loss": [{"divergence": "forward_kl", "teacher": "b"}, "ground_truth"]}}
    },
    "is the student itself": {
        "students": {"a": {"model": "m", "loss": [{"divergence": "forward_kl", "teacher": "a"}]}}
    },
    "trust has no effect with a teacher that does not train": {
        "teacher": "t", "loss": [{"divergence": "forward_kl", "trust": "progress"}],
    },
    "students.a-bfloat16 is a name that a run uses itself": {"students": {"a-bfloat16": {"model": "m"}}},
    "must be letters, digits, - and _, beginning with a letter, got 'a.b'": {"students": {"a.b": {"model": "m"}}},
    "students.a.loss[0].teacher must be text": {
        "students": {"a": {"model": "m", "loss": [{"divergence": "forward_kl", "teacher": ["b"]}]}}
    },
    "teacher.ensemble needs at least 2 entries, got 1": {"teacher": {"ensemble": [{"model": "t"}]}},
    "trust has nothing to follow: students.a has no cross_entropy on ground_truth": {
        "students": {
            "a": {"model": "m", "loss": ["forward_kl"]},
            "b": {"model": "m", "loss": [{"divergence": "forward_kl", "teacher": "a", "trust": "progress"}]},
        }
    },
    "teacher.train.decay has no effect with schedule cosine": {
        "teacher": {"model": "t", "train": {"decay": 0.3}}, "training": {"schedule": "cosine"},
    },
    "teacher.train.warmup and decay together must be <= 1, got 0.9 + 0.2": {
        "teacher": {"model": "t", "train": {"warmup": 0.9}},
    },
    "leaves nobody who trains from step 0": {
        "teacher": "t", "students": {"a": {"model": "m", "start_at_step": 3}},
    },
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_a_recipe_that_contradicts_itself_is_refused_in_one_line(said, base):
    with pytest.raises(ConfigError) as refused:
        tutelage.load_recipe(co(base, **WRONG[said]))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_weight_that_falls_is_left_as_it_is_written(base):
    falling = {"divergence": "forward_kl", "weight": {"schedule": "wsd", "start": 1.0, "end": 0.1, "decay": 0.9}}
    (term,) = tutelage.load_recipe(co(base, loss=[falling], students={"a": {"layers": 2}})).learners["a"].loss
    assert term.weight.warmup == 0.0
    assert tutelage.load_recipe(co(base, teacher={"model": "t", "train": False})).trains_teacher is False


def test_steps_in_which_nobody_trains_are_passed_over(base, tmp_path):
    late = {"layers": {"evenly": 2}, "start_at_step": 3}
    teacher = {"model": str(base / "teacher"), "train": {"freeze_at_step": 1}}
    run = tutelage.train(co(base, teacher=teacher, students={"a": late}, control=True), run_dir=tmp_path / "run")
    assert [(row["step"], row["model"]) for row in run.metrics] == [(1, "teacher"), (4, "a"), (4, "control-a")]


def test_an_early_stop_waits_for_late_students_and_does_not_mistake_a_warm_up_for_a_rising_loss(base, tmp_path):
    training = {"steps": 12, "evaluate_every": 0.09, "early_stop": {"patience": 2}, "learning_rate": 1e-3}
    students = {"a": {"layers": {"evenly": 2}}, "late": {"config": SMALL, "start_at_step": 8}}
    teacher = {"model": str(base / "teacher"), "train": True}
    run = tutelage.train(co(base, teacher=teacher, students=students, training=training), run_dir=tmp_path / "run")
    losses = [row["a/held_out/cross_entropy"] for row in run.metrics if "a/held_out/cross_entropy" in row]
    assert losses == sorted(losses, reverse=True)  # nothing gets worse here
    assert run.summary["step"] == 12
    assert not run.summary["stopped_early"]


def test_a_fork_into_other_models_is_refused_before_a_folder_is_made(whole, base, tmp_path):
    for students, said in (
        ({"other": {"layers": {"evenly": 2}}}, "trains other, teacher, and"),
        (None, "trains student, teacher, and"),
    ):
        fields = {"students": students} if students else {"students": None, "student": {"layers": {"evenly": 2}}}
        path = tmp_path / "other.yaml"
        path.write_text(json.dumps({k: v for k, v in co(base, **fields).items() if v is not None}))
        before = sorted(whole.path.parent.iterdir())
        code, _, err = call("train", path, "--run-dir", whole.path, "--fork")
        assert code == 2
        assert said in err and "small, teacher, tiny" in err
        assert sorted(whole.path.parent.iterdir()) == before


def test_a_config_that_makes_no_model_is_refused_in_one_line(base, tmp_path):
    for config, said in (({"vocab_size": 5}, "vocab_size 5, the tokenizer has"), ({"hidden_size": "x"}, "hidden_size")):
        code, _, err = call("train", written(base, student={"config": config}), "--run-dir", tmp_path / "run")
        assert code == 2
        assert "error[CONFIG]: student.config: " in err and said in err


def test_a_model_that_diverges_is_named_with_its_learning_rate(base, tmp_path):
    students = {"a": {"layers": {"evenly": 2}}, "boom": {"config": SMALL, "learning_rate": 1e30}}
    path = written(base, student=None, students=students)
    code, _, err = call("train", path, "--run-dir", tmp_path / "run")
    assert code == 7
    assert "lower the learning rate of boom" in err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher.train.freeze_at_step": 9}, "teacher.train.freeze_at_step: 9, and the run has 4 steps"),
        ({"students.tiny.start_at_step": 4}, "students.tiny.start_at_step: 4, and the run has 4 steps"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(fields, said, path, tmp_path):
    ((name, value),) = fields.items()
    code, _, err = call("train", path, "--run-dir", tmp_path / "run", f"{name}={value}")
    assert code == 2
    assert said in err


def test_members_with_different_tokenizers_are_refused(base, tmp_path):
    model_folder(tmp_path / "other", own=tokenizer(seed=1))
    code, _, err = call(
        "train",
        written(
            base,
            teacher=None,
            student=None,
            loss=["ground_truth"],
            students={"a": {"model": str(base / "teacher")}, "b": {"model": str(tmp_path / "other")}},
        ),
        "--run-dir",
        tmp_path / "run",
    )
    assert code == 3
    assert "error[TOKENIZER_MISMATCH]" in err
