"""The pace: found by measuring, lowered by what tells of overload, and never above what the recipe allows."""

import asyncio

import pytest

from tests.generation.asking import generate
from tests.instruments.endpoint import Action, error
from tutelage.generation.budget import Budget, Price, Usage
from tutelage.generation.ledger import PICO, Ledger
from tutelage.generation.pace import FIRST, Pace, backoff_s


def limit_found(capacity: int, *, together: int = 1, most: int = 64, n: int = 4000) -> list[float]:
    """The limit after each reply of an endpoint that works on `capacity` requests at once, a tenth of a second each.

    Up to `together` replies come, and are taken in and leave, before anybody else is served.
    """
    now, limits = 0.0, []
    pace = Pace(most=most, clock=lambda: now)

    async def ask() -> None:
        while True:  # there is always more to ask
            await pace.slot()

    async def answer() -> None:
        nonlocal now
        asking = asyncio.create_task(ask())
        while len(limits) < n:
            await asyncio.sleep(0)
            coming = min(together, pace.n_under_way)
            now += coming * 0.1 / min(pace.n_under_way, capacity)
            for _ in range(coming):
                pace.answered()
                pace.leave()
                limits.append(pace.limit)
            await asyncio.sleep(0)
        asking.cancel()

    asyncio.run(answer())
    return limits


@pytest.mark.parametrize("together", [1, 6])
@pytest.mark.parametrize("capacity", [1, 4, 8, 30, 100])
def test_the_number_settles_where_more_does_not_help(capacity, together):
    limits = limit_found(capacity, together=together)
    settled = limits[len(limits) // 2 :]
    assert all(min(capacity, 64) * 0.85 <= limit <= max(8, 2.2 * capacity) and limit <= 64 for limit in settled)


def test_where_there_is_nothing_more_to_ask_the_number_stays():
    now = 0.0
    pace = Pace(most=64, clock=lambda: now)
    limits = set()
    for _ in range(400):  # one at a time, as prompts that come slowly
        asyncio.run(pace.slot())
        now += 0.1
        pace.answered()
        pace.leave()
        limits.add(pace.limit)
    assert limits == {FIRST}


def test_overload_halves_the_number_once_for_all_that_were_under_way():
    now = 100.0
    pace = Pace(most=64, clock=lambda: now)
    pace.limit = 32.0
    for _ in range(10):
        pace.slow_down(2.0)
    assert pace.limit == 16.0 and pace.cool_s == 2.0
    now = 103.0
    pace.slow_down(1.0)
    assert pace.limit == 8.0


def test_the_wait_doubles_with_jitter_and_ends_somewhere():
    for n in range(60):
        most = min(120.0, 0.5 * 2 ** min(n, 20))
        assert most / 2 <= backoff_s(n, first_s=0.5) <= most


def test_an_endpoint_that_limits_the_rate_is_asked_less_at_once(server, tmp_path):
    at_once: list[int] = []

    def script(n: int, body: object) -> Action:
        at_once.append(server._at_once + 1)
        return error(429, "rate_limit", retry_after="0.01") if at_once[-1] > 4 else Action(delay_s=0.003)

    server.script = script
    made = generate(tmp_path, server.url, n=150, api={"concurrency": 64, "retries": 0})
    assert made.card.rows == 150 and len(server.seen) < 250 and max(at_once) <= 64


# --- money ---
def test_what_a_request_can_cost_at_most_is_never_below_what_it_costs():
    budget = Budget(price=Price.of(prompt_usd=0.15, answer_usd=0.6), cap=PICO)
    text = "h\u00e9llo \u4e16\u754c" * 10
    most = budget.most([text, "system"], max_tokens=100)
    every_byte_a_token = Usage(prompt=len(text.encode()) + len("system") + 64, answer=100)
    assert most >= budget.cost(every_byte_a_token, reserved=most)
    assert budget.cost(None, reserved=most) == most


def test_prices_of_a_millionth_of_a_dollar_are_exact_and_finer_ones_are_rounded_up():
    assert Price.of(prompt_usd=0.000001, answer_usd=15.0) == Price(prompt=1, answer=15_000_000)
    assert Price.of(prompt_usd=0.0000001, answer_usd=0).prompt == 1


def test_a_cap_counts_what_is_settled_and_what_is_reserved():
    ledger = Ledger(settled=60, open={1: 30})
    budget = Budget(price=Price(prompt=1, answer=1), cap=100)
    assert budget.admits(ledger, 10) and not budget.admits(ledger, 11)
    assert not Budget(max_requests=1).admits(ledger, 0) and Budget(max_requests=2).admits(ledger, 0)
