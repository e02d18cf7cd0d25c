"""Tasks of the harness: numbers from its answers, and the adapter where the package is installed."""

import builtins
import json

import pytest

from tests.verbs import tiny_runs
from tutelage.errors import ConfigError
from tutelage.evaluation import harness
from tutelage.evaluation.harness import Answer, result_of
from tutelage.models import load
from tutelage.reports import harness as table
from tutelage.verbs.harness import ask


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
