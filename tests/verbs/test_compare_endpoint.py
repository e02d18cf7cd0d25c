"""`tutelage compare` with a teacher behind an endpoint, beside text of one's own."""

import json

import pytest

import tutelage
from tests.generation import grey
from tests.instruments.endpoint import Endpoint
from tests.verbs import tiny_runs
from tests.verbs.taught import TRAINING
from tutelage.errors import ConfigError
from tutelage.planning.contest import TOKENS
from tutelage.recipe import load_recipe
from tutelage.rundir import RunDirectory

OWN = tiny_runs.tokenizer()
FEW = {"max_requests": 200, "top_logprobs": 4}


def said(body):
    asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
    return f" {asked.split()[1]} sat on the mat."


def written(folder, student, url, **changed):
    for i, text in enumerate(tiny_runs.documents(24)):
        (folder / f"{i}.txt").write_text(text)
    return {
        "teacher": {"api": {"base_url": url, "model": "m", "terms": "own"}},
        "student": str(student),
        "data": {"sources": [{"text": f"{folder}/*.txt"}], "held_out": 0.25, "max_length": 32},
        "loss": "cross_entropy",
        "training": {**TRAINING, "batch_tokens": 64},
        "generate": FEW,
        "evaluation": {"prompts": []},
    } | changed


@pytest.fixture(scope="module")
def compared(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    with Endpoint(grey.answering(OWN, said)) as server:
        recipe = written(folder, student, server.url)
        made = tutelage.compare(recipe, seeds=1, run_dir=folder / "all", allow_private_host=True)
        return folder, recipe, made, [seen.body for seen in server.seen]


def test_what_an_endpoint_writes_is_compared_with_the_text_that_it_went_on_from(compared):
    _, _, made, _ = compared
    assert made.failed == {}
    verdicts = {v.technique for v in made.found.verdicts if v.view == TOKENS and v.metric == "held_out_loss"}
    assert verdicts == {"hard", "grey"}
    refused = json.loads(made.path.with_suffix(".json").read_text())
    assert "behind an endpoint" in json.dumps(refused) and "soft" in json.dumps(refused)


def test_hard_and_grey_learn_the_same_answers_which_are_bought_once(compared):
    folder, _, made, asked = compared
    assert len(asked) == len({json.dumps(body, sort_keys=True) for body in asked}) and 0 < len(asked) <= 24
    assert all(body["logprobs"] == 4 for body in asked)  # texts are gone on with by the older interface
    assert all(body["max_tokens"] == 24 for body in asked)  # what is left of a row beside its beginning
    runs = {e.technique: RunDirectory(folder / "all" / f"{e.technique}-{e.tokens}-seed0") for e in made.found.entries}
    assert "grey/forward_kl" not in runs["hard"].metrics_path.read_text()
    assert "student/forward_kl" in runs["grey"].metrics_path.read_text()


def test_only_compare_trains_such_a_recipe_and_nothing_is_asked_without_a_cap(compared, student, tmp_path):
    _, recipe, _, _ = compared
    with pytest.raises(ConfigError, match=r"teacher\.answers is missing.*compare"):
        tutelage.train(recipe, run_dir=tmp_path / "run")
    for verb in (tutelage.train, tutelage.generate):  # a recipe that was read before, as the command line has it
        with pytest.raises(ConfigError, match=r"teacher\.answers|generate"):
            verb(load_recipe(recipe))
    for name, generate in (("uncapped", {"top_logprobs": 4}), ("unsaid", None)):
        with pytest.raises(ConfigError, match="nothing caps it"):
            tutelage.compare(
                {**recipe, "generate": generate}, techniques=("hard", "grey"), seeds=1, run_dir=tmp_path / name
            )
    stopping = {**recipe["training"], "evaluate_every": 2, "early_stop": {"patience": 1}}
    with pytest.raises(ConfigError, match="grey .*endpoint says nothing of the held-out text"):
        tutelage.compare(
            {**recipe, "training": stopping}, techniques=("soft", "grey"), seeds=1, run_dir=tmp_path / "stopping"
        )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"student": {"layers": 2}}, r"student\.layers needs teacher\.model"),
        ({"loss": "forward_kl", "generate": {"max_requests": 5}}, r"needs a teacher that gives distributions"),
        ({"data": {"held_out": 0.2}}, r"teacher\.answers is missing"),
    ],
)
def test_what_an_endpoint_cannot_give_is_refused(fields, found, student, tmp_path):
    with pytest.raises(ConfigError, match=found):
        tutelage.load_recipe(written(tmp_path, student, "http://127.0.0.1:9/v1") | fields)
