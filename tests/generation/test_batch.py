"""Batch jobs behind the journal: handed in once, found again after any death, every reply kept, the cap held."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation.asking import generate, ledger_of, outcome, recipe, row_bytes
from tests.instruments import faults
from tests.instruments.batch_server import Plan, Provider, reply_of
from tests.instruments.quick_disk import QUICK_DISK
from tutelage.errors import ConfigError, LimitError, RemoteError
from tutelage.generation import batch, batch_work

N = 6
BATCH = {"transport": "batch", "retries": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batch, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(batch_work, "FIRST_POLL_S", 0.001)


def ask(folder: Path, provider: Provider, **fields: Any) -> Any:
    return outcome(folder, provider.url, **{"n": N, "api": {**BATCH, **fields.pop("api", {})}, **fields})


def dies_waiting(folder: Path, provider: Provider) -> None:
    """A process that handed a job in and died before the job ended."""

    def action() -> None:
        batch.BatchClient.look = lambda *_: os._exit(faults.DIED)
        ask(folder, provider)

    assert faults.in_child(action) == faults.DIED
    assert [job.batch for job in ledger_of(folder).jobs.values()] == ["batch-0"]


def n_created(provider: Provider) -> int:
    return provider.calls.count("POST /batches")


def test_the_rows_are_those_of_the_direct_way_and_the_price_is_the_jobs_own(server, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Provider(plans=[Plan(polls=3)]) as provider:
        half = {"prompt_usd": 0.5, "answer_usd": 1.0}
        made = ask(tmp_path / "a", provider, samples=2, api={"batch_price": half})
        direct = generate(tmp_path / "b", server.url, n=N, samples=2)
        assert row_bytes(tmp_path / "a") == row_bytes(tmp_path / "b")
        assert made.card.spent_usd == pytest.approx(direct.card.spent_usd / 2)
        assert made.card.teachers[""].price == half and made.card.requests == made.n_sent == 2 * N
        assert n_created(provider) == 1 and set(provider.worked_on.values()) == {1}
        assert ask(tmp_path / "a", provider, samples=2, api={"batch_price": half}).n_sent == 0
        assert n_created(provider) == 1
    ledger = ledger_of(tmp_path / "a", cap_usd=1.0)
    assert not ledger.jobs and not ledger.open and not ledger.keys


def test_money_and_mark_are_on_the_disk_before_anything_goes_up(tmp_path, monkeypatch):
    seen: list[int] = []
    upload = batch.BatchClient.upload

    def watched(self, lines):
        ledger = ledger_of(tmp_path)
        seen.append(len(ledger.open))
        assert len(ledger.jobs) == 1 and ledger.reserved > 0
        return upload(self, lines)

    monkeypatch.setattr(batch.BatchClient, "upload", watched)
    with Provider() as provider:
        ask(tmp_path, provider)
    assert seen == [N]


def killed_at(n: int, folder: Path, provider: Provider, whole: bytes) -> bool:
    code = faults.in_child(lambda: ask(folder, provider), faults.die_inside(n))
    if code == 0:
        return False
    assert code == faults.DIED
    made = ask(folder, provider)
    assert row_bytes(folder) == whole, n
    assert made.card.lost == 0 and set(ledger_of(folder, cap_usd=1.0).jobs) == set()
    return True


@pytest.mark.slow
def test_killed_at_every_operation_no_job_is_paid_twice(tmp_path):
    with Provider() as provider:
        ask(tmp_path, provider)
        whole = row_bytes(tmp_path)
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        n = 0
        while True:
            folder = Path(name, str(n))
            folder.mkdir()
            with Provider() as provider:
                again = killed_at(n, folder, provider, whole)
                assert set(provider.worked_on.values()) == {1}, f"killed at {n}: a request was worked on twice"
            if not again:
                break
            n += 1
    assert n > 12


@pytest.mark.parametrize("created", ["lost", "late"])
def test_a_job_whose_creation_was_not_answered_is_found_by_its_mark(created, tmp_path):
    with Provider(plans=[Plan(created=created, hidden_looks=1)]) as provider:
        made = ask(tmp_path, provider)
        assert made.card.rows == N and n_created(provider) == 1


def test_when_it_is_not_known_whether_there_is_a_job_the_run_stops_and_the_next_one_looks_first(tmp_path):
    with Provider(plans=[Plan(), Plan(created="lost", hidden_looks=3)]) as provider:
        ask(tmp_path, provider, n=1)
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and "rerun: it is looked for first" in failed.message
        assert len(ledger_of(tmp_path).open) == N - 1, "the money stays reserved"
        assert tutelage.status(tmp_path / "answers").reserved_usd > 0
        made = ask(tmp_path, provider)
        assert made.card.rows == N and n_created(provider) == 2 and set(provider.worked_on.values()) == {1}


def test_a_job_that_never_was_is_handed_in_anew_and_costs_nothing(tmp_path):
    with Provider() as provider:
        cap = 0.002

        def dies_before_it_is_created() -> None:
            batch.BatchClient.create = lambda *_, **__: os._exit(faults.DIED)
            ask(tmp_path, provider, budget_usd=cap)

        assert faults.in_child(dies_before_it_is_created) == faults.DIED
        assert ledger_of(tmp_path).jobs and n_created(provider) == 0
        made = ask(tmp_path, provider, budget_usd=cap)
        assert made.card.rows == N and ledger_of(tmp_path, cap_usd=cap).released["never handed in"] == N


def test_what_expired_or_failed_goes_into_the_next_job_and_what_was_answered_does_not(tmp_path):
    def some(n: int, body: Any) -> tuple[int, Any] | None:
        return None if n % 2 else (200, reply_of(body))

    def errors(n: int, body: Any) -> tuple[int, Any]:
        return (500, {"error": {"message": "x"}}) if n == 0 else (200, reply_of(body))

    plans = [Plan(line=some, status="expired"), Plan(line=errors)]
    with Provider(plans=plans) as provider:
        made = ask(tmp_path, provider)
        assert made.card.rows == N and n_created(provider) == 3 and made.n_sent == N + N // 2 + 1
        assert set(provider.worked_on.values()) <= {0, 1} and made.card.requests == N
    assert ledger_of(tmp_path).released == {"batch expired": N // 2, "batch 500": 1}


def test_a_prompt_that_does_not_fit_is_final_and_an_unfinished_reply_is_asked_again_so_often(tmp_path):
    def lines(n: int, body: Any) -> tuple[int, Any]:
        if n == 0:
            return 400, {"error": {"code": "context_length_exceeded", "message": "too long"}}
        return 200, reply_of(body, finish=None if n == 1 else "stop")

    def unfinished(n: int, body: Any) -> tuple[int, Any]:
        return 200, reply_of(body, finish=None)

    with Provider(plans=[Plan(line=lines), Plan(line=unfinished), Plan(line=unfinished)]) as provider:
        made = ask(tmp_path, provider)
        assert made.card.outcomes == {"answer": N - 2, "incomplete": 1, "too_long": 1} and n_created(provider) == 3
        assert ask(tmp_path, provider).n_sent == 0 and n_created(provider) == 3, "final"
    ledger_of(tmp_path)


def test_requests_that_fail_in_every_job_stop_the_run_and_a_rerun_hands_them_in_again(tmp_path):
    def broken(n: int, body: Any) -> tuple[int, Any]:
        return (500, {"error": {"message": "x"}}) if n == 0 else (200, reply_of(body))

    with Provider(plans=[Plan(line=broken)] * 3) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and "1 requests got no answer in 3 batch jobs" in failed.message
        assert ask(tmp_path, provider).card.outcomes == {"answer": N} and n_created(provider) == 4


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_job_that_was_ended_keeps_its_replies_and_stops_the_run(status, tmp_path):
    plan = Plan(status=status, line=lambda n, body: (200, reply_of(body)) if n < 2 else None)
    with Provider(plans=[plan]) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and failed.code == "API_BATCH"
        assert f"2 of {N} answers are safe, rerun to hand in the rest" in failed.message
        assert ask(tmp_path, provider).card.rows == N and set(provider.worked_on.values()) == {1}


def test_a_reply_that_is_missing_in_a_completed_job_stays_spent(tmp_path):
    plan = Plan(line=lambda n, body: None if n == 0 else (200, reply_of(body)))
    with Provider(plans=[plan]) as provider:
        made = ask(tmp_path, provider)
        assert made.card.rows == N and made.card.requests == N + 1


def test_a_job_that_is_gone_at_the_provider_stays_spent_and_the_rest_is_asked_anew(tmp_path, capsys):
    with Provider(plans=[Plan(polls=10**6)]) as provider:
        dies_waiting(tmp_path, provider)
        provider.plans[0].gone = True
        made = ask(tmp_path, provider)
        assert made.card.rows == N and made.card.requests == 2 * N
    assert "warning[API_BATCH]" in capsys.readouterr().err


def test_a_download_that_breaks_off_goes_on_without_losing_or_doubling_a_reply(tmp_path):
    with Provider(cut_downloads=2) as provider:
        made = ask(tmp_path, provider, n=20)
        assert made.card.rows == 20 and made.card.requests == 20
    ledger_of(tmp_path)


def test_the_cap_decides_what_goes_into_a_job(tmp_path):
    cap = 0.0009
    with Provider() as provider:
        made = ask(tmp_path, provider, budget_usd=cap)
        assert made.card.rows == N and n_created(provider) > 1
        ledger_of(tmp_path, cap_usd=cap)
    (tmp_path / "b").mkdir()
    with Provider() as provider:
        failed = ask(tmp_path / "b", provider, budget_usd=None, price=None, max_requests=4)
        assert isinstance(failed, LimitError) and "4 of 4 requests are spent" in failed.message
        assert sum(provider.worked_on.values()) == 4
        ledger_of(tmp_path / "b", max_requests=4)


def test_a_job_is_settled_at_the_price_it_was_reserved_at(tmp_path):
    """The recipe of a later call may hold another: the direct way's, which is higher."""
    half = {"prompt_usd": 0.5, "answer_usd": 1.0}
    with Provider(plans=[Plan(polls=10**6)]) as provider:

        def action() -> None:
            batch.BatchClient.look = lambda *_: os._exit(faults.DIED)
            ask(tmp_path, provider, api={"batch_price": half})

        assert faults.in_child(action) == faults.DIED
        provider.jobs["batch-0"]["polls"] = 1
        made = outcome(tmp_path, provider.url, n=N, api={"transport": "direct"})
        assert made.card.rows == N
    (tmp_path / "b").mkdir()
    with Provider() as provider:
        usual = ask(tmp_path / "b", provider, api={"batch_price": half})
    assert made.card.spent_usd == pytest.approx(usual.card.spent_usd)


def test_a_job_of_a_teacher_that_is_gone_is_named_counted_and_not_handed_in_again(tmp_path, capsys):
    with Provider(plans=[Plan(polls=10**6)]) as old, Provider() as new:
        dies_waiting(tmp_path, old)
        failed = ask(tmp_path, new, n=3 * N, budget_usd=None, price=None, max_requests=N + 2)
        assert isinstance(failed, LimitError), "those of the open job may have to be paid"
        said = capsys.readouterr().err
        assert "warning[API_BATCH]: batch job batch-0 of teacher" in said and old.url in said
        assert len(new.worked_on) == 2 and not set(new.worked_on) & set(old.worked_on)


def test_an_open_job_is_fetched_before_anything_is_asked_directly(tmp_path):
    with Provider(plans=[Plan(polls=10**6)]) as provider:
        dies_waiting(tmp_path, provider)
        provider.jobs["batch-0"]["polls"] = 1
        made = outcome(tmp_path, provider.url, n=N, api={"transport": "direct"})
        assert made.card.rows == N and "POST /chat/completions" not in provider.calls


REFUSALS = [
    (404, {"error": {"message": "unknown path"}}, "API_BATCH", "set teacher.api.transport: direct"),
    (401, {"error": {"code": "invalid_api_key"}}, "API_AUTH", "refuses the key"),
    (429, {"error": {"code": "insufficient_quota"}}, "API_QUOTA", "credit is exhausted"),
    (302, b"", "BASE_URL", "redirects"),
    (400, {"error": {"message": "bad purpose"}}, "API_REQUEST", "bad purpose"),
    (200, b"<html>", "API_BODY", "does not speak the batch interface"),
    (503, b"", "API_UNREACHABLE", "503 after 6 tries"),
]


@pytest.mark.parametrize("status, body, code, said", REFUSALS, ids=[code for _, _, code, _ in REFUSALS])
def test_a_no_is_an_error_of_its_own_and_nothing_is_spent(status, body, code, said, tmp_path):
    with Provider(refusal=(status, body)) as provider:
        failed = ask(tmp_path, provider)
        assert isinstance(failed, RemoteError) and failed.code == code and said in failed.message
        assert provider.calls.count("POST /files") == (6 if status == 503 else 1)
        provider.refusal = None
        made = ask(tmp_path, provider)
        assert made.card.rows == made.card.requests == N


def test_the_key_goes_up_and_stands_in_no_byte_that_we_write(tmp_path, monkeypatch):
    key = "sk-canary-0123456789abcdefghij"
    monkeypatch.setenv("TUTELAGE_KEY__127_0_0_1", key)
    echo = Plan(line=lambda n, body: (200, {**reply_of(body), "echo": key}))
    with Provider(plans=[echo]) as provider:
        ask(tmp_path, provider)
        assert provider.keys == {f"Bearer {key}"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "answers").iterdir())
    assert key.encode() not in written and b"***" in written


def test_a_price_of_jobs_needs_jobs(tmp_path):
    written = recipe(tmp_path, "http://127.0.0.1:1/v1", api={"batch_price": {"prompt_usd": 1, "answer_usd": 1}})
    with pytest.raises(ConfigError, match=r"teacher.api.batch_price has no effect without transport: batch"):
        tutelage.load_recipe(json.loads(json.dumps(written)))
