"""`tutelage report`: one run as a page, Markdown or JSON; several side by side, or every reason why not (fault F5)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tutelage
from tests.verbs.tiny_runs import call
from tutelage.errors import ConfigError
from tutelage.evaluation import records


@pytest.fixture
def copy(finished, tmp_path) -> Callable[[str], Path]:
    """Copies of the finished run without its weights, by name."""

    def make(name: str) -> Path:
        skipped = shutil.ignore_patterns("models", "checkpoints", "student")
        return Path(shutil.copytree(finished.path, tmp_path / name, ignore=skipped))

    return make


def changed(path: Path, change: Callable[[dict], None]) -> None:
    """A JSON file with a change."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_page_of_the_verb_is_the_page_of_the_training(finished, tmp_path):
    code, out, err = call("report", finished.path, "-o", tmp_path / "page.html")
    assert (code, out) == (0, f"{tmp_path / 'page.html'}\n"), err
    assert (tmp_path / "page.html").read_bytes() == finished.report().read_bytes()
    assert b'id="explored"' in finished.report().read_bytes()


def test_a_run_is_reported_in_its_folder_in_every_format(copy):
    run = copy("run")
    for arguments, name in (
        ([], "report.html"),
        (["--format", "md"], "report.md"),
        (["--format", "json"], "report.json"),
    ):
        code, out, err = call("report", run, *arguments)
        assert (code, out) == (0, f"{run / name}\n"), err
    whole = json.loads((run / "report.json").read_text())
    assert whole["transfer"] == records.read(run / "evaluation").json()
    assert whole["explorer"]["texts"] and whole["commands"]["table"] == f"tutelage evaluate {run}"
    markdown = (run / "report.md").read_text()
    assert "| Held-out loss, nats |" in markdown
    assert f"tutelage report {run}" in markdown
    code, out, _ = call("report", run, "--json")
    assert json.loads(out)["path"] == str(run / "report.html")
    assert json.loads(out)["title"] == whole["title"]


def test_what_cannot_be_written_is_said_before_anything_is(copy, tmp_path):
    run = copy("run")
    before = (run / "finished.json").read_bytes()
    for output, said in (
        (run / "finished.json", "no report of ours; choose another --output"),
        (tmp_path / "page.pdf", "says no format; end it in .html, .md or .json"),
        (tmp_path, "says no format"),
    ):
        code, out, err = call("report", run, "-o", output)
        assert (code, out) == (2, "")
        assert said in err
    assert (run / "finished.json").read_bytes() == before
    assert call("report", run, "--format", "pdf")[2] == "error[CONFIG]: format 'pdf' unknown; expected html, md, json\n"
    assert "holds no run" in call("report", tmp_path / "nothing")[2]
    for name, made, says in (
        ("compared", "comparison.html", "is a comparison: its page is"),
        ("asked", "journal.jnl", "holds answers: tutelage status"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / made).touch()
        assert says in call("report", tmp_path / name)[2]
    assert "is a file, expected the folder of a run" in call("report", tmp_path / "asked" / "journal.jnl")[2]
    shutil.rmtree(run / "evaluation")
    assert f"tutelage evaluate {run}" in call("report", run)[2]


def test_a_student_of_the_teachers_layers_is_told_as_one_base_and_another_one_is_not(copy):
    run = copy("run")
    code, _, err = call("report", run)
    assert "warning[SAME_BASE]: the student and the teacher began as one model." in err
    assert "Same base" in (run / "report.html").read_text()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["student"] = {"model": "org/other"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = call("report", run)
    assert (code, "SAME_BASE" in err) == (0, False)
    assert "Same base" not in (run / "report.html").read_text()


def test_a_number_that_its_records_do_not_give_is_not_reported(copy):
    run = copy("run")
    changed(
        run / "evaluation/transfer.json",
        lambda t: t["sets"]["held_out"]["estimates"]["student"]["held_out_loss"].update(value=1.0),
    )
    code, _, err = call("report", run)
    assert code == 3
    assert "REPORT_CHECK" in err


def test_a_run_measured_before_the_explorer_gets_its_page_and_the_command_that_makes_one(copy):
    run = copy("run")
    (run / "evaluation/explorer.json").unlink()
    page = tutelage.report(run).path.read_text()
    assert f"tutelage evaluate {run} --force" in page
    assert "explored" not in page
    assert "script-src &#39;none&#39;" in page or "script-src 'none'" in page


def test_runs_are_compared_on_one_page_as_one_family(copy, tmp_path):
    runs = [copy("small"), copy("large")]
    made = tutelage.report(*runs)
    assert made.path == tmp_path / "comparison.html"
    assert made.as_json()["transfer"]["models"] == [
        "teacher", "small", "control-small", "large", "control-large",
    ]  # fmt: skip
    (same,) = [
        c["difference"]
        for c in made.as_json()["transfer"]["sets"]["held_out"]["compared"]
        if (c["metric"], c["first"], c["second"]) == ("held_out_loss", "small", "large")
    ]
    assert (same["value"], same["decided"]) == (0.0, False)
    page = made.path.read_text()
    assert "2 students of one teacher: small, large." in page
    assert "Size against quality" in page
    assert "Filled marks" in page
    assert f"tutelage report {runs[0]} {runs[1]}" in page
    assert "No control" not in page
    assert made.content["findings"][0].startswith("Held-out loss: no difference between ")


def test_a_comparison_has_the_numbers_of_each_run(copy):
    runs = [copy("a"), copy("b")]
    whole = tutelage.report(*runs, format="json").as_json()["transfer"]
    alone = records.read(runs[0] / "evaluation").json()
    for ours, theirs in (("a", "student"), ("control-a", "control"), ("teacher", "teacher")):
        found, expected = whole["sets"]["held_out"]["estimates"][ours], alone["sets"]["held_out"]["estimates"][theirs]
        assert found == expected
        assert whole["costs"][ours] == alone["costs"][theirs]


REASONS = {
    "tokenizer": (lambda p: p.update(tokenizer="0123456789"), "tokenizer (a: ", ", b: 01234567)"),
    "teacher": (lambda p: p.update(teacher="0123456789"), "teacher (a: ", ", b: 01234567)"),
    "held_out": (lambda p: p["data"].update(held_out="0123456789"), "held-out data (a: ", ", b: 01234567)"),
}


def test_every_reason_against_a_comparison_is_given_at_once(copy):
    runs = [copy("a"), copy("b")]
    for change, _, _ in REASONS.values():
        changed(runs[1] / "provenance.json", change)
    with pytest.raises(ConfigError) as raised:
        tutelage.report(*runs)
    assert raised.value.code == "NOT_COMPARABLE"
    for _, *said in REASONS.values():
        assert all(words in str(raised.value) for words in said)
    assert f"tutelage report {runs[0]}" in str(raised.value)
    assert not (runs[0].parent / "comparison.html").exists()


def _without_a_text(run: Path) -> None:
    """The run as if it had been measured on one text less."""
    path = run / "evaluation/records.jsonl"
    head, *lines = path.read_text().splitlines()
    of_rows = [line for line in lines if "row" in json.loads(line)]  # without the facts: they are of all rows
    last = max(json.loads(line)["row"] for line in of_rows)
    kept = [head, *(line for line in of_rows if json.loads(line)["row"] != last)]
    costs = json.loads((run / "evaluation/transfer.json").read_text())["costs"]
    transfer = records.recompute(kept, costs=costs)
    path.write_text("".join(f"{line}\n" for line in kept))
    (run / "evaluation/transfer.json").write_text(json.dumps(transfer.json()))


def test_runs_measured_on_other_texts_are_refused_though_their_data_have_one_name(copy):
    runs = [copy("a"), copy("b")]
    _without_a_text(runs[1])
    with pytest.raises(
        ConfigError, match=r"held-out text \(a: \d+ texts, [\d,]+ tokens, b: \d+ texts, [\d,]+ tokens\)"
    ):
        tutelage.report(*runs)


def test_runs_of_other_lengths_are_compared_and_marked(copy):
    runs = [copy("a"), copy("b")]
    changed(runs[1] / "finished.json", lambda summary: summary.update(tokens=5 * summary["tokens"]))
    code, out, err = call("report", *runs)
    assert code == 0
    assert "warning[UNEQUAL_BUDGET]: training tokens differ: a " in err
    assert "Not comparable at equal cost" in Path(out.strip()).read_text()


def test_runs_whose_folders_have_one_name_are_told_apart_and_one_run_twice_is_refused(copy, tmp_path):
    first, second = copy("one/run"), copy("two/run")
    assert tutelage.report(first, second, output=tmp_path / "c.md").content["runs"].keys() == {"one/run", "two/run"}
    with pytest.raises(ConfigError, match="named twice"):
        tutelage.report(first, first)
    with pytest.raises(ConfigError, match="no run was named"):
        tutelage.report()


def test_a_run_called_like_a_role_is_no_role(copy):
    made = tutelage.report(copy("control"), copy("teacher"), format="json")
    assert made.content["runs"].keys() == {"run control", "run teacher"}
    assert made.content["title"] == "2 students of one teacher: run control, run teacher."
