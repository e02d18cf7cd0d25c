"""From prompts to a set: every answer paid once, in the order of the prompts, whatever the timing."""

import asyncio
import random

import pytest

import tutelage
from tests.generation.asking import generate, ledger_of, outcome, recipe, row_bytes, rows
from tests.instruments.endpoint import OK, Action, answer_to, error
from tutelage.data.answers import read_card
from tutelage.errors import ConfigError, IntegrityError, LimitError, RemoteError


def test_each_prompt_and_sample_is_asked_once_and_the_rows_stand_in_their_order(server, tmp_path):
    made = generate(tmp_path, server.url, n=5, samples=2, seed=3, system="Be brief.")
    assert (made.card.rows, made.card.asked, made.card.prompts, len(server.seen)) == (5 * 2, 10, 5, 10)
    found = rows(tmp_path)
    assert [(r["messages"][1]["content"], r["sample"]) for r in found[:3]] == [
        ("What is 0 and 0?", 0), ("What is 0 and 0?", 1), ("What is 1 and 1?", 0),
    ]  # fmt: skip
    asked = {str(s.body["messages"]) + str(s.body["seed"]): s.body for s in server.seen}
    for row in found:
        *question, answer = row["messages"]
        assert question[0] == {"role": "system", "content": "Be brief."}
        assert answer["content"] == answer_to(asked[str(question) + str(3 + row["sample"])])
    assert {s.body["max_tokens"] for s in server.seen} == {20} and "temperature" not in server.seen[0].body


def test_the_bytes_do_not_depend_on_concurrency_or_on_when_answers_come(server, tmp_path):
    draw = random.Random(0)
    server.script = lambda n, body: Action(delay_s=draw.random() * 0.02)
    found = []
    for n, concurrency in enumerate((1, 8)):
        folder = tmp_path / str(n)
        folder.mkdir()
        generate(folder, server.url, n=12, api={"concurrency": concurrency})
        found.append(row_bytes(folder))
    assert found[0] == found[1] and len(server.seen) == 24


def test_a_second_call_sends_nothing_and_writes_the_same_bytes(server, tmp_path, capsys):
    generate(tmp_path, server.url)
    before = row_bytes(tmp_path)
    again = generate(tmp_path, server.url)
    assert (again.n_sent, len(server.seen)) == (0, 6) and row_bytes(tmp_path) == before
    assert "note[RESUMED]: 6 answers kept, 0 asked again\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"max_tokens": 21}, {"system": "x"}, {"seed": 1}, {"api": {"model": "other"}},
     {"api": {"body": {"top_p": 0.5}}}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_an_answer_is_asked_again_and_the_old_answers_stay(change, server, tmp_path, capsys):
    generate(tmp_path, server.url, n=3)
    generate(tmp_path, server.url, n=3, **change)
    assert len(server.seen) == 6
    assert "note[REUSE]: 0 of 3 answers reused, 3 requests are new or changed" in capsys.readouterr().err
    generate(tmp_path, server.url, n=3)
    assert len(server.seen) == 6, "the first answers are still there"


def test_more_prompts_or_samples_ask_only_what_is_new(server, tmp_path):
    generate(tmp_path, server.url, n=3)
    generate(tmp_path, server.url, n=5)
    generate(tmp_path, server.url, n=5, samples=2)
    assert len(server.seen) == 10 and len(rows(tmp_path)) == 10


def test_equal_prompts_are_paid_once_and_stand_once(server, tmp_path):
    written = recipe(tmp_path, server.url)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "same", "answer": "1"}\n' * 4)
    assert tutelage.generate(written).card.rows == 1 and len(server.seen) == 1


# --- the cap ---
def test_the_cap_holds_under_concurrency_and_names_the_way_on(server, tmp_path):
    server.script = lambda n, body: Action(delay_s=0.002)
    failed = outcome(tmp_path, server.url, n=50, budget_usd=0.0005, api={"concurrency": 50})
    assert isinstance(failed, LimitError) and (failed.code, failed.exit_code) == ("BUDGET", 5)
    assert server.billed_usd <= 0.0005 and 5 < server.n_billed < 50
    ledger = ledger_of(tmp_path, cap_usd=0.0005)
    assert f"{len(ledger.final)} of 50 answers are safe, raise generate.budget_usd and rerun" in failed.message
    n = len(server.seen)
    assert generate(tmp_path, server.url, n=50).card.rows == 50 and len(server.seen) == 50 and n < 50


def test_a_cap_on_requests_needs_no_price(server, tmp_path):
    failed = outcome(tmp_path, server.url, n=20, budget_usd=None, price=None, max_requests=7)
    assert isinstance(failed, LimitError) and "7 of 7 requests are spent; 7 of 20 answers are safe" in failed.message
    assert len(server.seen) == 7
    ledger_of(tmp_path, max_requests=7)


@pytest.mark.parametrize("fields", [{"price": None}, {"price": None, "max_requests": 9}])
def test_a_budget_without_a_price_is_refused_before_anything_is_sent(fields, server, tmp_path):
    failed = outcome(tmp_path, server.url, **fields)
    assert isinstance(failed, ConfigError) and failed.code == "NO_PRICE" and server.seen == []


def test_a_cap_below_one_request_sends_none(server, tmp_path):
    failed = outcome(tmp_path, server.url, budget_usd=0.00001)
    assert isinstance(failed, LimitError) and server.seen == []


def test_a_bill_above_the_reservation_stops_the_run(server, tmp_path):
    server.script = lambda n, body: Action(usage={"prompt_tokens": 10, "completion_tokens": 5000})
    failed = outcome(tmp_path, server.url, n=30, api={"concurrency": 1})
    assert isinstance(failed, LimitError) and failed.code == "OVER_RESERVED" and len(server.seen) == 1


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 9}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1e30}]
)
def test_a_reply_without_a_usable_count_is_charged_what_was_reserved(usage, server, tmp_path):
    server.script = lambda n, body: Action(usage=usage)
    made = generate(tmp_path, server.url, n=1)
    prompt_bytes = len("What is 0 and 0?")
    assert made.card.spent_usd == pytest.approx(((prompt_bytes + 128) * 1.0 + 20 * 2.0) / 1e6)


def test_further_fields_of_a_request_count_as_prompt(server, tmp_path):
    server.script = lambda n, body: Action(usage=None)
    tools = {"tools": [{"function": {"description": "x" * 1000}}]}
    assert generate(tmp_path, server.url, n=1, api={"body": tools}).card.spent_usd > 1000 * 1e-6


def test_a_retry_waits_for_money_that_others_have_reserved(server, tmp_path):
    server.script = lambda n, body: error(503) if n in (0, 3) else Action(delay_s=0.02)
    made = generate(tmp_path, server.url, n=8, budget_usd=0.0004, api={"concurrency": 4})
    assert made.card.rows == 8 and server.billed_usd <= 0.0004
    ledger_of(tmp_path, cap_usd=0.0004)


def test_replies_that_got_lost_stay_spent(server, tmp_path):
    server.script = lambda n, body: Action(how="reset", billed=True) if n < 3 else OK
    made = generate(tmp_path, server.url, n=1)
    assert made.card.requests == 4 and made.card.spent_usd >= server.billed_usd


def test_it_also_runs_where_a_loop_runs_already_as_in_a_notebook(server, tmp_path):
    async def cell() -> int:
        return generate(tmp_path, server.url, n=2).card.rows

    assert asyncio.run(cell()) == 2


# --- mistakes ---
def test_rows_without_the_named_column_are_refused_before_anything_is_sent(server, tmp_path):
    prompts = {"jsonl": str(tmp_path / "prompts.jsonl"), "prompt": "question"}
    failed = outcome(tmp_path, server.url, prompts=prompts)
    assert isinstance(failed, IntegrityError) and failed.code == "TOO_MANY_REJECTS" and server.seen == []
    assert "no column 'question'; found: prompt, answer" in failed.message


def test_a_folder_with_other_things_is_not_written_to(server, tmp_path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "thesis.txt").write_text("mine")
    failed = outcome(tmp_path, server.url)
    assert isinstance(failed, ConfigError) and failed.code == "EXISTS" and server.seen == []


def test_without_asking_the_set_is_written_from_what_is_there(server, tmp_path):
    outcome(tmp_path, server.url, n=9, max_requests=4)
    made = tutelage.generate(recipe(tmp_path, server.url, n=9), ask=False)
    assert made.card.rows == 4 and len(server.seen) == 4
    assert read_card(tmp_path / "answers") == made.card


def test_a_permanent_error_keeps_what_was_answered(server, tmp_path):
    server.script = lambda n, body: OK if n < 4 else error(401, "invalid_api_key", "no")
    failed = outcome(tmp_path, server.url, n=9, api={"concurrency": 1})
    assert isinstance(failed, RemoteError) and (failed.code, failed.exit_code) == ("API_AUTH", 4)
    assert "4 of 9 answers are safe, rerun to continue" in failed.message and len(server.seen) == 5
    server.script = lambda n, body: OK
    assert generate(tmp_path, server.url, n=9).card.rows == 9 and len(server.seen) == 10


def test_status_counts_the_answers_that_the_last_call_wants_and_tells_of_older_ones(server, tmp_path):
    def state():
        return tutelage.status(tmp_path / "answers")

    generate(tmp_path, server.url, n=6)
    server.script = lambda n, body: Action(finish="length") if n == 6 else error(401)
    assert isinstance(outcome(tmp_path, server.url, n=6, temperature=0.5, api={"concurrency": 1}), RemoteError)
    assert (state().done, state().total, state().outcomes, state().older) == (1, 6, {"truncated": 1}, 6)
    assert "answers:  1 of 6" in str(state()) and "older:    6 answers of other settings or prompts, kept" in str(
        state()
    )
    generate(tmp_path, server.url, n=6)
    assert (state().done, state().total, state().outcomes, state().older) == (6, 6, {"answer": 6}, 1)
