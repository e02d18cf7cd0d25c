"""The order of what is durable and what is sent, and what a signal, a bug or a full disk leaves behind."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.generation.asking import generate, ledger_of, outcome, recipe, row_bytes
from tests.instruments import faults
from tests.instruments.endpoint import Action, error
from tests.verbs.tiny_runs import call, command_in_fork, wait
from tutelage import io
from tutelage.errors import RemoteError, ResourceError
from tutelage.generation import reply as replies


def test_money_is_reserved_on_the_disk_before_a_request_is_sent(server, tmp_path):
    n_durable: list[int] = []
    server.script = lambda n, body: (n_durable.append(len(_reserved(tmp_path))), Action())[1]
    seen: list[str] = []

    def hook(operation: io.Operation) -> None:
        seen.append(operation.kind)
        if operation.kind == "fsync" and operation.path.name == "journal.jnl":
            _durable[tmp_path] = operation.path.stat().st_size
            time.sleep(0.005)  # a slow disk: who does not wait for it is ahead of it

    with faults.hooked(hook):
        generate(tmp_path, server.url, api={"concurrency": 3})
    assert n_durable and all(n_reserved > n for n, n_reserved in enumerate(n_durable))


_durable: dict[Path, int] = {}


def _reserved(folder: Path) -> list[bytes]:
    """The reservations in what an fsync had begun to make durable."""
    data = (folder / "answers" / "journal.jnl").read_bytes()[: _durable.get(folder, 0)]
    return [line for line in data.splitlines() if b'["reserved",' in line]


def test_a_parser_that_fails_loses_no_paid_reply(server, tmp_path, monkeypatch):
    parse, n_calls = replies.parse, []

    def fails_once(body: bytes, **how: object) -> replies.Reply:
        n_calls.append(1)
        if len(n_calls) == 1:
            raise ValueError("a bug")
        return parse(body, **how)

    monkeypatch.setattr(replies, "parse", fails_once)
    with pytest.raises(ValueError, match="a bug"):
        generate(tmp_path, server.url, n=1)
    assert len(ledger_of(tmp_path).raw) == 1
    assert generate(tmp_path, server.url, n=1).card.rows == 1 and len(server.seen) == 1


@pytest.mark.parametrize("only", ["write", "fsync"])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(only, server, tmp_path):
    with faults.hooked(faults.raise_from(4, 28, only=(only,))):
        failed = outcome(tmp_path, server.url, n=6, api={"concurrency": 2})
    assert isinstance(failed, ResourceError) and failed.code in ("DISK_FULL", "FSYNC")
    n = len(server.seen)
    assert n <= 6
    kept = len(ledger_of(tmp_path).final)
    assert generate(tmp_path, server.url, n=6).card.rows == 6 and len(server.seen) <= n + 6 - kept


def test_what_was_only_reserved_when_the_run_stops_is_not_sent_and_costs_nothing(server, tmp_path):
    server.script = lambda n, body: error(401, "invalid_api_key", "no")

    def slow(operation: io.Operation) -> None:
        if operation.kind == "fsync" and server.seen:
            time.sleep(0.05)  # the no arrives while the next reservation is on its way to the disk

    with faults.hooked(slow):
        failed = outcome(tmp_path, server.url, n=30, api={"concurrency": 8})
    assert isinstance(failed, RemoteError) and len(server.seen) <= 8
    ledger = ledger_of(tmp_path)
    assert ledger.settled == 0 and not ledger.open and ledger.n_spent == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_what_is_under_way_and_the_next_call_goes_on(number, code, server, tmp_path):
    server.script = lambda n, body: Action(delay_s=0.05)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, server.url, n=40, api={"concurrency": 2})))
    log = tmp_path / "log"
    pid = command_in_fork("generate", path, log=log)
    while len(server.seen) < 5:
        time.sleep(0.01)
    os.kill(pid, number)
    assert wait(pid) == code
    ledger = ledger_of(tmp_path)
    assert len(ledger.final) == len(server.seen) == server.n_billed < 40 and not ledger.open
    assert "note[STOPPED]" in log.read_text() and f"{len(ledger.final)} of 40 answers are safe" in log.read_text()
    server.script = lambda n, body: Action()
    assert call("generate", path)[0] == 0 and len(server.seen) == 40


def test_status_tells_of_a_generation_that_runs_and_of_one_that_ended(server, tmp_path):
    server.script = lambda n, body: Action(delay_s=2.0 if n == 3 else 0.03, finish="length" if n == 0 else "stop")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, server.url, n=12, api={"concurrency": 2})))
    assert "error[ANSWERS_ABSENT]" in call("status", path)[2]
    worker = threading.Thread(target=generate, args=(tmp_path, server.url), kwargs={"n": 12, "api": {"concurrency": 2}})
    worker.start()
    while len(server.seen) < 4:  # the fourth is under way for two seconds
        time.sleep(0.01)
    running = call("status", tmp_path / "answers")[1]
    assert "running)" in running and "of 12" in running and "$0 reserved" not in running
    assert "error[LOCKED]" in call("generate", path)[2]
    worker.join()
    code, out, _ = call("status", path, "--json")
    ended = yaml.safe_load(out)
    assert (code, ended["done"], ended["total"], ended["running"]) == (0, 12, 12, False)
    assert ended["outcomes"] == {"answer": 11, "truncated": 1} and ended["reserved_usd"] == 0
    assert ended["spent_usd"] == pytest.approx(server.billed_usd)


def test_a_damaged_journal_is_refused_and_repaired_on_request(server, tmp_path):
    generate(tmp_path, server.url, n=6, api={"concurrency": 1})
    whole = row_bytes(tmp_path)
    path = tmp_path / "answers" / "journal.jnl"
    data = bytearray(path.read_bytes())
    data[data.index(b'["answered"') + 200] ^= 1
    path.write_bytes(data)
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text(yaml.safe_dump(recipe(tmp_path, server.url)))
    code, _, err = call("generate", recipe_path)
    assert code == 3 and "error[JOURNAL_CORRUPT]" in err and "--repair" in err and path.read_bytes() == data
    assert call("status", tmp_path / "answers")[0] == 3
    code, out, err = call("status", tmp_path / "answers", "--repair")
    assert code == 0 and "5 of 6" in out and "warning[JOURNAL_CORRUPT]" in err
    assert call("generate", recipe_path)[0] == 0
    assert len(server.seen) == 7 and row_bytes(tmp_path) == whole
