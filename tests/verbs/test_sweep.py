"""`tutelage compare --set`: the same techniques at several settings, and which student is worth its size."""

import json

import pytest
import yaml

import tutelage
from tests.verbs.tiny_runs import call, recipe
from tutelage import reading
from tutelage.errors import ConfigError
from tutelage.planning.sweep import settings_of
from tutelage.recipe import load_recipe
from tutelage.reports.sweep import ON_FRONT
from tutelage.verbs.contest_runs import Asked, grounds_of, plans_of

ASKED = {"techniques": ("control", "soft"), "seeds": 1, "equal_compute": False}
SIZES = "student.layers=[0],[0, 2]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def base(place):
    return recipe(place, loss=[{"forward_kl": 1.0}])


@pytest.fixture(scope="module")
def made(place, base):
    return tutelage.sweep(base, sets=[SIZES], run_dir=place / "all", **ASKED)


def finished(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.glob("*/*/finished.json")}


def test_every_setting_has_every_technique_and_its_own_control(made, place):
    assert made.failed == {} and set(made.family.settings) == {"layers=[0]", "layers=[0,2]"}
    for found in made.family.settings.values():
        assert {(v.technique, v.metric) for v in found.verdicts} >= {("soft", "held_out_loss")}
    assert len(finished(place / "all")) == 4


def test_all_settings_have_one_cache_one_set_of_answers_and_one_length(base, tmp_path):
    recipes = [(setting, load_recipe(base, setting.overrides)) for setting in settings_of([SIZES])]
    asked = Asked(names=("control", "cached", "hard"), seeds=1, equal_compute=False)
    plans = plans_of(grounds_of(recipes, tmp_path), asked)
    arms = [(plan, arm) for plan in plans for arm in plan.contest.arms]
    teachers = [arm.recipe["teacher"] for _, arm in arms]
    assert {t["cache"] for t in teachers if t.get("cache")} == {str(tmp_path / "teacher-cache")}
    assert {t["answers"] for t in teachers if t.get("answers")} == {str(tmp_path / "answers")}
    assert len({str(plan.ground.run(arm)) for plan, arm in arms}) == 6 and len({arm.tokens for _, arm in arms}) == 1


def test_terminal_page_markdown_and_json_show_one_table(made):
    for text in (str(made), made.path.read_text(), made.path.with_suffix(".md").read_text()):
        assert "Size against quality at equal tokens" in text and ON_FRONT in text
    stored = reading.read_json(made.path.with_suffix(".json"))
    assert stored["rows"] == json.loads(json.dumps([row.json() for row in made.family.rows]))
    assert any(row["on_front"] for row in stored["rows"])
    command = made.family.report.commands["report"]
    assert f"--set '{SIZES}' --techniques control,soft --seeds 1 --tokens 256 --no-equal-compute" in command


def test_again_uses_every_finished_run_and_a_value_more_adds_to_them(made, base, place, capsys):
    before = finished(place / "all")
    again = tutelage.sweep(base, sets=[SIZES], run_dir=place / "all", **ASKED)
    assert again.family.rows == made.family.rows and "training the" not in capsys.readouterr().err
    more = tutelage.sweep(base, sets=[f"{SIZES},[0, 1, 3]"], run_dir=place / "all", **ASKED)
    assert before.items() <= finished(place / "all").items() and len(finished(place / "all")) == 6
    kept = {(r.setting, r.technique): r.loss for r in more.family.rows}
    assert all(kept[r.setting, r.technique] == r.loss for r in made.family.rows)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["student.layerz=1,2"], "--set student.layerz=1: 1 problem in recipe"),
        (["student.layers=[0],{listed: [0]}"], "are one recipe; give one of them"),
    ],
)
def test_settings_that_are_no_recipe_or_the_same_one(sets, message, base, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tutelage.sweep(base, sets=sets, run_dir=tmp_path / "c", **ASKED)
    assert not (tmp_path / "c").exists()


def test_the_command_names_the_setting_of_a_run_that_failed(made, base, place, tmp_path):
    """The default codec stores a sample, which serves forward KL alone."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base))
    code, _, err = call(
        "compare", path, "--set", "loss=jensen_shannon", "--techniques", "control,cached", "--seeds", "1",
        "--no-equal-compute", "--run-dir", place / "all",
    )  # fmt: skip
    assert code == 0 and "warning[ARM_FAILED]: loss=jensen_shannon cached-256-seed0: error[" in err
    assert "Not compared: cached-256-seed0" in " ".join(err.split())
