import json
import math
from dataclasses import replace

import pytest

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_of_ids, tiny_model
from tests.evaluation.test_stats import sequence
from tutelage.errors import IntegrityError
from tutelage.evaluation import records
from tutelage.evaluation.speed import forward_rates
from tutelage.evaluation.transfer import check_unscored, cost_of, evaluate_models, transfer_of


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


def test_a_changed_record_or_number_is_found(scores, tmp_path):
    transfer = transfer_of(scores, "teacher")
    records.write(tmp_path, scores, transfer=transfer)
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[5])
    record["nll_nats"] += 1e-9
    path.write_text("\n".join([*lines[:5], json.dumps(record), *lines[6:]]) + "\n")
    with pytest.raises(IntegrityError, match="REPORT_CHECK"):
        records.read(tmp_path)


def test_records_of_a_newer_format_are_refused():
    with pytest.raises(IntegrityError, match="FORMAT_VERSION"):
        records.recompute(['{"format": 99, "teacher": null}'])


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
