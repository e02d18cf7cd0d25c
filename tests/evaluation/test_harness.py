"""Tasks of the harness: numbers from its answers, and the adapter where the package is installed."""

import builtins
import json

import pytest
import torch

from tests.verbs import tiny_runs
from tutelage.errors import ConfigError, IntegrityError, ResourceError
from tutelage.evaluation import harness
from tutelage.evaluation.harness import Answer, result_of
from tutelage.models import load
from tutelage.reports import harness as table
from tutelage.verbs.harness import _answers, _evaluated, ask


def answers(model, chosen, true, *, task="piqa"):
    return [
        Answer(task=task, model=model, question=i, metrics={"acc": float(c == t)}, chosen=c, n_choices=3)
        for i, (c, t) in enumerate(zip(chosen, true, strict=True))
    ]


def test_shares_differences_and_the_same_wrong_choice_follow_from_the_answers(tmp_path):
    true = [0, 1, 2, 0, 1, 2]
    made = [*answers("teacher", [0, 1, 2, 0, 0, 0], true), *answers("student", [0, 1, 0, 1, 0, 1], true)]
    (found,) = result_of(made)
    assert found.estimates["teacher"]["acc"].value == pytest.approx(4 / 6)
    assert found.against_first["student"]["acc"].value == pytest.approx(-2 / 6)
    (cells,) = found.contingencies
    assert (cells.only_first.value, cells.only_second.value) == (pytest.approx(2 / 6), 0)
    assert (cells.same_wrong.share.value, cells.same_wrong.chance) == (0.5, 0.5)
    assert harness.read(tmp_path) == ()
    assert harness.write(tmp_path, made) == harness.read(tmp_path) == (found,)
    assert len(table.listed((found,)).rows) == 2


def test_of_questions_with_two_choices_the_same_wrong_one_is_not_shown_and_the_note_says_why():
    made = [Answer(task="piqa", model=m, question=i, metrics={"acc": 0.0}, chosen=1, n_choices=2)
            for m in ("teacher", "student") for i in range(30)]  # fmt: skip
    found = result_of(made)
    shown = table.listed(found)
    assert shown.rows[1][-1] == "–" and "two wrong answers are always the same" in shown.note
    assert found[0].json()["contingencies"][0]["no_same_wrong"].startswith("with two choices")


class Failing:
    """An evaluator of the harness that fails."""

    def __init__(self, error):
        self.error = error

    def simple_evaluate(self, **_):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (FileNotFoundError("no such split"), IntegrityError, "DATA_READ"),
        (RuntimeError("shapes cannot be multiplied"), IntegrityError, "HARNESS"),
        (TypeError("a template of the task"), IntegrityError, "HARNESS"),
        (torch.OutOfMemoryError("tried to allocate 3 GiB"), ResourceError, "MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ResourceError, "MEMORY"),
    ],
)
def test_what_fails_inside_the_harness_has_the_code_of_its_cause(error, kind, code):
    with pytest.raises(kind) as caught:
        _evaluated(Failing(error), None, tasks=["piqa"], manager=None, limit=None)
    assert caught.value.code == code and "piqa" in caught.value.message
    assert code == "MEMORY" or f"{type(error).__name__}: {error}" in caught.value.message


def test_one_question_tells_no_error_and_the_table_shows_a_question_mark():
    found = result_of([*answers("teacher", [0], [0]), *answers("student", [1], [0])])
    cells = [cell for row in table.listed(found).rows for cell in row]
    assert "100.0 ± ?" in cells and "-100.0 ± ?" in cells and not any("inf" in cell for cell in cells)
    assert "piqa: 1 question." in table.listed(found).note


def test_a_task_asked_again_replaces_its_answers_and_the_others_stay(tmp_path):
    harness.write(tmp_path, [*answers("m", [0, 0], [0, 0]), *answers("m", [1], [1], task="other")])
    result = harness.write(tmp_path, answers("m", [1], [0]))
    assert {task.name: task.estimates["m"]["acc"].value for task in result} == {"other": 1.0, "piqa": 0.0}


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "tutelage\[tasks\]"') as caught:
        ask({}, None, tasks=["piqa"])
    assert caught.value.code == "MISSING_EXTRA"


def test_each_filter_of_a_task_has_its_metrics_by_name_and_the_likeliest_choice_is_taken():
    sample = {"doc_id": 3, "metrics": ["acc"], "filtered_resps": [(-4.0, False), (-1.5, True), (-2.0, False)]}
    (one,) = _answers("mine", "m", [{**sample, "filter": "none", "acc": 1.0}])
    assert (one.metrics, one.chosen, one.n_choices, one.question) == ({"acc": 1.0}, 1, 3, 3)
    of_two = [{**sample, "filter": name, "acc": value} for name, value in (("strict", 0.0), ("loose", 1.0))]
    (both,) = _answers("mine", "m", of_two)
    assert both.metrics == {"acc,strict": 0.0, "acc,loose": 1.0}
    text = {**sample, "filtered_resps": ["an answer"], "filter": "none", "acc": 0.0}
    assert next(iter(_answers("mine", "m", [text]))).n_choices == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that it brings
def test_a_task_file_with_local_questions_is_asked_without_a_network(tmp_path):
    pytest.importorskip("lm_eval")
    rows = [{"q": f"the cat {i}", "choices": ["sat", "flew", "on"], "answer": i % 3} for i in range(7)]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.json'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{answer}}'\n"
        "doc_to_choice: '{{choices}}'\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    folder = str(tiny_runs.model_folder(tmp_path / "model"))
    model, tokenizer = load.load_model(folder, dtype="float32"), load.load_tokenizer(folder)
    found = ask({"a": model, "b": model}, tokenizer, tasks=["mine"], task_files=tmp_path, limit=6)
    (result,) = result_of(found)
    assert result.n_questions == 6 and result.contingencies[0].only_first.value == 0
    assert {answer.n_choices for answer in found} == {3}
    for answer in found:
        assert answer.metrics["acc"] == float(answer.chosen == rows[answer.question]["answer"])
    with pytest.raises(ConfigError, match="no_such is no task"):
        ask({"a": model}, tokenizer, tasks=["no_such"], task_files=tmp_path)
