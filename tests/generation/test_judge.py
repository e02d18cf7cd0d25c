"""Best of n by a judge model: its requests are journalled, resumed and capped like those of the teacher."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation.asking import ledger_of, recipe, row_bytes, rows
from tests.instruments import faults
from tests.instruments.endpoint import Action, Endpoint, error
from tests.instruments.quick_disk import QUICK_DISK
from tutelage import io
from tutelage.errors import ConfigError, LimitError, RemoteError, TutelageError
from tutelage.generation.judging import score_in
from tutelage.generation.ledger import JUDGE
from tutelage.recipe import load_recipe
from tutelage.verbs.generate import Generated

SAMPLES = 3


def scoring(n: int, body: dict[str, Any]) -> Action:
    """A judge that likes sample 1, which the teacher writes as `... one`."""
    score = 9 if "one." in body["messages"][0]["content"] else 4
    return Action(text=f"It is fine.\n**Score:** {score}/10")


def writing(n: int, body: dict[str, Any]) -> Action:
    number = body["messages"][-1]["content"].split()[2]
    return Action(text=f"It is {number}, in words {('zero', 'one', 'two')[body['seed']]}.")


@pytest.fixture
def teacher(server: Endpoint) -> Endpoint:
    server.script = writing
    return server


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    with Endpoint(scoring, usd=(10.0, 20.0)) as running:
        yield running


def asked(folder: Path, teacher: Endpoint, judge: Endpoint, *, best: Any = (), extra: Any = (), **fields: Any) -> Any:
    model = {
        "api": {"base_url": judge.url, "model": "j", "concurrency": 2},
        "price": {"prompt_usd": 10.0, "answer_usd": 20.0},
        "max_tokens": 30,
    }
    step = {"best": {"by": "judge", "judge": {**model, **dict(best).pop("judge", {})}}}
    step["best"] |= {name: value for name, value in dict(best).items() if name != "judge"}
    return recipe(
        folder, teacher.url, **{"n": 2, "samples": SAMPLES, "seed": 0, "select": [*extra, step]} | fields,
    )  # fmt: skip


def run(folder: Path, teacher: Endpoint, judge: Endpoint, **fields: Any) -> Generated | TutelageError:
    try:
        return tutelage.generate(asked(folder, teacher, judge, **fields))
    except TutelageError as failed:
        return failed


def kept(folder: Path) -> list[tuple[str, int]]:
    return [(row["messages"][-2]["content"].split()[2], row["sample"]) for row in rows(folder)]


def test_the_judges_best_answer_is_kept_and_paid_at_its_own_price(teacher, judge, tmp_path):
    made = run(tmp_path, teacher, judge)
    assert kept(tmp_path) == [("0", 1), ("1", 1)] and (len(teacher.seen), len(judge.seen)) == (6, 6)
    assert made.card.spent_usd == pytest.approx(teacher.billed_usd + judge.billed_usd)
    content = judge.seen[0].body["messages"][0]["content"]
    assert "What is 0 and 0?" in content and "The right answer is known: 0" in content and "Score: N" in content
    assert (judge.seen[0].body["model"], judge.seen[0].body["max_tokens"]) == ("j", 30)
    (step,) = (step for step in made.card.dropped if step.step == "best")
    assert step.reasons == {"not the best of its prompt": 4}
    assert step.examples[0]["about"] == "its score is 4, prompts.jsonl:1, sample 1 has 9"
    assert made.card.judge["models"] == {"served-1": 6} and len(made.card.judge["template"]) == 64
    assert made.card.select[1]["best"]["judge"]["api"] == {"base_url": judge.url, "model": "j"}
    status = tutelage.status(tmp_path / "answers")
    assert (status.done, status.total) == (6, 6) and status.outcomes == {"answer": 6, "judge: answer": 6}
    assert status.spent_usd == pytest.approx(made.card.spent_usd)


def test_only_what_there_is_to_choose_from_is_judged_and_nothing_twice(teacher, judge, tmp_path):
    teacher.script = lambda n, body: writing(n, body) if body["seed"] or "1 and" in str(body) else Action(text="no")
    extra = [{"verify": {"regex": "^It is 1|one"}}]  # of the first prompt one answer is left, of the second three
    run(tmp_path, teacher, judge, extra=extra)
    assert kept(tmp_path) == [("0", 1), ("1", 1)] and len(judge.seen) == 3
    before = row_bytes(tmp_path)
    run(tmp_path, teacher, judge, extra=extra, best={"keep": 2})
    assert kept(tmp_path) == [("0", 1), ("1", 0), ("1", 1)] and len(judge.seen) == 3
    run(tmp_path, teacher, judge, extra=extra)
    assert row_bytes(tmp_path) == before and (len(teacher.seen), len(judge.seen)) == (6, 3)
    run(tmp_path, teacher, judge, extra=extra, best={"judge": {"prompt": "Q {question} A {answer}: Score: N?"}})
    assert len(judge.seen) == 6 and judge.seen[-1].body["messages"][0]["content"].startswith("Q What is 1 and 1? A It")
    assert len(teacher.seen) == 6


def test_replies_without_a_score_are_counted_and_stay_in_the_journal(teacher, judge, tmp_path):
    said = {"zero.": Action(text="Score: eleven"), "one.": scoring(0, {"messages": [{"content": ""}]})}
    refused = Action(text="x", finish="content_filter")
    judge.script = lambda n, body: next((a for w, a in said.items() if w in str(body)), refused)
    made = run(tmp_path, teacher, judge)
    (step,) = (step for step in made.card.dropped if step.step == "best")
    assert step.reasons == {"the judge's reply has no score": 2, "the judge gave no answer: refused": 2}
    assert next(e for e in step.examples if "no score" in e["why"])["about"] == "Score: eleven"
    assert kept(tmp_path) == [("0", 1), ("1", 1)]
    assert sum(key.startswith(JUDGE) for key in ledger_of(tmp_path).final) == 6


def test_the_cap_counts_teacher_and_judge_together(teacher, judge, tmp_path):
    failed = run(tmp_path, teacher, judge, budget_usd=0.0095)
    assert isinstance(failed, LimitError) and failed.code == "BUDGET" and 0 < len(judge.seen) < 6
    ledger_of(tmp_path, cap_usd=0.0095)
    assert teacher.billed_usd + judge.billed_usd <= 0.0095
    half = tutelage.generate(asked(tmp_path, teacher, judge, budget_usd=0.0095), ask=False)
    (step,) = (step for step in half.card.dropped if step.step == "best")
    assert step.reasons["not judged yet"] == 6 - len(judge.seen)
    made = run(tmp_path, teacher, judge)
    assert made.card.rows == 2 and (len(teacher.seen), len(judge.seen)) == (6, 6)


def test_killed_anywhere_the_judge_goes_on_and_every_cent_is_counted(teacher, judge):
    n_exact = 0
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        for n in range(14, 60, 2):
            folder = Path(name, str(n))
            folder.mkdir()
            teacher.seen.clear(), judge.seen.clear()
            code = faults.in_child(lambda: run(folder, teacher, judge, n=1), faults.die_inside(n))
            if code == 0:
                break
            before = set(ledger_of(folder, cap_usd=1.0).final)
            made = run(folder, teacher, judge, n=1)
            ledger = ledger_of(folder, cap_usd=1.0)
            assert kept(folder) == [("0", 1)] and before <= set(ledger.final) and len(ledger.final) == 2 * SAMPLES
            billed = teacher.billed_usd + judge.billed_usd
            assert made.card.spent_usd >= billed - 1e-12
            if not made.card.lost:
                n_exact += 1
                assert made.card.spent_usd == pytest.approx(billed)
    assert n > 24 and n_exact > 3


def dies_with_a_journalled_score() -> faults.Hook:
    """Dies before the first write after one that holds a reply of the judge: it is safe, its price not yet settled."""
    written = False

    def hook(operation: io.Operation) -> None:
        nonlocal written
        if operation.kind == "write" and written:
            os._exit(faults.DIED)
        written = written or (operation.data is not None and b"Score:" in bytes(operation.data))

    return hook


def test_a_score_that_was_journalled_before_a_kill_is_settled_at_the_judges_price(teacher, judge, tmp_path):
    best = {"judge": {"api": {"base_url": judge.url, "model": "j", "concurrency": 1}}}
    hook = dies_with_a_journalled_score()
    assert faults.in_child(lambda: run(tmp_path, teacher, judge, n=1, best=best), hook) == faults.DIED
    assert 0 < len(judge.seen) < SAMPLES
    made = run(tmp_path, teacher, judge, n=1, best=best)
    assert not made.card.lost and len(judge.seen) == SAMPLES
    assert made.card.spent_usd == pytest.approx(teacher.billed_usd + judge.billed_usd)


def test_a_no_of_the_judge_keeps_every_answer_and_the_same_command_goes_on(teacher, judge, tmp_path):
    judge.script = lambda n, body: error(401, "invalid_api_key", "no")
    failed = run(tmp_path, teacher, judge)
    assert isinstance(failed, RemoteError) and failed.code == "API_AUTH" and len(ledger_of(tmp_path).final) == 6
    judge.script = scoring
    assert run(tmp_path, teacher, judge).card.rows == 2 and len(teacher.seen) == 6


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 7", 7.0), ("fine.\n**Score:** 8.5/10", 8.5), ("score 3 then Score: 4.", 4.0), ("6", 6.0), (" 10\n", 10.0),
     ("Score: 11", None), ("Score: -3", None), ("Score: 85", None), ("good", None), ("nan", None), ("", None),
     ("Score: 12345678", None)],
)  # fmt: skip
def test_the_score_that_a_reply_ends_with(text, score):
    assert score_in(text) == score


@pytest.mark.parametrize(
    ("best", "fields", "message"),
    [
        ({"judge": {"prompt": "{answr}"}}, {}, "the judge's prompt names {answr}; it may name {question}, {answer}"),
        ({"judge": {"prompt": "{question}"}}, {}, "does not name {answer}"),
        ({"judge": {"price": None}}, {}, "best.judge.price is missing: generate has a price"),
        (
            {},
            {"price": None, "budget_usd": None, "max_requests": 9},
            "judge.price has no effect without generate.price",
        ),
        ({"by": "length"}, {}, "best.judge has no effect with by: length"),
        ({"keep": 3}, {}, "best.keep must be below generate.samples (3)"),
        ({"judge": {"api": {"base_url": "http://1.2.3.4/v1", "model": "j"}}}, {}, "is remote without TLS"),
        ({"judge": {"api": {"base_url": "a", "model": "j", "headers": {"api-key": "x"}}}}, {}, "may hold a key"),
    ],
)
def test_mistakes_about_the_judge_are_said_before_anything_is_sent(best, fields, message, teacher, judge, tmp_path):
    failed = run(tmp_path, teacher, judge, best=best, **fields)
    assert isinstance(failed, ConfigError) and message in failed.message
    assert teacher.seen == [] and judge.seen == []


def test_one_step_may_ask_a_judge_and_by_judge_needs_one(teacher, judge, tmp_path):
    written = asked(tmp_path, teacher, judge)
    written["generate"]["select"].append(json.loads(json.dumps(written["generate"]["select"][-1])))
    with pytest.raises(ConfigError, match="is the second one"):
        load_recipe(written)
    written["generate"]["select"] = [{"best": {"by": "judge"}}]
    with pytest.raises(ConfigError, match=r"best\.judge is missing: give its api"):
        load_recipe(written)
