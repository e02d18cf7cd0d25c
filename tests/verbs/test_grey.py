"""The grey box: what an endpoint says of its distributions becomes a teacher cache, and a student learns it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import tutelage
from tests.generation import grey
from tests.instruments import faults
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs import tiny_runs
from tests.verbs.taught import TRAINING
from tests.verbs.tiny_runs import call
from tutelage.cache.reader import TeacherCache
from tutelage.data.answers import CARD, SOFT
from tutelage.errors import ConfigError, IntegrityError, RemoteError
from tutelage.training.prepare import InMemory, prepare

OWN = tiny_runs.tokenizer()


def said(body: dict[str, object]) -> str:
    asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
    return f"It was the {asked.split()[1]}."


def written(folder: Path, student: Path, url: str, **fields: object) -> Path:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in tiny_runs.documents(24)))
    whole = {
        "teacher": {"answers": "answers", "api": {"base_url": url, "model": "m", "terms": "own"}},
        "student": str(student),
        "data": {"held_out": 0.25, "max_length": 128},
        "loss": [{"forward_kl": 0.9}, {"ground_truth": 0.1}],
        "training": {**TRAINING, "evaluate_every": 0.5},
        "generate": {"prompts": "prompts.jsonl", "max_requests": 100, "max_tokens": 20, "top_logprobs": 4},
        "evaluation": {"prompts": []},
    }
    whole |= fields
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.mark.parametrize("how", [{}, {"ids": True, "end": True}])
def test_a_student_learns_the_endpoint_s_soft_labels_and_is_measured_on_held_out_prompts(student, tmp_path, how):
    with Endpoint(grey.answering(OWN, said, **how)) as server:
        path = written(tmp_path, student, server.url)
        code, out, err = call("generate", path)
        assert (code, out) == (0, f"{tmp_path / 'answers'}\n"), err
        asked = [seen.body for seen in server.seen]
        assert all(body["logprobs"] is True and body["top_logprobs"] == 4 for body in asked)
        code, out, err = call("train", path, "--run-dir", tmp_path / "run")
        assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
        assert len(server.seen) == 24
    run = tutelage.Run(tmp_path / "run")
    losses = [line["student/forward_kl"] for line in run.metrics if "student/forward_kl" in line]
    assert losses[-1] < losses[0]
    assert set(run.evaluation().transfer.models) == {"student_before", "student"}


def test_a_card_never_stands_without_the_soft_labels_that_belong_to_it(student, tmp_path):
    """Killed between any two operations, a set without them has no card, and is written again."""
    with Endpoint(grey.answering(OWN, said)) as server:
        path = written(tmp_path, student, server.url)
        first = faults.operations(lambda: tutelage.generate(path))
        again = faults.operations(lambda: tutelage.generate(path, ask=False))
    card, soft = tmp_path / "answers" / CARD, tmp_path / "answers" / SOFT
    for operations, there in ((first, False), (again, True)):
        has_card = has_soft = there
        for operation in operations:
            has_card = has_card and not (operation.kind == "unlink" and operation.path == card)
            has_soft = has_soft and not (operation.kind == "rename" and operation.path == soft)
            has_card = has_card or (operation.kind == "rename" and operation.target == card)
            has_soft = has_soft or (operation.kind == "rename" and operation.target == soft)
            assert has_soft or not has_card, operation
        assert has_card and has_soft
    assert {p.name for p in (tmp_path / "answers").iterdir()} >= {CARD, SOFT} and not list(soft.parent.glob(".soft*"))


def test_the_cache_holds_the_endpoint_s_numbers_at_every_answer_and_can_be_looked_at(student, tmp_path):
    with Endpoint(grey.answering(OWN, said)) as server:
        path = written(tmp_path, student, server.url, data={"held_out": 0.25, "max_length": 128})
        made = tutelage.generate(path)
    assert made.soft is not None and made.soft.n_rows == 24 and made.soft.n_refused == 0
    assert made.soft.n_hard == 24 and made.as_json()["soft"]["rows"] == 24
    soft = tmp_path / "answers" / SOFT
    cache, store = TeacherCache(soft), prepare(tutelage.load_recipe(path), memory=InMemory()).loader.store
    for number in range(len(store)):
        row = store.row(number)
        at = np.flatnonzero(row.loss_mask[1:])
        targets = cache.targets(
            [store.keys[number].tobytes()],
            current_ids_N=row.ids[at].astype(np.int64),
            next_ids_N=row.ids[at + 1].astype(np.int64),
            draws=[0],
        )
        content = grey.content_of(OWN, OWN.decode(row.ids[at + 1][:-1].tolist()), k=4)
        for n, entry in enumerate(content):
            assert targets.ids_NK[n].tolist() == [t["_id"] for t in entry["top_logprobs"]]
            assert np.allclose(targets.logp_NK[n].numpy(), [t["logprob"] for t in entry["top_logprobs"]], atol=5e-3)
    shown = json.loads(call("cache", "inspect", soft, "--json")[1])
    assert shown["codec"] == "topk" and shown["rows"] == cache.manifest.n_rows and shown["error"] is None
    assert "behind an endpoint" in call("cache", "inspect", soft)[1]
    assert call("cache", "verify", soft)[0] == 0
    code, out, err = call("cache", "show", soft, "--text", OWN.decode(store.row(0).ids.tolist())[:30])
    assert code == 0 and "codec topk" in out and "<|im_end|> 100.0%" in out, err
    code, _, err = call("cache", "verify", soft, "--teacher", student)
    assert code == 2 and "an endpoint gave this cache's numbers" in err


def test_windows_of_a_long_answer_have_their_part_of_the_numbers(student, tmp_path):
    with Endpoint(grey.answering(OWN, lambda body: " ".join(tiny_runs.documents(3)))) as server:
        path = written(tmp_path, student, server.url, data={"held_out": None, "max_length": 32}, training=TRAINING)
        made = tutelage.generate(path)
    prepared = prepare(tutelage.load_recipe(path), memory=InMemory())
    store = prepared.loader.store
    assert len(store) > 2 * 24 and made.soft.n_positions == int(store.n_trained.sum())
    for batch in prepared.loader.step(0):
        assert prepared.teacher.targets(batch).ids_NK.shape == (batch.n_trained, 4)


def test_another_tokenizer_is_refused_and_the_answers_stay(student, tmp_path):
    with Endpoint(grey.answering(tiny_runs.tokenizer(seed=1), said)) as server:
        path = written(tmp_path, student, server.url)
        with pytest.raises(
            IntegrityError, match=r"24 of 24 answers .* different tokenizers .*the answers are safe"
        ) as e:
            tutelage.generate(path)
        assert e.value.code == "TOKENIZER_MISMATCH" and not (tmp_path / "answers" / SOFT).exists()
        with pytest.raises(IntegrityError, match=r"different tokenizers"):  # not: ask for what was asked for
            tutelage.train(path, run_dir=tmp_path / "run")
        assert len(server.seen) == 24
        made = tutelage.generate(path, overrides=["loss=cross_entropy", "generate.top_logprobs=null"], ask=False)
        assert made.card.rows == 0  # other requests: what was asked with numbers is kept for them


def test_a_few_rows_that_do_not_match_are_counted_and_can_be_left_out(student, tmp_path):
    other = tiny_runs.tokenizer(seed=1)
    good, bad = grey.answering(OWN, said), grey.answering(other, said)
    with Endpoint(lambda n, body: (bad if "frog" in said(body) else good)(n, body)) as server:
        path = written(tmp_path, student, server.url)
        made = tutelage.generate(path)
        n_bad = sum("frog" in said(seen.body) for seen in server.seen)
    assert 0 < n_bad < 12 and made.soft.n_refused == n_bad and made.soft.n_rows == 24 - n_bad
    assert f"{n_bad} the endpoint's tokens are not the student's" in str(made)
    with pytest.raises(IntegrityError, match=r"rows are not in .*--no-ask, or set data.missing_soft=drop"):
        prepare(tutelage.load_recipe(path), memory=InMemory())
    left = prepare(tutelage.load_recipe(path, ["data.missing_soft=drop"]), memory=InMemory())
    assert len(left.loader.rows) + len(left.held_out()) <= 24 - n_bad


@pytest.mark.parametrize("k", [0, 2])
def test_an_endpoint_without_the_numbers_that_were_asked_for_stops_the_run_at_once(student, tmp_path, k):
    def bare(n, body):
        return grey.answering(OWN, said, k=k)(n, body) if k else Action(text=said(body))

    with Endpoint(bare) as server:
        path = written(tmp_path, student, server.url)
        path.write_text(path.read_text().replace("model: m\n", "model: m\n    concurrency: 1\n"))
        with pytest.raises(RemoteError, match=r"lower generate.top_logprobs or leave it out") as found:
            tutelage.generate(path)
        assert found.value.code == "API_LOGPROBS" and len(server.seen) <= 2


def test_what_makes_no_sense_is_said_before_anything_is_asked(student, tmp_path):
    path = written(tmp_path, student, "http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=r"data.train_on must be answers with generate.top_logprobs"):
        tutelage.load_recipe(path, ["data.train_on=all"])
    with pytest.raises(ConfigError, match=r"logprobs_temperature has no effect without generate.top_logprobs"):
        tutelage.load_recipe(
            path, ["teacher.api.logprobs_temperature=0.7", "generate.top_logprobs=null", "loss=cross_entropy"]
        )
    with pytest.raises(ConfigError, match=r"matched with the student's tokens; give student.model"):
        tutelage.generate(tutelage.load_recipe(path, ["student={config: {hidden_size: 8}}"]))
    recipe = tutelage.load_recipe(path)
    assert tutelage.load_recipe(recipe.resolved()) == recipe and recipe.cache is None
    assert recipe.teacher.cache == str(tmp_path / "answers" / SOFT)


def test_the_temperature_of_the_numbers_is_kept_and_must_be_that_of_the_loss(student, tmp_path):
    with Endpoint(grey.answering(OWN, said)) as server:
        path = written(tmp_path, student, server.url)
        changes = ["teacher.api.logprobs_temperature=0.5"]
        tutelage.generate(path, overrides=changes)
    assert TeacherCache(tmp_path / "answers" / SOFT).manifest.asked.temperature == 0.5
    with pytest.raises(ConfigError, match=r"made at T=0.5"):
        prepare(tutelage.load_recipe(path, changes), memory=InMemory())
