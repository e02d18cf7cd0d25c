"""Fields of the recipe that change how a run goes: each does what it says, in a whole run."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import tutelage
from tests.instruments import faults
from tests.verbs.test_train import masters
from tests.verbs.tiny_runs import assert_equal_weights, call, chats, recipe, weights_of
from tutelage.recipe import load_recipe
from tutelage.training import checkpoint, micro_batch
from tutelage.training.prepare import InMemory, prepare

QUICK = {"evaluation": {"prompts": []}}
pytestmark = pytest.mark.slow


def train(base, tmp_path, **fields):
    return tutelage.train(recipe(base, **{**QUICK, **fields}), run_dir=tmp_path / "run")


def test_a_run_that_no_longer_improves_stops_and_its_best_weights_are_saved(base, tmp_path):
    training = {
        "steps": 9, "learning_rate": 2.0, "schedule": "constant", "warmup": 0.0, "evaluate_every": 0.1, "keep": 1,
        "early_stop": {"patience": 2},
    }  # fmt: skip
    run = train(base, tmp_path, training=training)
    best = run.summary["best_step"]
    assert run.summary["stopped_early"]
    assert run.summary["step"] == best + 2 < 9
    steps = sorted(path.name for path in (run.path / "checkpoints/student").iterdir())
    assert steps == [f"step-{best:06d}", f"step-{best + 2:06d}"]  # the best one stays, however few are kept
    found = checkpoint.load(run.path / "checkpoints/student" / steps[0], required=("student.weights",))
    assert_equal_weights(weights_of(run.path / "student"), found.tensors["student.weights"])
    held_out = [row for row in run.metrics if "student/held_out/forward_kl" in row]
    assert [row["step"] for row in held_out] == list(range(1, best + 3))


def test_a_best_step_that_was_damaged_and_trained_again_is_the_one_that_is_saved(base, tmp_path):
    training = {
        "steps": 9, "learning_rate": 2.0, "schedule": "constant", "warmup": 0.0, "evaluate_every": 0.1, "keep": 9,
        "early_stop": {"patience": 2},
    }  # fmt: skip
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe(base, **QUICK, training=training)))
    whole = tutelage.train(path, run_dir=tmp_path / "whole")

    def stop_there(operation):
        if "finished.json" in str(operation.path):
            raise KeyboardInterrupt

    with faults.hooked(stop_there):
        assert call("train", path, "--run-dir", run)[0] == 130
    best = whole.summary["best_step"]
    for folder in (run / "checkpoints/student").iterdir():
        if int(folder.name.split("-")[1]) >= best:
            (folder / "student.weights.safetensors").write_bytes(b"damaged")
    code, _, err = call("train", path, "--run-dir", run)
    assert code == 0, err
    assert "warning[CKPT_CHECKSUM]" in err
    assert_equal_weights(weights_of(run / "student"), weights_of(whole.path / "student"))


def test_the_moving_average_is_what_is_saved(base, tmp_path):
    run = train(base, tmp_path, training={"ema": 0.5, "save_every": 1, "keep": 4})
    average: dict[str, torch.Tensor] = {}
    start = weights_of(base / "teacher")
    for step in range(1, 5):
        found = checkpoint.load(run.path / f"checkpoints/student/step-{step:06d}", required=("student.weights",))
        for name, value in found.tensors["student.weights"].items():
            old = average.get(name, start[name.replace("layers.1.", "layers.3.")].detach())
            average[name] = 0.5 * old + 0.5 * value
    saved = weights_of(run.path / "student")
    assert saved.keys() == average.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value.detach(), average[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(saved[name], value) for name, value in masters(run).items())


def test_bfloat16_trains_from_wide_masters_and_a_second_set_of_files_is_saved_with_its_difference(base, tmp_path):
    run = train(base, tmp_path, training={"precision": "bfloat16", "save_dtype": "bfloat16"})
    assert_equal_weights(weights_of(run.path / "student"), masters(run))
    assert run.student().dtype == torch.float32
    small = run.summary["save_dtype"]["student"]
    assert small["dtype"] == "bfloat16"
    assert 0 < small["difference"]["kl_nats"] < 0.01
    assert small["difference"]["top1_agreement"] > 0.9
    loaded = AutoModelForCausalLM.from_pretrained(small["path"], dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, masters(run)[name].bfloat16())


def test_gradient_checkpointing_and_micro_batches_change_no_bit_that_matters(base, tmp_path):
    runs = []
    for name, training in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "wide": {"micro_batch": 2},
    }.items():
        whole = recipe(base, **QUICK, training={"precision": "float64", **training})
        runs.append(tutelage.train(whole, run_dir=tmp_path / name))
    plain = weights_of(runs[0].path / "student")
    assert_equal_weights(weights_of(runs[1].path / "student"), plain)
    for name, value in weights_of(runs[2].path / "student").items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-9)


def test_tensorboard_gets_what_the_metrics_say(base, tmp_path):
    run = train(base, tmp_path, training={"tensorboard": True, "evaluate_every": 0.5}, control=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name in ("student/forward_kl", "student/held_out/forward_kl", "control/cross_entropy"):
        written = {event.step: event.value for event in events.Scalars(name)}
        metrics = {row["step"]: row[name] for row in run.metrics if name in row}
        assert written == pytest.approx(metrics, rel=1e-6)


def test_answers_of_chats_weighted_sources_held_out_and_foreign_text_are_told_apart(base, tmp_path):
    for name, lines in {
        "chats": chats(20),
        "held": chats(6, seed=5),
        "other": [{"text": f"{i} + {i}"} for i in range(6)],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    conversations = {"columns": {"messages": "messages"}}
    data = {
        "sources": [
            {"jsonl": str(tmp_path / "chats.jsonl"), "weight": 3.0, **conversations},
            {"text": str(base / "corpus/1*.txt"), "name": "corpus"},
        ],
        "held_out": [{"jsonl": str(tmp_path / "held.jsonl"), **conversations}],
        "train_on": "answers",
    }
    foreign = {"prompts": [], "out_of_domain": [{"jsonl": str(tmp_path / "other.jsonl")}], "rows": 4}
    run = train(base, tmp_path, data=data, evaluation=foreign, control=True)
    sets = run.evaluation().transfer.json()["sets"]
    assert set(sets) == {"held_out", "out_of_domain"}
    assert {s["n_sequences"] for s in sets.values()} == {4}
    answers = sum(len(chat["messages"][1]["content"]) for chat in chats(6, seed=5))
    assert sets["held_out"]["n_tokens"] < answers  # prompts are longer than what a token saves


def test_a_run_without_held_out_text_is_trained_and_says_so(base, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(base, data={"held_out": None})))
    code, out, err = call("train", path, "--run-dir", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["evaluation"] is None
    run = tutelage.Run(tmp_path / "run")
    assert run.evaluation() is None
    assert not run.report().exists()
    assert "trained: 4 steps" in str(run)
    assert run._repr_html_().startswith("<pre>")


def test_the_micro_batch_that_fits_is_recorded_and_a_run_that_goes_on_keeps_it(base, tmp_path, monkeypatch, capsys):
    free = {"bytes": 10**12}
    monkeypatch.setattr(micro_batch, "free_bytes", lambda: free["bytes"])
    whole = recipe(base, **QUICK, training={"precision": "float64", "micro_batch": "auto", "batch_tokens": 128})
    run = tutelage.train(whole, run_dir=tmp_path / "run")
    assert json.loads((run.path / "provenance.json").read_text())["micro_batch"] == 4
    assert "training.micro_batch: auto is 4 of 4 windows" in capsys.readouterr().err
    free["bytes"] = 0
    earlier = json.loads((run.path / "provenance.json").read_text())
    assert prepare(load_recipe(whole), memory=InMemory(), earlier=earlier).loader.micro_batch == 4
    less = tutelage.train(whole, run_dir=tmp_path / "less")
    assert json.loads((less.path / "provenance.json").read_text())["micro_batch"] == 1
    for name, value in weights_of(less.path / "student").items():
        torch.testing.assert_close(value, weights_of(run.path / "student")[name], rtol=0, atol=1e-9)
