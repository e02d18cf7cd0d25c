"""Batch jobs that go wrong for good: refusals are not handed in again, lost files stay spent, and every error says how
to go on."""

from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation import grey
from tests.generation.asking import ledger_of, rows
from tests.generation.test_batch import BATCH, N, ask, n_created, quick
from tests.instruments.batch_server import Plan, Provider, reply_of
from tests.verbs import tiny_runs
from tutelage.errors import RemoteError
from tutelage.generation.batch_lines import Line

__all__ = ["quick"]  # a fixture that is in use here too


def refusing(status: int, code: str, *, which: range) -> Plan:
    def line(n: int, body: Any) -> tuple[int, Any]:
        said = (status, {"error": {"code": code, "message": "no image of this kind"}})
        return said if n in which else (200, reply_of(body))

    return Plan(line=line)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_no_to_one_prompt_among_answers_is_final_at_once(status, tmp_path):
    with Provider(plans=[refusing(status, "invalid_value", which=range(1))]) as provider:
        made = ask(tmp_path, provider)
        assert made.card.outcomes == {"answer": N - 1, "rejected": 1} and n_created(provider) == 1
        assert made.card.requests == N - 1, "a refusal costs nothing"
        (dropped,) = (step for step in made.card.dropped if step.n)
        assert dropped.reasons == {"rejected": 1}
        assert ask(tmp_path, provider).n_sent == 0 and n_created(provider) == 1
    ledger_of(tmp_path, cap_usd=1.0)


WHOLE_NOES = [
    (400, "unsupported_parameter", "API_REQUEST", range(N)),
    (401, "invalid_api_key", "API_AUTH", range(2)),
    (404, "model_not_found", "API_MODEL", range(N)),
    (429, "insufficient_quota", "API_QUOTA", range(2)),
]


@pytest.mark.parametrize("status, code, error, which", WHOLE_NOES, ids=[code for _, code, _, _ in WHOLE_NOES])
def test_a_no_to_everything_stops_the_run_unpaid_and_a_rerun_hands_it_in_again(status, code, error, which, tmp_path):
    """It may be repaired without another word in the requests: then their keys are the same, and must not be final."""
    with Provider(plans=[refusing(status, code, which=which)]) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and failed.code == error and f"{status}: {code}" in failed.message
        assert f"{N - len(which)} of {N} answers are safe" in failed.message and n_created(provider) == 1
        ledger = ledger_of(tmp_path, cap_usd=1.0)
        assert not ledger.open and ledger.n_spent == N - len(which)
        made = ask(tmp_path, provider)
        assert made.card.outcomes == {"answer": N} and made.n_sent == len(which) and n_created(provider) == 2


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 0])
def test_a_no_for_now_goes_into_the_next_job(status, tmp_path):
    assert not Line(key="", status=status, body=b"{}").is_refusal
    with Provider(plans=[refusing(status, "busy", which=range(1))]) as provider:
        assert ask(tmp_path, provider).card.outcomes == {"answer": N} and n_created(provider) == 2


@pytest.mark.parametrize("name, n_lost", [("output_file_id", N - 1), ("error_file_id", 1)])
@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_the_provider_has_deleted_stays_spent_and_the_next_run_goes_on(status, name, n_lost, tmp_path):
    with Provider(plans=[refusing(500, "x", which=range(1))], deleted={f"batch-0-{name}": status}) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and failed.code == "API_BATCH"
        assert f"keeps a file of batch job batch-0 no longer: {n_lost} requests have no reply here" in failed.message
        assert "rerun to hand them in once more" in failed.message and "--no-ask" in failed.message
        ledger = ledger_of(tmp_path, cap_usd=1.0)
        assert not ledger.jobs and not ledger.open and ledger.released["batch file gone"] == n_lost
        assert ledger.n_spent == (n_lost if name == "output_file_id" else N)
        assert len(ledger.final) == (0 if name == "output_file_id" else N - 1), "what came down is kept"
        made = ask(tmp_path, provider)
        assert made.card.rows == N and n_created(provider) == 2


# --- log-probabilities that do not come ---
@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "student")


def grey_recipe(folder: Path, student: Path, provider: Provider) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "say {n}"}}\n' for n in range(N)))
    return {
        "teacher": {
            "answers": str(folder / "answers"),
            "api": {"base_url": provider.url, "model": "m", "terms": "own", **BATCH},
        },
        "student": str(student),
        "data": {"max_length": 64},
        "loss": "forward_kl",
        "training": {"steps": 1},
        "generate": {"prompts": str(prompts), "max_requests": 50, "max_tokens": 20, "top_logprobs": 4},
    }


def numbers(n: int, body: Any) -> tuple[int, Any]:
    tokenizer = tiny_runs.tokenizer()
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "the cat"}}
    choice["logprobs"] = {"content": grey.content_of(tokenizer, "the cat", k=4)}
    return 200, {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}


def test_one_request_is_handed_in_first_to_see_whether_log_probabilities_come(student, tmp_path):
    with Provider() as provider:
        for n in (1, 2):  # the second run knows no better: the server may have been repaired
            with pytest.raises(RemoteError, match=r"no log-probabilities \(4 asked for\).*leave it out") as caught:
                tutelage.generate(grey_recipe(tmp_path, student, provider))
            assert caught.value.code == "API_LOGPROBS" and sum(provider.worked_on.values()) == n
    with Provider(plans=[Plan(line=numbers)] * 3) as provider:
        (tmp_path / "good").mkdir()
        made = tutelage.generate(grey_recipe(tmp_path / "good", student, provider))
        assert made.card.rows == N and n_created(provider) == 2 and made.soft is not None and made.soft.n_rows == N
        recipe = grey_recipe(tmp_path / "good", student, provider)
        with (tmp_path / "good" / "prompts.jsonl").open("a") as file:
            file.write('{"prompt": "one"}\n{"prompt": "two"}\n')
        tutelage.generate(recipe)
        assert len(rows(tmp_path / "good")) == N + 2 and n_created(provider) == 3, "known by now: no trial"


@pytest.mark.parametrize("status, n_refused", [(400, 4), (200, 2)])
def test_first_prompts_that_are_refused_do_not_hold_up_the_others(status, n_refused, student, tmp_path):
    """A no of the provider, or a paid reply that its filter emptied: other prompts show whether the numbers come."""
    filtered = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}
    bodies = {
        400: {"error": {"code": "invalid_value", "message": "not this"}},
        200: {"model": "m", "choices": [filtered]},
    }

    def line(n: int, body: Any) -> tuple[int, Any]:
        is_refused = int(body["messages"][-1]["content"].split()[1]) < n_refused
        return (status, bodies[status]) if is_refused else numbers(n, body)

    with Provider(plans=[Plan(line=line)] * 9) as provider:
        made = tutelage.generate(grey_recipe(tmp_path, student, provider))
        outcome = "rejected" if status == 400 else "refused"
        assert made.card.outcomes == {"answer": N - n_refused, outcome: n_refused}
        assert made.soft is not None and made.soft.n_rows == N - n_refused
        assert n_created(provider) <= 4 and max(provider.worked_on.values()) == 1
    assert not ledger_of(tmp_path).open


@pytest.mark.parametrize("n_prompts, n_jobs", [(N, 3), (20, 4)])
def test_where_every_trial_is_refused_the_run_stops_unpaid_with_what_was_said(n_prompts, n_jobs, student, tmp_path):
    no = Plan(line=lambda n, body: (400, {"error": {"code": "invalid_value", "message": "not these"}}))
    with Provider(plans=[no] * 9) as provider:
        recipe = grey_recipe(tmp_path, student, provider)
        (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {n}"}}\n' for n in range(n_prompts)))
        with pytest.raises(
            RemoteError, match=r"refuses .*400: invalid_value not these.*0 of .* answers are safe"
        ) as caught:
            tutelage.generate(recipe)
        assert caught.value.code == "API_REQUEST" and n_created(provider) == n_jobs
    ledger = ledger_of(tmp_path)
    assert not ledger.open and not ledger.final and ledger.n_spent == 0, "the same prompts can be asked again"


def test_refusals_of_a_file_that_came_down_twice_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.generation.batch_lines.GROUP", 1)
    with Provider(plans=[refusing(400, "x", which=range(N))], cut_downloads=1) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and f"refuses {N} requests" in failed.message
    (tmp_path / "some").mkdir()
    with Provider(plans=[refusing(400, "x", which=range(4))], cut_downloads=2) as provider:
        made = ask(tmp_path / "some", provider)
        assert made.card.outcomes == {"answer": N - 4, "rejected": 4}
    ledger_of(tmp_path / "some", cap_usd=1.0)


def test_answers_without_them_in_a_later_job_stop_the_run_before_the_next_one(student, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.generation.batch_work.MOST_REQUESTS", 2)
    with Provider(plans=[Plan(line=numbers), Plan()]) as provider:
        with pytest.raises(RemoteError, match="no log-probabilities") as caught:
            tutelage.generate(grey_recipe(tmp_path, student, provider))
        assert n_created(provider) == 2 and f"3 of {N} answers are safe" in caught.value.message
    assert len(ledger_of(tmp_path).final) == 3
