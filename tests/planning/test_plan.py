"""`tutelage plan`: the arithmetic, what is refused, and disk against what a cache then takes."""

import json
from pathlib import Path

import pytest

import tutelage
from tests.cache.labelled import Place, home
from tests.models.architectures import V, made
from tests.verbs import tiny_runs
from tutelage import plugins
from tutelage.cli import main
from tutelage.errors import ConfigError
from tutelage.models.student import evenly, from_layers
from tutelage.planning.advice import advise
from tutelage.planning.estimate import plan_of
from tutelage.planning.facts import Endpoint, Facts, Text
from tutelage.planning.flops import Size, size_of
from tutelage.planning.machines import FORWARD_SHARE, TRAINING_SHARE, Machine, device_of
from tutelage.planning.of_recipe import _student_config
from tutelage.planning.pace import described
from tutelage.planning.storage import Form
from tutelage.planning.work import TECHNIQUES
from tutelage.recipe import Student
from tutelage.verbs.plan import Numbers

LLAMA_4 = Numbers(tokens=15e12, vocabulary=202_048, parameters=2e12, hidden_size=5_120)
CACHE_FORMAT = Path(__file__).parents[2] / "docs" / "cache-format.md"
FORM = Form(name="threshold", codec="threshold")


def size(parameters: int) -> Size:
    return Size(parameters=parameters, multiplying=parameters, head=0, layers=0, attention_width=0, hidden=64,
                vocabulary=1000)  # fmt: skip


TEXT = Text(trained=3e6, unique=1e6, held_out=1e4, window=500.0)
FACTS = Facts(text=TEXT, students={"student": size(1_000)}, teacher=size(4_000))


# --- numbers alone ---
def test_the_page_of_the_cache_format_ends_with_the_same_arithmetic():
    """`docs/cache-format.md` gives million GB; the plan gives bytes."""
    lines = [line.split("|")[1:-1] for line in CACHE_FORMAT.read_text().splitlines() if "million GB |" in line]
    rows = [(name, each.split()[0], total.split()[0]) for name, each, total in lines]
    plan = tutelage.plan(LLAMA_4).plan
    said = [("the whole distribution", plan.whole_bytes)] + [(s.name, s.total_bytes) for s in plan.stored]
    assert len(rows) == len(said) == 6
    for (name, each, total), (own, found) in zip(rows, said, strict=True):
        assert own.split(",")[0] in name.replace("`", "")
        assert float(total.replace(",", "")) * 1e15 == pytest.approx(found, rel=0.02)
        assert float(each.replace(",", "")) * LLAMA_4.tokens == pytest.approx(found, rel=0.01)


def test_every_technique_is_its_tokens_times_the_formula():
    plan = plan_of(FACTS, form=FORM)
    t, s = 2 * 4_000, 2 * 1_000  # operations of a forward pass a token; no attention in these sizes
    flops = {e.name: (e.flops.teacher, e.flops.students) for e in plan.estimates if e.flops is not None}
    students = 3e6 * 3 * s
    assert flops == {
        "control": (0, students),
        "soft": (3e6 * t, students),
        "argmax": (3e6 * t, students),
        "cached": (1.01e6 * t, students),
        "co": (3e6 * 3 * t, students),
        "hard": (pytest.approx(1e6 * t), students),
    }
    assert {e.name for e in plan.estimates} == set(plugins.names(TECHNIQUES))


def test_the_hours_of_a_described_machine_are_operations_over_its_share_of_the_peak():
    machine = Machine(device=device_of("h100"), count=2, price_usd=3.0)
    plan = plan_of(FACTS, form=FORM, machine=machine, pace=described(machine, FACTS))
    soft = plan.possible["soft"]
    seconds = soft.flops.students / (2 * 989e12 * TRAINING_SHARE) + soft.flops.teacher / (2 * 989e12 * FORWARD_SHARE)
    assert soft.seconds == pytest.approx(seconds)
    assert soft.usd == pytest.approx(seconds / 3600 * 3.0 * 2)
    better = Machine(device=device_of("h100"), count=2, utilisation=2 * TRAINING_SHARE)
    assert plan_of(FACTS, form=FORM, machine=better, pace=described(better, FACTS)).possible[
        "soft"
    ].seconds == pytest.approx(seconds / 2)


def test_behind_an_endpoint_text_is_paid_by_the_token_and_distributions_are_not_possible():
    endpoint = Endpoint(usd_per_prompt_token=1e-6, usd_per_answer_token=4e-6)
    plan = plan_of(Facts(text=TEXT, students=FACTS.students, endpoint=endpoint), form=FORM)
    assert set(plan.possible) == {"control", "hard"}
    assert plan.possible["hard"].endpoint_usd == pytest.approx(1e6 * (0.125 * 1e-6 + 0.875 * 4e-6))
    why = {e.name: e.impossible for e in plan.estimates if e.impossible}
    assert all("endpoint" in reason for reason in why.values())
    assert "generate.top_logprobs" in why["grey"]
    assert advise(plan).technique == "hard"


def test_log_probabilities_of_an_endpoint_are_advised_and_stored():
    endpoint = Endpoint(top_logprobs=5)
    plan = plan_of(Facts(text=TEXT, students=FACTS.students, endpoint=endpoint), form=FORM)
    assert plan.possible["grey"].work.stored == plan.possible["grey"].work.answer > 0
    assert plan.possible["grey"].endpoint_usd is None  # no price is known
    assert advise(plan).technique == "grey"


@pytest.mark.parametrize(("trained", "expected"), [(1e6, "soft"), (3e6, "cached")])
def test_the_cache_is_advised_where_text_is_read_again(trained: float, expected: str):
    text = Text(trained=trained, unique=1e6, held_out=0.0, window=500.0)
    assert advise(plan_of(Facts(text=text, students=FACTS.students, teacher=FACTS.teacher), form=FORM)).technique == (
        expected
    )


def test_a_student_far_below_its_teacher_is_told_and_a_near_one_is_not():
    far = Facts(text=TEXT, students={"tiny": size(300), "near": size(1_000)}, teacher=size(4_000))
    doubts = [d for d in advise(plan_of(far, form=FORM)).doubts if "parameters" in d]
    assert len(doubts) == 1
    assert "tiny has 1/13.3" in doubts[0]


# --- a recipe ---
@pytest.mark.parametrize("codec", ["topk", "hidden", "dense"])
def test_the_disk_of_a_cache_is_within_5_percent_of_what_label_then_writes(tmp_path: Path, codec: str):
    place = Place(tmp_path)
    recipe = place.recipe(tmp_path / "cache", codec=codec)
    with home(place.home):
        planned = tutelage.plan(recipe, calibration=False).plan.possible["cached"].disk_bytes
        path = tutelage.label(recipe).path
    written = [p for p in path.rglob("*.safetensors") if p.parent.name != "start"]
    assert planned == pytest.approx(sum(p.stat().st_size - _header_bytes(p) for p in written), rel=0.05)


def _header_bytes(path: Path) -> int:
    """Names, types and shapes at the head of a file: nothing where data are large."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_the_student_and_the_teacher_have_their_real_sizes(tmp_path: Path):
    place = Place(tmp_path)
    recipe = place.recipe(tmp_path / "cache")
    with home(place.home):
        facts = tutelage.plan(recipe, calibration=False).plan.facts
        run = tutelage.train({**recipe, "teacher": str(place.teacher())} | {"cache": None}, run_dir=tmp_path / "run")
    assert facts.students["student"].parameters == sum(p.numel() for p in run.student().parameters())
    assert 0 < facts.text.held_out < facts.text.unique


def test_prompts_are_computed_too_and_only_answers_are_stored(tmp_path: Path):
    """The forward passes are over whole conversations, whatever part of them is learned."""
    rows = [
        {"prompt": f"a long question of many words, number {i}, asked again", "answer": f"yes {i}"} for i in range(40)
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = Place(tmp_path)
    recipe = place.recipe(tmp_path / "cache")
    source = {"jsonl": str(tmp_path / "qa.jsonl"), "prompt": "prompt", "answer": "answer"}
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    recipe["data"] = {"sources": [source], "max_length": 128, "chat_template": template}
    recipe["training"] = {**recipe["training"], "batch_tokens": 256}
    with home(place.home):
        found = {kind: tutelage.plan({**recipe, "data": {**recipe["data"], "train_on": kind}}, calibration=False).plan
                 for kind in ("all", "answers")}  # fmt: skip
    texts = {kind: plan.facts.text for kind, plan in found.items()}
    assert texts["answers"].unique == texts["all"].unique
    assert texts["answers"].learned < 0.5 * texts["all"].learned
    assert found["answers"].possible["soft"].flops == found["all"].possible["soft"].flops
    assert found["answers"].possible["cached"].work.stored == texts["answers"].learned


def test_a_teacher_from_nothing_is_to_learn_along_and_an_existing_one_raises_no_doubt():
    new = Facts(text=TEXT, students=FACTS.students, teacher=FACTS.teacher, teacher_is_new=True)
    advice = advise(plan_of(new, form=FORM))
    assert advice.technique == "co"
    assert any("does not exist yet" in doubt for doubt in advice.doubts)
    assert not any("does not exist yet" in doubt for doubt in advise(plan_of(FACTS, form=FORM)).doubts)


def test_hours_whose_price_nobody_said_cost_an_unknown_sum():
    assert plan_of(FACTS, form=FORM).possible["soft"].usd is None


# --- the command ---
def test_the_command_needs_no_model_and_prints_json(capsys):
    arguments = ["plan", "--tokens", "15e12", "--vocabulary", "202048", "--parameters", "2e12", "--hidden-size", "5120"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole_bytes"] == pytest.approx(6.06e18, rel=0.01)
    assert found["techniques"]["soft"]["flops"]["teacher"] == 15e12 * 2 * 2e12
    assert main([*arguments, "--gpu", "h100", "--count", "1000", "--price", "2"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "6.06 EB" in printed and "240 TB" in printed and "advice" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "5"], "--vocabulary, --parameters"),
        (["--tokens", "-1", "--vocabulary", "10", "--parameters", "10"], "--tokens above 0"),
        (["--gpu", "h10"], "h100?"),
        (["--gpu", "h100", "--flops", "1e12"], "one of them"),
        (["--flops", "1e12"], "--memory"),
        (["--count", "2"], "give --gpu"),
        (["--gpu", "h100", "--utilisation", "3"], "--utilisation 3"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_type(capsys, arguments: list[str], said: str):
    assert main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_technique_that_is_no_file_is_refused():
    with pytest.raises(ConfigError, match="soft"):
        plugins.load(TECHNIQUES, "sofd")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (9, "9 layers asked, the teacher has 4; give 1 to 4"),
        ([0, 7], "layer 7 asked, the teacher has 4; give numbers from 0 to 3"),
    ],
)
def test_layers_that_the_teacher_has_not_are_refused_before_anything_runs(tmp_path: Path, layers: object, said: str):
    with pytest.raises(ConfigError, match=f"student.layers: {said}"):
        tutelage.plan(tiny_runs.recipe(tmp_path, student={"layers": layers}), calibration=False)


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("deepseek_v3", {"listed": [2, 3]}),
        ("llama4", {"listed": [1, 3]}),
        ("qwen2_moe", {"listed": [0, 2]}),
        ("qwen3_moe", {"listed": [1, 2]}),
        ("qwen3_moe", {"evenly": 2}),
        ("gemma3 with images", {"listed": [0, 1, 3]}),
    ],
)
def test_the_size_of_a_student_is_that_of_the_layers_which_it_keeps(family: str, layers: dict[str, object]):
    """Mixtures have layers of different sizes."""
    teacher = made(family)
    planned = _student_config(Student.model_validate({"layers": layers}), name="student", teacher=teacher.config,
                              n_vocabulary=V)  # fmt: skip
    saved = from_layers(teacher, layers.get("listed") or evenly(4, 2))
    assert size_of(planned).parameters == saved.num_parameters()
    own, its = (config.get_text_config().to_dict() for config in (planned, saved.config))
    assert {**own, "dtype": None} == {**its, "dtype": None}


def test_of_an_ensemble_every_member_is_counted(tmp_path: Path):
    alone = tiny_runs.recipe(tmp_path)
    tiny_runs.model_folder(tmp_path / "other", layers=2, seed=1)
    members = [{"model": str(tmp_path / name)} for name in ("teacher", "other")]
    student = {"model": str(tmp_path / "other")}
    both = {**alone, "teacher": {"ensemble": members}, "student": student}
    plans = {
        name: tutelage.plan(recipe, calibration=False).plan
        for name, recipe in {
            "both": both, "first": {**alone, "student": student},
            "second": {**alone, "student": student, "teacher": str(tmp_path / "other")},
        }.items()
    }  # fmt: skip
    flops = {name: plan.possible["soft"].flops.teacher for name, plan in plans.items()}
    assert flops["both"] == flops["first"] + flops["second"]
    held = {name: plan.possible["soft"].memory.parts["teacher"] for name, plan in plans.items()}
    assert held["both"] == held["first"] + held["second"]
    why = {e.name: e.impossible for e in plans["both"].estimates}
    assert "tutelage cache merge" in why["cached"] and "averages several" in why["co"] and "writers" in why["hard"]


def test_answers_that_are_not_written_yet_count_as_long_as_they_may_be(tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "the cat sat on the mat"}) + "\n" for _ in range(10)))
    recipe = {
        "teacher": {"api": {"base_url": "http://127.0.0.1:1/v1", "model": "x"}, "answers": str(tmp_path / "answers")},
        "student": str(tiny_runs.model_folder(tmp_path / "student")),
        "generate": {"prompts": str(prompts), "samples": 2, "max_tokens": 20, "budget_usd": 1.0,
                     "price": {"prompt_usd": 1.0, "answer_usd": 3.0}},
        "data": {"held_out": 0.1, "max_length": 64},
        "loss": "cross_entropy",
        "training": {"epochs": 2, "batch_tokens": 64, "precision": "float32"},
    }  # fmt: skip
    plan = tutelage.plan(recipe, calibration=False).plan
    text, hard = plan.facts.text, plan.possible["hard"]
    assert hard.work.answer == pytest.approx(0.9 * 10 * 2 * 20) and text.trained == pytest.approx(2 * text.unique)
    assert hard.endpoint_usd == pytest.approx(hard.work.answer * 3e-6 + hard.work.prompt * 1e-6)
    unasked = {name: value for name, value in recipe.items() if name != "generate"}
    with pytest.raises(ConfigError, match="the answers are not there, and the recipe does not say how they are asked"):
        tutelage.plan(unasked, calibration=False)
