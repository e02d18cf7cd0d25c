"""`tutelage label` and training from what it wrote: as if the teacher were there, and without it."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import OPTConfig, OPTForCausalLM

import tutelage
from tests.cache.tiny_cache import folder_bytes
from tests.verbs import tiny_runs
from tutelage.errors import ConfigError, IntegrityError

FLOAT64 = {"precision": "float64"}


def recipe(folder: Path, *, codec: str = "dense", **fields):
    """A tiny recipe whose teacher is cached; `cache` fields beside the codec come from the caller."""
    cache = {
        "codec": codec,
        **{"dense": {"dtype": "float64"}, "topk": {"k": 12}}.get(codec, {}),
        **fields.pop("cache", {}),
    }
    training = {**FLOAT64, **fields.pop("training", {})}
    whole = tiny_runs.recipe(folder, cache=cache, training=training, **fields)
    whole.setdefault("teacher", {})
    if isinstance(whole["teacher"], str):
        whole["teacher"] = {"model": whole["teacher"], "dtype": "float32", "cache": str(folder / "cache")}
    return whole


def live(written):
    """The same recipe without the cache."""
    teacher = {k: v for k, v in written["teacher"].items() if k != "cache"}
    return {**{k: v for k, v in written.items() if k != "cache"}, "teacher": teacher}


def metrics(run: tutelage.Run, term: str) -> list[float]:
    return [line[f"student/{term}"] for line in run.metrics if f"student/{term}" in line]


def test_training_from_a_full_cache_is_training_with_the_teacher(tmp_path):
    written = recipe(tmp_path)
    written["teacher"]["dtype"] = "auto"
    tutelage.label(written)
    cached = tutelage.train(written, run_dir=tmp_path / "cached")
    present = tutelage.train(live(written), run_dir=tmp_path / "live")
    torch.testing.assert_close(
        torch.tensor(metrics(cached, "forward_kl")),
        torch.tensor(metrics(present, "forward_kl")),
        rtol=1e-10,
        atol=1e-12,
    )
    pairs = zip(cached.student().state_dict().values(), present.student().state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in pairs)


def test_a_teacher_that_cannot_be_packed_is_labelled_and_trained_from_one_document_a_row(tmp_path, capsys):
    own = tiny_runs.tokenizer()
    config = OPTConfig(
        vocab_size=len(own), hidden_size=16, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, init_std=0.3,
        max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    for part in (OPTForCausalLM(config), own):
        part.save_pretrained(tmp_path / "teacher")
    written = recipe(tmp_path, student={"layers": 2}, evaluation={})
    written["teacher"]["dtype"] = "auto"
    tutelage.label(written)
    assert capsys.readouterr().err.count("note[PACKING]: OPTForCausalLM") == 1
    cached = tutelage.train(written, run_dir=tmp_path / "cached")
    present = tutelage.train(live(written), run_dir=tmp_path / "live")
    expected = torch.tensor(metrics(present, "forward_kl"))
    torch.testing.assert_close(torch.tensor(metrics(cached, "forward_kl")), expected, rtol=1e-10, atol=1e-12)


def test_a_student_with_a_model_of_its_own_needs_no_teacher_any_more(tmp_path):
    written = recipe(tmp_path, student={"model": str(tiny_runs.model_folder(tmp_path / "own", layers=1, seed=5))})
    tutelage.label(written)
    shutil.rmtree(tmp_path / "teacher")
    alone = {**written, "teacher": {"cache": written["teacher"]["cache"]}}
    alone["evaluation"] = {**written["evaluation"], "writes": {"prompts": 1, "tokens": 2}}
    run = tutelage.train(alone, run_dir=tmp_path / "run")
    measured = run.evaluation()
    assert measured is not None
    (missing,) = measured.further.missing
    assert (missing.measure, missing.model) == ("writing", "teacher") and "no weights" in missing.why
    assert "Not measured" in run.report().read_text() and "no weights" in run.report().read_text()
    assert measured.as_json()["missing"] == [{"measure": "writing", "model": "teacher", "why": missing.why}]
    assert measured.transfer.teacher == "teacher"
    assert measured.transfer.sets["held_out"].estimates["student"]["kl_to_teacher"].value > 0
    again = tutelage.evaluate(tmp_path / "run", force=True)
    assert again.transfer.sets == measured.transfer.sets


def test_a_student_from_a_config_starts_from_the_config_in_the_cache(tmp_path):
    written = recipe(tmp_path, student={"config": {"num_hidden_layers": 1}})
    tutelage.label(written)
    shutil.rmtree(tmp_path / "teacher")
    alone = {**written, "teacher": {"cache": written["teacher"]["cache"]}}
    assert tutelage.train(alone, run_dir=tmp_path / "run").student().config.num_hidden_layers == 1


def test_held_out_rows_are_measured_nearly_as_with_the_teacher_itself(tmp_path):
    written = recipe(tmp_path, codec="topk")
    tutelage.label(written)
    run = tutelage.train(written, run_dir=tmp_path / "run")
    stored = run.evaluation().transfer.sets["held_out"].estimates
    shown = tutelage.train(
        {**live(written), "training": {**written["training"], "steps": 1}}, run_dir=tmp_path / "live"
    )
    asked = shown.evaluation().transfer.sets["held_out"].estimates
    for metric in ("held_out_loss", "kl_to_teacher"):
        assert stored["teacher"][metric].value == pytest.approx(asked["teacher"][metric].value, abs=5e-3)
        assert stored["student_before"][metric].value == pytest.approx(asked["student_before"][metric].value, abs=5e-3)


def _file(folder: Path, written) -> Path:
    (folder / "cached.yaml").write_text(yaml.safe_dump(written))
    return folder / "cached.yaml"


def test_the_command_prints_the_folder_and_labelling_again_asks_nothing(tmp_path):
    path = _file(tmp_path, recipe(tmp_path, codec="topk"))
    assert tiny_runs.call("label", path)[:2] == (0, f"{tmp_path / 'cache'}\n")
    before = folder_bytes(tmp_path / "cache")
    assert '"labelled_now": 0' in tiny_runs.call("label", path, "--json")[1]
    assert folder_bytes(tmp_path / "cache") == before


REFUSED = [
    ("no cache named", {"teacher": {"model": "MODEL"}}, ConfigError, "teacher.cache"),
    (
        "no model named",
        {"teacher": {"cache": "CACHE"}, "student": {"model": "MODEL"}},
        ConfigError,
        "add teacher.model",
    ),
]


@pytest.mark.parametrize(("what", "change", "kind", "says"), REFUSED, ids=[r[0] for r in REFUSED])
def test_label_says_what_the_recipe_lacks(what, change, kind, says, tmp_path):
    written = recipe(tmp_path)
    places = {"MODEL": str(tmp_path / "teacher"), "CACHE": str(tmp_path / "cache")}
    for name, section in change.items():
        written[name] = {key: places.get(value, value) for key, value in section.items()}
    with pytest.raises(kind, match=says):
        tutelage.label(written)


def test_training_before_labelling_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match="tutelage label") as caught:
        tutelage.train(recipe(tmp_path), run_dir=tmp_path / "run")
    assert caught.value.code == "CACHE_ABSENT"


def test_rows_that_were_not_labelled_are_refused_or_left_out_by_name(tmp_path, capsys):
    written = recipe(tmp_path, codec="topk")
    tutelage.label(written)
    for n, text in enumerate(tiny_runs.documents(6, seed=8)):
        (tmp_path / "corpus" / f"new-{n}.txt").write_text(text)
    grown = written
    with pytest.raises(IntegrityError, match="missing_soft=drop") as caught:
        tutelage.train(grown, run_dir=tmp_path / "run")
    assert caught.value.code == "CACHE_MISS"
    dropped = {**grown, "data": {**grown["data"], "missing_soft": "drop"}}
    tutelage.train(dropped, run_dir=tmp_path / "run")
    assert "warning[CACHE_MISS]" in capsys.readouterr().err
    tutelage.label(grown)
    tutelage.train(grown, run_dir=tmp_path / "grown")


def test_a_cache_of_the_rows_that_a_run_reads_teaches_it_as_the_teacher_would(tmp_path, capsys):
    """Another seed reads other rows: it is told to label them, and then both are there."""
    written = recipe(tmp_path, cache={"rows": "run"}, training={"steps": 1})
    labelled = tutelage.label(written)
    n_read, n_all = labelled.manifest.n_rows, tutelage.label(recipe(tmp_path / "all")).manifest.n_rows
    assert 0 < n_read < n_all and f"reads {n_read} of {n_all} training rows" in capsys.readouterr().err
    assert tutelage.label(written).written.n_positions == 0
    cached = tutelage.train(written, run_dir=tmp_path / "cached")
    present = tutelage.train(live(written), run_dir=tmp_path / "live")
    expected = torch.tensor(metrics(present, "forward_kl"))
    torch.testing.assert_close(torch.tensor(metrics(cached, "forward_kl")), expected, rtol=1e-10, atol=1e-12)

    other = {**written, "training": {**written["training"], "seed": 5}}
    with pytest.raises(IntegrityError, match=r"training rows are not in .* tutelage label RECIPE") as caught:
        tutelage.train(other, run_dir=tmp_path / "other")
    assert caught.value.code == "CACHE_MISS"
    assert n_read < tutelage.label(other).manifest.n_rows < n_all
    tutelage.train(other, run_dir=tmp_path / "other")
    with pytest.raises(IntegrityError, match=f"of {n_all} training rows are not in"):
        tutelage.train({**other, "cache": {**other["cache"], "rows": None}}, run_dir=tmp_path / "whole")


def test_a_cache_of_another_tokenizer_or_another_model_is_refused(tmp_path):
    written = recipe(tmp_path, codec="topk")
    tutelage.label(written)
    other = tiny_runs.model_folder(tmp_path / "other", seed=3)
    with pytest.raises(IntegrityError, match="made by") as caught:
        tutelage.train({**written, "teacher": {**written["teacher"], "model": str(other)}}, run_dir=tmp_path / "run")
    assert caught.value.code == "CACHE_MISMATCH"
    strange = tiny_runs.model_folder(tmp_path / "strange", own=tiny_runs.tokenizer(seed=1))
    with pytest.raises(IntegrityError) as caught:
        tutelage.train({**written, "teacher": {**written["teacher"], "model": str(strange)}}, run_dir=tmp_path / "run")
    assert caught.value.code == "CACHE_MISMATCH"


def test_another_temperature_than_the_caches_is_refused_before_a_model_loads(tmp_path):
    written = recipe(tmp_path, codec="topk", cache={"temperature": 2.0})
    tutelage.label(written)
    with pytest.raises(ConfigError, match=r"T=2\.0|temperature") as caught:
        tutelage.train(written, run_dir=tmp_path / "run")
    assert caught.value.code == "CACHE_TEMPERATURE"
    assert not (tmp_path / "run").exists()
    loss = [{"divergence": "forward_kl", "temperature": 2.0}]
    tutelage.train({**written, "loss": loss}, run_dir=tmp_path / "run")


def test_a_renormalised_cache_trains_only_with_a_warning(tmp_path, capsys):
    written = recipe(tmp_path, codec="topk", cache={"tail": False})
    tutelage.label(written)
    tutelage.train(written, run_dir=tmp_path / "run")
    assert "warning[BIASED_LOSS]" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="reverse_kl") as caught:
        tutelage.train({**written, "loss": ["reverse_kl"]}, run_dir=tmp_path / "reverse")
    assert caught.value.code == "CODEC_CANNOT"


def test_objects_in_memory_can_be_labelled(tmp_path):
    written = recipe(tmp_path, codec="topk")
    model = tutelage.train(live(written), run_dir=tmp_path / "live").student()
    texts = tiny_runs.documents(8, seed=2)
    asked = {
        **{k: v for k, v in written.items() if k != "teacher"},
        "teacher": {"cache": str(tmp_path / "memory")},
        "data": {"max_length": 32, "held_out": None},
        "evaluation": {},
    }
    labelled = tutelage.label(asked, teacher=model, tokenizer=tiny_runs.tokenizer(), data=texts)
    assert labelled.manifest.n_rows > 0
    tutelage.train(asked, run_dir=tmp_path / "run", teacher=model, tokenizer=tiny_runs.tokenizer(), data=texts)


def test_doctor_looks_at_the_cache_too(tmp_path):
    written = recipe(tmp_path, codec="topk", cache={"temperature": 2.0})
    absent = tutelage.doctor(tutelage.load_recipe(written))
    assert absent.ok
    assert "CACHE_ABSENT" in str(absent)
    tutelage.label(written)
    wrong = tutelage.doctor(tutelage.load_recipe(written))
    assert not wrong.ok
    assert "CACHE_TEMPERATURE" in str(wrong)
    assert "bytes a token" in str(wrong)


def test_a_threshold_can_be_chosen_outright(tmp_path):
    labelled = tutelage.label(recipe(tmp_path, codec="threshold", cache={"threshold": 0.04}))
    assert labelled.manifest.settings["m"] == 25


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, force):
    written = recipe(tmp_path, codec="topk")
    (tmp_path / "cache" / "photos").mkdir(parents=True)
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt") as caught:
        tutelage.label(written, force=force)
    assert caught.value.code == "EXISTS"
    assert (tmp_path / "cache" / "thesis.txt").read_text() == "mine"


def test_force_writes_a_cache_anew_and_leaves_what_else_lies_beside_it(tmp_path):
    written = recipe(tmp_path, codec="topk")
    tutelage.label(written)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    anew = tutelage.label({**written, "cache": {"codec": "topk", "k": 3}}, force=True)
    assert anew.manifest.settings["k"] == 3
    assert (tmp_path / "cache" / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        tutelage.label({**written, "teacher": {**written["teacher"], "cache": str(tmp_path / "cache" / "notes.txt")}})


def test_a_label_that_was_stopped_before_its_plan_does_not_leave_its_teachers_start(tmp_path):
    written = recipe(tmp_path, codec="topk")
    other = tiny_runs.model_folder(tmp_path / "other", layers=2, own=tiny_runs.tokenizer(words=30))
    labelled = tutelage.label({**written, "teacher": {**written["teacher"], "model": str(other)}})
    start = {p.name: p.read_bytes() for p in (labelled.path / "start").iterdir()}
    shutil.rmtree(labelled.path / "held_out")
    for name in ("manifest.json", "shards", "tables.safetensors", "probe.safetensors"):
        path = labelled.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tutelage.label(written)
    assert {p.name: p.read_bytes() for p in (labelled.path / "start").iterdir()} != start
    tutelage.train(written, run_dir=tmp_path / "run")


def test_a_teacher_in_half_precision_is_gone_on_with_and_is_another_one_in_another_precision(tmp_path):
    written = recipe(tmp_path, codec="topk")
    half = {**written, "teacher": {**written["teacher"], "dtype": "float16"}}
    assert tutelage.label(half).manifest.asked.teacher.dtype == "float16"
    assert tutelage.label(half).written.n_positions == 0
    with pytest.raises(ConfigError, match=r"teacher\.dtype float16") as caught:
        tutelage.label({**written, "teacher": {**written["teacher"], "dtype": "auto"}})
    assert caught.value.code == "CACHE_MISMATCH"
