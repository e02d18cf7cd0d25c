import json
import math
from dataclasses import replace

import pytest

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_of_ids, tiny_model
from tests.evaluation.test_stats import sequence
from tutelage.errors import IntegrityError
from tutelage.evaluation import records, stats
from tutelage.evaluation.facts import Excerpt, SetFacts
from tutelage.evaluation.speed import forward_rates
from tutelage.evaluation.sums import N_BINS
from tutelage.evaluation.transfer import check_unscored, cost_of, evaluate_models, transfer_of, with_texts


@pytest.fixture(scope="module")
def models(teacher, student):
    return {"teacher": teacher, "student": student, "control": tiny_model(3)}


@pytest.fixture(scope="module")
def scores(models):
    sets = {
        "held_out": batches_of(rows_of_ids(8), size=4),
        "out_of_domain": batches_of(rows_of_ids(6, seed=5), size=4),
    }
    return evaluate_models(models, sets, teacher="teacher", n_vocabulary=N_VOCABULARY)


def test_every_number_recomputes_exactly_from_the_records(scores, models, tmp_path):
    costs = {name: cost_of(model, training_s=0.1) for name, model in models.items()}
    transfer = transfer_of(scores, "teacher", costs=costs)
    records.write(tmp_path, scores, transfer=transfer)
    assert records.recompute(records.lines(scores, "teacher")).sets == transfer.sets
    assert records.read(tmp_path) == transfer


def test_sources_lengths_and_excerpts_are_in_the_records_too(scores, tmp_path):
    facts = {
        "held_out": SetFacts(sources=("a", "b"), source=(0, 1) * 4, length=(40, 90) * 4),
        "out_of_domain": SetFacts(sources=("c",), source=(0,) * 6, length=(9,) * 6),
    }
    found = transfer_of(scores, "teacher", facts=facts)
    assert {"source", "length"} < {s.kind for s in found.sets["held_out"].slices}
    for name, result in found.sets.items():
        excerpts = [Excerpt(row=r, position=p, text=f"text {r} <b>\u2028 {p}") for r, p in result.places()]
        facts[name] = replace(facts[name], excerpts=tuple(excerpts))
    found = with_texts(found, facts)
    assert found.sets["held_out"].hardest[0].text.startswith("text ")
    assert all(found.sets["held_out"].slices[i].example for i in found.sets["held_out"].worst)
    records.write(tmp_path, scores, transfer=found, facts=facts)
    assert records.read(tmp_path) == found


def test_reliability_is_the_pooled_bins_and_gives_the_ece_again(scores):
    result = transfer_of(scores, "teacher").sets["held_out"]
    for model, found in result.reliability.items():
        gaps = [abs(c - ok) * n for n, c, ok in zip(found.n, found.confidence, found.correct, strict=True)]
        assert sum(found.n) == result.n_tokens
        assert sum(gaps) / result.n_tokens == pytest.approx(result.estimates[model]["ece"].value, rel=1e-12)
        for k, (n, confidence) in enumerate(zip(found.n, found.confidence, strict=True)):
            assert n == 0 or k / N_BINS <= confidence <= (k + 1) / N_BINS


def test_every_comparison_of_a_set_is_corrected_for_all_of_them(scores):
    compared = transfer_of(scores, "teacher").sets["held_out"].compared
    held = stats.holm([c.difference.p for c in compared])
    assert [c.difference.corrected for c in compared] == [p <= stats.ALPHA for p in held]
    assert {c.metric for c in compared} >= {"kl_to_teacher", "reverse_kl", "acceptance", "runner_up_order"}


def test_a_metric_that_some_sequence_has_no_number_for_is_left_out(scores):
    by_model = {model: list(found) for model, found in scores["held_out"].items()}
    lacking = {k: v for k, v in by_model["student"][2].sums.items() if k != "reverse_kl_nats"}
    by_model["student"][2] = replace(by_model["student"][2], sums=lacking)
    result = transfer_of({"held_out": by_model}, "teacher").sets["held_out"]
    assert "reverse_kl" not in result.estimates["student"]
    assert "acceptance" in result.estimates["student"]


@pytest.mark.parametrize("name", ["nll_nats", "kl_nats", "brier"])
@pytest.mark.parametrize("changed", [lambda x: x + 1e-9, lambda _: math.nan], ids=["a little", "NaN"])
def test_a_changed_record_or_number_is_found(scores, tmp_path, name, changed):
    transfer = transfer_of(scores, "teacher")
    records.write(tmp_path, scores, transfer=transfer)
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[5])
    record[name] = changed(record[name])
    path.write_text("\n".join([*lines[:5], json.dumps(record), *lines[6:]]) + "\n")
    with pytest.raises(IntegrityError, match="REPORT_CHECK"):
        records.read(tmp_path)


@pytest.mark.parametrize(("version", "what_to_type"), [(99, "pip install -U"), (1, "tutelage evaluate RUN --force")])
def test_records_of_another_format_are_refused_with_what_to_type(version, what_to_type):
    with pytest.raises(IntegrityError, match=rf"FORMAT_VERSION.*{what_to_type}"):
        records.recompute([json.dumps({"format": version, "teacher": None})])


def test_records_whose_cells_mean_something_else_are_refused(scores):
    head, *others = records.lines(scores, "teacher")
    changed = json.loads(head)
    changed["cells"]["position"][0] = "positions 0-7"
    with pytest.raises(IntegrityError, match="FORMAT_VERSION"):
        records.recompute([json.dumps(changed), *others])


def test_transfer_is_json_without_nan_or_infinity():
    transfer = transfer_of({"held_out": {"a": [sequence(0)], "b": [sequence(0)]}}, "a")
    assert math.isinf(transfer.sets["held_out"].estimates["a"]["held_out_loss"].stderr)
    text = json.dumps(transfer.json(), allow_nan=False)
    assert json.loads(text)["sets"]["held_out"]["estimates"]["a"]["held_out_loss"]["stderr"] is None


def test_a_comparison_read_the_other_way_round_changes_sign_only(scores):
    result = transfer_of(scores, "teacher").sets["held_out"]
    forward = result.difference("held_out_loss", first="student", second="control")
    backward = result.difference("held_out_loss", first="control", second="student")
    assert forward is not None
    assert backward is not None
    assert (forward.value, forward.stderr) == (-backward.value, backward.stderr)


def test_unscored_sequences_are_counted_and_too_many_are_an_error():
    broken = [replace(sequence(i), n_unscored=int(i < 3)) for i in range(10)]
    transfer = transfer_of({"held_out": {"good": [sequence(i) for i in range(10)], "broken": broken}}, None)
    assert transfer.sets["held_out"].n_unscored == {"good": 0, "broken": 3}
    assert transfer.sets["held_out"].estimates["broken"]["held_out_loss"].n == 7
    check_unscored(transfer, max_unscored=0.3)
    with pytest.raises(IntegrityError, match=r"UNSCORED\]: broken: 3 of 10"):
        check_unscored(transfer, max_unscored=0.2)


def test_a_model_without_any_number_is_shown_as_unscored_and_does_not_hide_the_others():
    broken = [replace(sequence(i), n_unscored=1) for i in range(4)]
    transfer = transfer_of({"held_out": {"good": [sequence(i) for i in range(4)], "broken": broken}}, None)
    result = transfer.sets["held_out"]
    assert result.estimates["broken"] == {}
    assert result.compared == ()
    assert "held_out_loss" in result.estimates["good"]


def test_tied_parameters_count_once(student):
    cost = cost_of(student)
    assert cost.parameters == sum(p.numel() for p in set(student.parameters()))
    assert cost.parameter_bytes == 8 * cost.parameters


def test_forward_rates_are_measured_for_each_model(models):
    (batch, _), *_ = batches_of(rows_of_ids(2), size=2)
    rates = forward_rates(models, batch, n_vocabulary=N_VOCABULARY, repeats=1)
    assert rates.keys() == models.keys()
    assert all(rate > 0 for rate in rates.values())
