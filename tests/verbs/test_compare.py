"""`tutelage compare`: techniques from one start on one text, under equal budgets."""

import json
import os

import pytest
import yaml

import tutelage
from tests.instruments import faults
from tests.verbs.tiny_runs import call, documents, recipe
from tutelage import io, reading
from tutelage.data.example import Example
from tutelage.data.split import is_held_out
from tutelage.errors import ConfigError, ResourceError
from tutelage.evaluation import records
from tutelage.models.safety import read_safetensors_header
from tutelage.planning import kept
from tutelage.planning.contest import COMPUTE, TOKENS, Arm
from tutelage.planning.of_recipe import facts_of
from tutelage.planning.work import Beginnings, Flops, Place, Work, techniques
from tutelage.recipe import load_recipe
from tutelage.rundir import RunDirectory
from tutelage.verbs.beginnings import write_beginnings
from tutelage.verbs.compare import keep, require_same
from tutelage.verbs.contest_scores import _teacher_first_s, is_live

TECHNIQUES = ("control", "soft", "cached", "argmax", "hard", "co")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("contest")


@pytest.fixture(scope="module")
def base(place):
    return recipe(place, loss=[{"forward_kl": 1.0}])


@pytest.fixture(scope="module")
def made(place, base):
    return tutelage.compare(base, techniques=TECHNIQUES, seeds=1, run_dir=place / "all")


def runs(made):
    return {path.name: RunDirectory(path) for path in made.path.parent.iterdir() if (path / "finished.json").is_file()}


def test_every_technique_is_compared_with_the_control_in_both_views(made):
    assert made.failed == {}
    found = {(v.view, v.technique, v.metric) for v in made.found.verdicts}
    others = [t for t in TECHNIQUES if t != "control"]
    assert {(TOKENS, t, m) for t in others for m in ("held_out_loss", "kl_to_teacher", "ece")} <= found
    assert (COMPUTE, "hard", "held_out_loss") in found
    assert all(len(v.by_seed) == 1 for v in made.found.verdicts)
    text = str(made)
    assert "At equal tokens, 1 seed each" in text and "against plain fine-tuning" in text
    assert "<!doctype html>" in made.path.read_text() and "At equal compute" in made.path.read_text()
    title, command = made.found.report.title, made.found.report.commands["report"]
    assert title.startswith("At equal tokens, ") and title in made.path.read_text()
    again = f"--run-dir {made.path.parent} --techniques {','.join(TECHNIQUES)} --seeds 1 --tokens 256"
    assert command.endswith(again) and command in made.path.with_suffix(".md").read_text()
    stored = reading.read_json(made.path.with_suffix(".json"))
    assert stored["verdicts"] == json.loads(json.dumps(made.found.json()))


@pytest.fixture(scope="module")
def alone(base, place):
    """What `train` makes of the recipe with the truth alone, seed 0."""
    training = {**base["training"], "steps": None, "tokens": 256}
    return tutelage.train({**base, "loss": ["ground_truth"], "training": training}, run_dir=place / "alone")


def test_all_runs_start_alike_and_are_measured_on_the_same_rows_of_the_recipe(made, alone):
    rows = {}
    for name, run in {**runs(made), "alone": alone.directory}.items():
        with (run.evaluation / records.RECORDS).open() as file:
            lines = [json.loads(line) for line in file]
        own = [s for s in lines if s.get("model") == "student_before"]
        rows[name] = [(s["row"], s["n_tokens"], s["nll_nats"]) for s in own]
    assert len(rows) == 1 + len(made.found.entries) and len(rows["alone"]) > 3
    assert all(found == rows["alone"] for found in rows.values())


def test_one_seed_of_the_control_is_the_run_that_train_makes(made, alone):
    (entry,) = (e for e in made.found.entries if e.technique == "control" and e.seed == 0 and TOKENS in e.views)
    whole = alone.evaluation().transfer.sets["held_out"].estimates["student"]["held_out_loss"].value
    scores = entry.scores["held_out"]
    assert sum(s.nll_nats for s in scores) / sum(s.n_tokens for s in scores) == pytest.approx(whole, rel=1e-12)


def test_what_is_measured_of_a_stored_or_a_learning_teacher_is_against_the_recipes_own(made):
    """KL of co-distillation would be that to a teacher which has learned; of a cache, to one a little rounded."""
    measured = made.path.parent / "measured"
    assert {path.name.partition("-")[0] for path in measured.iterdir()} == {"cached", "co"}
    of_teacher = set()
    for folder in (*measured.iterdir(), runs(made)["soft-256-seed0"].evaluation):
        with (folder / records.RECORDS).open() as file:
            lines = [json.loads(line) for line in file]
        of_teacher.add(tuple(s["nll_nats"] for s in lines if s.get("model") == "teacher"))
    assert len(of_teacher) == 1


def test_equal_compute_is_as_many_operations_as_soft_labels_within_a_step(made):
    at = {(e.technique, view): e for e in made.found.entries for view in e.views if e.seed == 0}
    budget = at["soft", COMPUTE].flops
    for (technique, view), entry in at.items():
        a_step = 64 * entry.flops / entry.tokens
        assert view != COMPUTE or budget - a_step < entry.flops <= budget, technique
    assert at["control", COMPUTE].tokens > at["control", TOKENS].tokens
    assert len({at[t, TOKENS].tokens for t in TECHNIQUES}) == 1


@pytest.mark.parametrize(("technique", "again"), [("soft", False), ("cached", True), ("co", True), ("hard", False)])
def test_what_is_measured_again_of_a_technique(technique, again, base):
    place = Place(cache="/c", answers="/a", beginnings=(Beginnings(source={"jsonl": ["/t"]}, documents=1),))
    tree = techniques()[technique].recipe(load_recipe(base).resolved(), place)
    work = Work(student_training=1.0)
    arm = Arm(technique=technique, seed=0, tokens=1, views=(), recipe=tree, work=work,
              flops=Flops(teacher=0.0, students=0.0))  # fmt: skip
    assert is_live(arm) is not again


def test_no_document_that_is_held_out_is_a_beginning(base, tmp_path):
    made = write_beginnings(load_recipe(base), tmp_path)
    given = {" ".join(json.loads(line)["text"].split()) for line in (tmp_path / "texts.jsonl").read_text().splitlines()}
    everything = {" ".join(text.split()) for text in documents(20)}
    left = [" ".join(text.split()) for text in everything - given]
    assert given <= everything and made[0].documents == len(given) == 20 - len(left) and 3 <= len(left) <= 8
    documents_left = [Example(source="", name="", text=text).document for text in left]
    assert all(is_held_out(document, 0.25) for document in documents_left)


def test_a_finished_run_keeps_its_newest_checkpoint_and_what_all_keep_was_foretold(made, base):
    facts, training = facts_of(load_recipe(base)), load_recipe(base).training
    for run in runs(made).values():
        (kept_one,) = run.checkpoints.glob("*/step-*")
        step = max(json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines())
        assert kept_one.name == f"step-{step:06}"
        work = techniques()[run.path.name.partition("-")[0]].work(facts)
        tensors = sum(
            entry.end - entry.start
            for path in kept_one.glob("*.safetensors")
            for entry in read_safetensors_header(path)
        )
        assert tensors == pytest.approx(kept.checkpoint_bytes(facts, work, training), rel=2e-3)  # and the progress
        models = sum(path.stat().st_size for path in run.models.glob("*/*.safetensors"))
        assert tensors + models == pytest.approx(kept.kept_bytes(facts, work, training), rel=0.02)  # and headers


def test_no_room_on_the_disk_is_said_before_the_first_run(base, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_OF_CHECKPOINT", 10**18)
    with pytest.raises(ResourceError, match=r"need \d+\.\d\d GB in .*, .* GB free"):
        tutelage.compare(base, techniques=("control", "soft"), seeds=1, run_dir=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*-seed*"))
    monkeypatch.undo()
    tutelage.compare(base, techniques=("control", "soft"), seeds=1, run_dir=tmp_path / "runs", equal_compute=False)


@pytest.mark.parametrize(
    ("training", "student"), [({"keep": 1, "ema": 0.9, "save_dtype": "bfloat16"}, {}), ({}, {"quantize": "int8"})]
)
def test_the_room_that_is_asked_for_is_the_most_that_the_runs_take(training, student, base, tmp_path, monkeypatch):
    """Looked at before every operation on the disk; asked again after a kill, what is there is not asked for twice."""
    asked = {
        **base, "training": {**base["training"], "save_every": 1 / 8, "steps": 8, "evaluate_every": 1 / 4, **training},
        "student": {**base["student"], **student},
    }  # fmt: skip
    chosen = {"techniques": ("control", "soft"), "seeds": 1, "equal_compute": False, "run_dir": tmp_path / "runs"}
    needed: list[int] = []
    require = io.require_free_space
    monkeypatch.setattr(io, "require_free_space", lambda path, n: (needed.append(n), require(path, n)))
    sizes = []

    def taken() -> int:
        folders = ("checkpoints", "models")
        found = [path for f in folders for path in (tmp_path / "runs").glob(f"*-seed0/{f}/**/*.safetensors")]
        return sum(path.stat().st_size for path in found if path.is_file())

    def look(operation: io.Operation) -> None:
        if operation.kind == "rename":
            sizes.append(taken())
        if "soft-512-seed0/checkpoints" in str(operation.path) and "step-000006" in str(operation.target):
            raise KeyboardInterrupt

    with faults.hooked(look), pytest.raises(KeyboardInterrupt):
        tutelage.compare(asked, **chosen)
    first, there = needed[0], taken()
    needed.clear()
    control_done = sum(p.stat().st_size for p in (tmp_path / "runs/control-512-seed0").rglob("*.safetensors"))
    with faults.hooked(lambda operation: sizes.append(taken()) if operation.kind == "rename" else None):
        tutelage.compare(asked, **chosen)
    assert 0.8 * first <= max(sizes) <= 1.02 * first
    assert needed[0] + there == pytest.approx(first, rel=0.02)  # headers and JSON files
    assert there > 1.5 * control_done


def test_again_uses_every_finished_run_and_a_seed_more_adds_to_them(made, base, place, capsys):
    before = {name: run.finished_path.stat().st_mtime_ns for name, run in runs(made).items()}
    again = tutelage.compare(base, techniques=TECHNIQUES, seeds=1, run_dir=place / "all")
    assert again.found.json() == made.found.json()
    assert "training the" not in capsys.readouterr().err
    more = tutelage.compare(base, techniques=("control", "soft"), seeds=2, run_dir=place / "all", equal_compute=False)
    assert {len(v.by_seed) for v in more.found.verdicts} == {2}
    after = {name: run.finished_path.stat().st_mtime_ns for name, run in runs(more).items()}
    assert before.items() <= after.items() and len(after) == len(before) + 2
    assert "2 seeds each" in str(more) and "One seed:" not in str(more)
    result = more.found.report.transfer.sets["held_out"]  # over rows alone: only the verdicts know of the seeds
    assert result.compared and not any(c.difference.is_sure for c in result.compared)


def test_a_comparison_killed_in_the_middle_goes_on_and_says_the_same(base, tmp_path):
    """Killed with kill -9 inside the second run; what was finished is not trained again."""
    chosen = {"techniques": ("control", "soft"), "seeds": 1, "equal_compute": False}
    whole = tutelage.compare(base, run_dir=tmp_path / "whole", **chosen)
    count = 0

    def dies(operation: io.Operation) -> None:
        nonlocal count
        count += "soft-256-seed0" in str(operation.path) and operation.kind == "rename"
        if count == 4:
            os._exit(faults.DIED)

    there = tmp_path / "killed"
    assert faults.in_child(lambda: tutelage.compare(base, run_dir=there, **chosen), dies) == faults.DIED
    first = RunDirectory(there / "control-256-seed0").finished_path
    before = first.stat().st_mtime_ns
    assert not RunDirectory(there / "soft-256-seed0").finished_path.exists()
    again = tutelage.compare(base, run_dir=there, **chosen)
    assert again.found.json() == whole.found.json() and first.stat().st_mtime_ns == before


def test_two_comparisons_in_one_folder_one_is_told_who_has_it(made, base, place):
    with RunDirectory(place / "all").lock(), pytest.raises(ConfigError, match=r"in use by .*; wait, or use another"):
        tutelage.compare(base, techniques=TECHNIQUES, seeds=1, run_dir=place / "all")


def test_another_recipe_is_refused_where_a_comparison_lies(made, base, place, tmp_path):
    with pytest.raises(ConfigError, match="comparison of another recipe; choose another --run-dir"):
        tutelage.compare({**base, "loss": ["reverse_kl"]}, run_dir=place / "all")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no comparison"):
        tutelage.compare(base, run_dir=tmp_path)


def test_a_comparison_that_has_no_run_gives_its_folder_to_another_recipe(base, tmp_path):
    """As after a budget that was refused: what was made for the other recipe goes."""
    first, second = load_recipe(base), load_recipe({**base, "loss": ["reverse_kl"]})
    keep(tmp_path, first)
    (tmp_path / "layers.json").write_text("{}")
    require_same(tmp_path, second)
    keep(tmp_path, second)
    assert {item.name for item in tmp_path.iterdir()} == {"recipe.yaml"}
    (tmp_path / "soft-256-seed0").mkdir()
    with pytest.raises(ConfigError, match="comparison of another recipe"):
        require_same(tmp_path, first)


def test_the_seconds_of_labelling_are_shared_by_the_rows_that_each_run_reads():
    def arm(**work):
        return Arm(technique="t", seed=0, tokens=100, views=(), recipe={}, work=Work(student_training=100.0, **work),
                   flops=Flops(teacher=0.0, students=0.0))  # fmt: skip

    spent = {"label": 60.0, "label n": 300.0, "generate": 7.0}
    assert _teacher_first_s(arm(stored=100.0), spent) == 20.0
    assert _teacher_first_s(arm(answer=5.0), spent) == 7.0
    assert _teacher_first_s(arm(), spent) == 0.0
    assert _teacher_first_s(arm(stored=400.0), spent) == 60.0  # more than was asked now: it was there


def test_without_a_control_nothing_is_said_to_be_beaten_or_not(made, base, place):
    found = tutelage.compare(
        base, techniques=("soft", "argmax"), seeds=1, run_dir=place / "all", equal_compute=False
    ).found
    assert found.verdicts == () and found.report.title == "argmax, soft, not compared with plain fine-tuning."
    assert any(said.startswith("No control: ") for said in found.report.findings)


def test_a_technique_that_fails_leaves_the_others_and_says_so(base, tmp_path, capsys):
    """The default codec stores a sample, which serves forward KL alone."""
    other = {**base, "loss": [{"jensen_shannon": 1.0}]}
    made = tutelage.compare(
        other, techniques=("control", "cached"), seeds=1, run_dir=tmp_path / "c", equal_compute=False
    )
    assert set(made.failed) == {"cached-256-seed0"} and {e.technique for e in made.found.entries} == {"control"}
    assert "warning[ARM_FAILED]: cached-256-seed0: error[" in capsys.readouterr().err
    text = " ".join(str(made).split())
    assert "Not compared: cached-256-seed0" in text and "One seed:" in text
    assert "Control alone:" in text and "No control" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--techniques", "control,softt"], "--techniques: 'softt' unknown; known: argmax, cached, co, control,"),
        (["--techniques", "soft"], "--techniques: expected two or more, each once, got soft"),
        (["data.held_out=null"], "data.held_out is null: compare has nothing to measure on"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(arguments, message, base, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base))
    code, out, err = call("compare", path, *arguments, "--run-dir", tmp_path / "c")
    assert code == 2 and message in err and out == "" and not (tmp_path / "c").exists()
