"""The grey box for given text: the cache holds what a real model behind a server says of every token, or it is refused.

Shape legend: T tokens, V vocabulary, K kept tokens.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tutelage
from tests.generation import grey
from tests.generation.asking import ledger_of, rows
from tests.instruments.endpoint import Action, Endpoint
from tests.verbs import tiny_runs
from tests.verbs.taught import TRAINING
from tutelage.cache.reader import TeacherCache
from tutelage.data.answers import SOFT
from tutelage.errors import ConfigError, IntegrityError, RemoteError
from tutelage.models import load
from tutelage.training.prepare import InMemory, prepare

OWN, K = tiny_runs.tokenizer(), 4
TEXTS = ["the cat sat on the mat. café 😀 \n\n the frog", *tiny_runs.documents(7, sentences=8)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Any:
    folder = tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "teacher", seed=5)
    return load.load_model(str(folder), revision=None, dtype="float32", device="cpu").double().eval()


@torch.no_grad()
def given_logp(teacher: Any, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(teacher(torch.tensor([ids])).logits[0, :, : len(OWN)], dim=-1)


@cache
def spellings(tokenizer: Any) -> list[str]:
    """Every token as the older interface writes it."""
    return [_spelt(tokenizer, number) for number in range(len(tokenizer))]


def _spelt(tokenizer: Any, number: int) -> str:
    if number in tokenizer.all_special_ids:
        return tokenizer.convert_ids_to_tokens(number)
    data = grey.data_of(tokenizer, number)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def spelt(number: int) -> str:
    return spellings(OWN)[number]


def echo(teacher: Any, body: dict[str, Any], *, begin: bool = False) -> dict[str, Any]:
    """As OpenAI's older models and vLLM answer: the prompt and one more token, the first without numbers."""
    assert body["echo"] is True and body["max_tokens"] == 1
    ids = OWN.backend_tokenizer.encode(body["prompt"], add_special_tokens=False).ids
    ids = [OWN.bos_token_id, *ids] if begin else ids
    logp = given_logp(teacher, ids)
    ids.append(int(logp[-1].argmax()))
    top = [{spelt(n): float(row[n]) for n in row.topk(body["logprobs"]).indices.tolist()} for row in logp]
    own = [float(row[number]) for row, number in zip(logp, ids[1:], strict=True)]
    numbers = {"tokens": [spelt(n) for n in ids], "token_logprobs": [None, *own], "top_logprobs": [None, *top]}
    return {"text": body["prompt"] + spelt(ids[-1]), "finish_reason": "length", "logprobs": numbers}


def prompt_logprobs(teacher: Any, body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM answers: by ids, the token itself too where it is not among the first."""
    ids = OWN.backend_tokenizer.encode(body["prompt"], add_special_tokens=False).ids
    found: list[Any] = [None]
    for row, own in zip(given_logp(teacher, ids), ids[1:], strict=False):
        kept = dict.fromkeys([own, *row.topk(body["prompt_logprobs"]).indices.tolist()])
        found.append({str(n): {"logprob": float(row[n]), "decoded_token": OWN.decode([n])} for n in kept})
    return {"text": " x", "finish_reason": "length", "prompt_logprobs": found}


def serving(teacher: Any, how: Callable[..., dict[str, Any]], **more: Any) -> Callable[[int, Any], Action]:
    def script(_: int, body: Any) -> Action:
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        reply = {"model": "served-1", "choices": [{"index": 0, **how(teacher, body, **more)}], "usage": usage}
        return Action(body=json.dumps(reply).encode())

    return script


def written(folder: Path, student: Path, url: str, **generate: Any) -> Path:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    asked = {"prompts": [{"text": "*.txt"}], "max_requests": 100, "top_logprobs": K, "given": "echo"}
    whole = {
        "teacher": {"answers": "answers", "api": {"base_url": url, "model": "m", "terms": "own"}},
        "student": str(student),
        "data": {"held_out": 0.3, "max_length": 64},
        "loss": "forward_kl",
        "training": {**TRAINING, "evaluate_every": None},
        "generate": {name: value for name, value in {**asked, **generate}.items() if value is not None},
        "evaluation": {"prompts": []},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def compare_with_the_model(folder: Path, path: Path, teacher: Any) -> int:
    """Every number of the cache is the model's own, to a float16; how many positions there are."""
    cache, store = (
        TeacherCache(folder / "answers" / SOFT),
        prepare(tutelage.load_recipe(path), memory=InMemory()).loader.store,
    )
    n_positions = 0
    for number in range(len(store)):
        ids = store.row(number).ids.astype(np.int64)
        targets = cache.targets([store.keys[number].tobytes()], current_ids_N=ids[:-1], next_ids_N=ids[1:], draws=[0])
        expected = given_logp(teacher, ids.tolist())[:-1]
        top = expected.topk(K)
        for n in range(len(ids) - 1):
            kept = dict(zip(targets.ids_NK[n].tolist(), targets.logp_NK[n].tolist(), strict=True))
            assert set(kept) == set(top.indices[n].tolist())
            assert all(math.isclose(kept[i], float(expected[n, i]), rel_tol=2**-10, abs_tol=1e-6) for i in kept)
            tail = 1 - float(top.values[n].exp().sum())
            assert math.isclose(math.exp(float(targets.tail_logp_N[n])), tail, rel_tol=0.02, abs_tol=2e-3)
        n_positions += len(ids) - 1
    return n_positions


@pytest.mark.parametrize("how", [echo, prompt_logprobs])
def test_the_cache_holds_the_model_s_own_distribution_at_every_token_of_the_text(how, student, teacher, tmp_path):
    with Endpoint(serving(teacher, how)) as server:
        path = written(tmp_path, student, server.url, given=how.__name__)
        made = tutelage.generate(path)
        assert {seen.path for seen in server.seen} == {"/v1/completions"}
        assert all("temperature" not in seen.body and seen.body["max_tokens"] == 1 for seen in server.seen)
        assert tutelage.generate(path).n_sent == 0
    assert made.soft is not None and made.soft.n_refused == 0 and made.soft.n_hard == 0, made.soft.first
    assert made.card.outcomes == {"scored": made.card.rows} and made.card.rows > len(TEXTS), "long ones come in pieces"
    texts: dict[str, str] = {}
    for row in rows(tmp_path):
        texts[row["document"]] = texts.get(row["document"], "") + row["text"]
    assert sorted(texts.values()) == sorted(TEXTS), "not a character is lost"
    assert compare_with_the_model(tmp_path, path, teacher) == made.soft.n_positions > 300
    ledger_of(tmp_path, max_requests=100)


@pytest.mark.slow
def test_a_student_learns_given_text_from_the_numbers_alone(student, teacher, tmp_path):
    with Endpoint(serving(teacher, echo)) as server:
        path = written(tmp_path, student, server.url)
        tutelage.generate(path)
    run = tutelage.train(path, run_dir=tmp_path / "run")
    losses = [line["student/forward_kl"] for line in run.metrics if "student/forward_kl" in line]
    assert losses[-1] < losses[0] and set(run.evaluation().transfer.models) == {"student_before", "student"}


def with_losses(teacher: Any, body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM spells: a token that is a part of a character is U+FFFD, and in a mapping several of them are one."""
    reply = echo(teacher, body)
    numbers = reply["logprobs"]

    def lossy(text: str) -> str:
        return bytes.fromhex(text[6:].replace("\\x", "")).decode("utf-8", "replace") if text[:6] == "bytes:" else text

    numbers["tokens"] = [lossy(text) for text in numbers["tokens"]]
    numbers["top_logprobs"] = [one and {lossy(t): logp for t, logp in one.items()} for one in numbers["top_logprobs"]]
    return {**reply, "text": body["prompt"] + numbers["tokens"][-1]}


def test_tokens_that_are_spelt_alike_are_in_the_tail_and_nothing_that_was_paid_is_lost(student, teacher, tmp_path):
    short = 0
    for text in TEXTS:
        top = with_losses(teacher, {"prompt": text, "echo": True, "max_tokens": 1, "logprobs": K})["logprobs"]
        short += sum(len(one) < K for one in top["top_logprobs"][1:])
    assert short > 0, "some positions list two that are spelt alike"
    with Endpoint(serving(teacher, with_losses)) as server:
        path = written(tmp_path, student, server.url)
        made = tutelage.generate(path)
    assert made.soft is not None and made.soft.n_refused == 0 and made.soft.n_rows == made.card.rows
    assert made.soft.n_alike >= short and f"at {made.soft.n_alike} some of the listed tokens" in str(made.soft)
    assert made.soft.as_json()["spelt_alike"] == made.soft.n_alike
    lost = {n for n in range(len(OWN)) if spelt(n).startswith("bytes:")}
    cache, store = (
        TeacherCache(tmp_path / "answers" / SOFT),
        prepare(tutelage.load_recipe(path), memory=InMemory()).loader.store,
    )
    for number in range(len(store)):
        ids = store.row(number).ids.astype(np.int64)
        targets = cache.targets([store.keys[number].tobytes()], current_ids_N=ids[:-1], next_ids_N=ids[1:], draws=[0])
        expected = given_logp(teacher, ids.tolist())[:-1]
        for n, own in enumerate(ids[1:].tolist()):
            told = {i for i in expected[n].topk(K).indices.tolist() if i not in lost or i == own}
            kept = {
                i: p for i, p in zip(targets.ids_NK[n].tolist(), targets.logp_NK[n].tolist(), strict=True) if p > -1e9
            }
            assert told <= set(kept) and not (set(kept) & lost) - {own}
            assert all(math.isclose(kept[i], float(expected[n, i]), rel_tol=2**-10, abs_tol=1e-6) for i in kept)
            tail = 1 - float(expected[n, list(kept)].exp().sum())
            assert math.isclose(math.exp(float(targets.tail_logp_N[n])), tail, rel_tol=0.02, abs_tol=2e-3)


def test_a_begin_that_only_the_endpoint_puts_before_a_text_is_not_a_token_of_it(student, teacher, tmp_path):
    with Endpoint(serving(teacher, echo, begin=True)) as server:
        made = tutelage.generate(written(tmp_path, student, server.url))
    assert made.soft is not None and made.soft.n_refused == 0 and made.soft.n_hard == 0


def ignoring(_: Any, body: dict[str, Any]) -> dict[str, Any]:
    """As llama.cpp's server: the token that it writes, with its numbers, and nothing of the prompt."""
    content = grey.content_of(OWN, "the", k=K)
    return {"text": "the", "finish_reason": "length", "logprobs": {"content": content}}


def few(teacher: Any, body: dict[str, Any]) -> dict[str, Any]:
    return echo(teacher, {**body, "logprobs": 2})


REFUSED = [
    (ignoring, "echo", r"it ignores echo.*\(4 asked for\).*generate.given=prompt_logprobs.*leave generate.given out"),
    (ignoring, "prompt_logprobs", r"it ignores prompt_logprobs.*generate.given=echo"),
    (few, "echo", r"gives [23] most likely tokens at a position \(4 asked for\)"),
]


@pytest.mark.parametrize("how, given, said", REFUSED, ids=["llama.cpp", "no field", "too few"])
def test_a_server_that_does_not_score_a_given_text_stops_the_run_with_what_to_do(
    how, given, said, student, teacher, tmp_path
):
    with Endpoint(serving(teacher, how)) as server:
        path = written(tmp_path, student, server.url, given=given)
        with pytest.raises(RemoteError, match=said) as caught:
            tutelage.generate(path)
        assert caught.value.code == "API_LOGPROBS" and len(server.seen) < len(TEXTS)


def test_another_tokenizer_behind_the_server_is_refused_and_the_texts_stay(student, teacher, tmp_path, monkeypatch):
    other = tiny_runs.tokenizer(seed=1)
    with Endpoint(serving(teacher, echo)) as server:
        path = written(tmp_path, student, server.url)
        monkeypatch.setattr("tests.verbs.test_given_text.OWN", other)
        with pytest.raises(IntegrityError, match="different tokenizers") as caught:
            tutelage.generate(path)
    assert caught.value.code == "TOKENIZER_MISMATCH" and len(rows(tmp_path)) >= len(TEXTS)


MISTAKES = {
    "top_logprobs": (None, "generate.top_logprobs is missing: given text is asked for"),
    "temperature": (0.5, "generate.temperature has no effect with generate.given"),
    "samples": (2, "generate.samples has no effect with generate.given"),
    "select": ("deduplicate", "generate.select has no effect with generate.given"),
    "prompts": ([{"jsonl": "a.jsonl", "prompt": "q"}], "generate.prompts must be plain text with generate.given"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_has_no_meaning_for_given_text_is_refused(name, student, tmp_path):
    value, said = MISTAKES[name]
    with pytest.raises(ConfigError, match=said):
        tutelage.load_recipe(written(tmp_path, student, "http://127.0.0.1:1/v1", **{name: value}))
