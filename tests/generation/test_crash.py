"""Killed anywhere, and through every fault: nothing acknowledged is lost or bought again, and the cap holds (O7)."""

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.generation.asking import generate, ledger_of, outcome, row_bytes, rows
from tests.instruments import faults
from tests.instruments.endpoint import OK, Action, Endpoint, error
from tests.instruments.quick_disk import QUICK_DISK
from tutelage.errors import TutelageError
from tutelage.generation import work
from tutelage.verbs.generate import Generated

N, CONCURRENCY = 4, 2
FIELDS = {"n": N, "api": {"concurrency": CONCURRENCY}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    with Endpoint() as server:
        generate(folder, server.url, n=N)
    return row_bytes(folder)


def killed_at(n: int, folder: Path, server: Endpoint, whole: bytes) -> bool:
    """Kills a generation at its n-th file operation, lets it go on, and checks both; whether it was killed."""
    before = len(server.seen)
    code = faults.in_child(lambda: generate(folder, server.url, **FIELDS), faults.die_inside(n))
    acknowledged = set(ledger_of(folder, cap_usd=1.0).final) if (folder / "answers").exists() else set()
    if code == 0:
        return False
    assert code == faults.DIED
    generate(folder, server.url, **FIELDS)
    ledger = ledger_of(folder, cap_usd=1.0)
    assert row_bytes(folder) == whole and acknowledged <= set(ledger.final)
    assert len(server.seen) - before <= N + CONCURRENCY
    return True


def test_killed_at_every_operation_the_same_call_ends_in_the_same_bytes(server, whole):
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        n = 0
        while killed_at(n, Path(name, str(n)) if Path(name, str(n)).mkdir() is None else Path(), server, whole):
            n += 1
        assert n > 12


def test_a_note_says_how_many_may_be_paid_twice(server, tmp_path, capsys):
    n = 9
    while True:  # a kill between a reservation and its reply
        folder = tmp_path / str(n)
        folder.mkdir()
        assert faults.in_child(lambda: generate(folder, server.url, **FIELDS), faults.die_at(n)) == faults.DIED
        left = ledger_of(folder)
        if len(left.open) > len(left.raw):
            break
        n += 1
    made = generate(folder, server.url, **FIELDS)
    said = capsys.readouterr().err
    assert made.card.lost > 0 and f"up to {made.card.lost} requests that were under way may be paid twice" in said
    assert made.card.requests == N + made.card.lost
    most = (len("What is 0 and 0?") + 2 * 64) * 1e-6 + 20 * 2e-6
    assert made.card.spent_usd >= made.card.lost * most, "what may have been paid stays spent"


ACTIONS = {
    "200": OK,
    "429": error(429, "rate_limit", retry_after="0"),
    "500": error(500),
    "503": error(503),
    "reset": Action(how="reset", billed=True),
    "timeout": Action(how="hang", billed=True),
    "cut": Action(how="cut"),
    "no finish": Action(finish=None),
    "truncated": Action(finish="length"),
    "refusal": Action(finish="content_filter"),
    "html": Action(body=b"<html>", billed=False),
}
CHANGES_ROWS = {"truncated", "refusal", "no finish"}


@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(st.sampled_from(sorted(ACTIONS)), max_size=10),
    cap_usd=st.sampled_from([0.0004, 0.001, 1.0]),
    kill=st.integers(0, 40),
    concurrency=st.integers(1, 4),
    changed=st.booleans(),
)
def test_through_any_faults_deaths_and_changes_every_promise_holds(script, cap_usd, kill, concurrency, changed, whole):
    work.FIRST_WAIT_S = 0.002
    api = {"concurrency": concurrency, "timeout_s": 0.1, "retries": 2}
    fields = {"n": N, "api": api, "budget_usd": cap_usd}
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name, Endpoint() as server:
        folder = Path(name)
        server.script = lambda n, body: ACTIONS[script[n]] if n < len(script) else OK
        code = faults.in_child(lambda: outcome(folder, server.url, **fields), faults.die_inside(kill))
        assert code in (0, faults.DIED)
        if changed:
            outcome(folder, server.url, **fields, temperature=0.5)
        ended: Generated | TutelageError | None = None
        for _ in range(8):
            ended = outcome(folder, server.url, **fields)
            if isinstance(ended, Generated) or ended.code == "BUDGET":
                break
        ledger = ledger_of(folder, cap_usd=cap_usd)
        assert server.billed_usd <= cap_usd
        if isinstance(ended, Generated):
            keys = [row["id"] for row in rows(folder)]
            assert len(keys) == len(set(keys)) == ended.card.rows and set(keys) <= set(ledger.final)
            assert ended.card.sha256 == hashlib.sha256(row_bytes(folder)).hexdigest()
            assert sum(ended.card.outcomes.values()) == N
            if not CHANGES_ROWS & set(script):
                assert row_bytes(folder) == whole
