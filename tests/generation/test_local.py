"""A model on this machine writes the answers: journalled like paid ones, the same bytes however it was stopped."""

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.generation.asking import ledger_of, prompts_file, row_bytes, rows
from tests.instruments import faults
from tests.instruments.quick_disk import QUICK_DISK
from tests.verbs import tiny_runs
from tutelage.data.answers import read_card
from tutelage.data.tokenize import Encoder
from tutelage.errors import ConfigError, Stopped
from tutelage.generation import decode, local
from tutelage.generation import journal as journals
from tutelage.models.fetch import PACKAGES
from tutelage.models.template import Renderer

N, MOST = 6, 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("model") / "teacher", layers=2)


def recipe(folder: Path, teacher: Path | str, *, n: int = N, **fields: Any) -> dict[str, Any]:
    asked = {
        "prompts": {"jsonl": str(prompts_file(folder, n)), "prompt": "prompt", "answer": "answer"},
        "max_tokens": MOST, "seed": 0, "batch": 4, "select": [{"complete": False}],
    }  # fmt: skip
    own = {"model": str(teacher), "dtype": "float32", "device": "cpu", "terms": "own"}
    return {
        "teacher": {**own, **fields.pop("section", {}), "answers": str(folder / "answers")},
        "student": str(teacher),
        "loss": "cross_entropy",
        "training": {"steps": 1},
        "generate": {key: value for key, value in {**asked, **fields}.items() if value is not None},
    }


def generate(folder: Path, teacher: Path | str, **fields: Any) -> "tutelage.Generated":
    folder.mkdir(exist_ok=True)
    return tutelage.generate(recipe(folder, teacher, **fields))


def test_it_writes_journals_and_accounts_for_every_answer(teacher, tmp_path, capsys):
    made = generate(tmp_path, teacher, samples=2)
    said = capsys.readouterr().err
    assert "asking this machine for 12 answers of teacher" in said and " tokens/s" in said and "cap:" not in said
    found = rows(tmp_path)
    assert len(found) == made.card.rows == made.n_sent == 2 * N and made.card.spent_usd is None
    assert len({row["messages"][-1]["content"] for row in found}) == 2 * N, "every sample has its own luck"
    assert {row["model"] for row in found} == {"teacher"} and str(tmp_path) not in json.dumps(found)
    (asked,) = made.card.teachers.values()
    assert asked.compute == {"device": "cpu", "dtype": "float32"} and set(asked.libraries or {}) >= {"torch"}
    assert asked.weights and asked.tokenizer and asked.template and (asked.asked, asked.rows) == (2 * N, 2 * N)
    state = tutelage.status(tmp_path / "answers")
    assert (state.done, state.total, state.requests, state.spent_usd) == (2 * N, 2 * N, 0, 0.0)
    ledger_of(tmp_path)
    before = row_bytes(tmp_path)
    assert generate(tmp_path, teacher, samples=2).n_sent == 0 and row_bytes(tmp_path) == before
    assert "nothing, written on this machine" in str(made)


def test_an_answer_depends_on_its_prompt_sample_and_seed_not_on_its_neighbours(teacher, tmp_path):
    generate(tmp_path / "a", teacher, batch=1)
    generate(tmp_path / "b", teacher, n=3, batch=5)
    generate(tmp_path / "b", teacher, batch=5)
    assert row_bytes(tmp_path / "a") == row_bytes(tmp_path / "b")
    generate(tmp_path / "c", teacher, seed=1)
    ours, theirs = rows(tmp_path / "a"), rows(tmp_path / "c")
    assert all(x["messages"][-1] != y["messages"][-1] for x, y in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(teacher, tmp_path):
    generate(tmp_path / "first", teacher)  # leaves the fingerprint of the weights in the cache folder
    operations = faults.operations(lambda: generate(tmp_path / "whole", teacher))
    whole = row_bytes(tmp_path / "whole")
    journal = [
        n for n, operation in enumerate(operations) if operation.kind == "write" and operation.path.suffix == ".jnl"
    ]
    n_kept = set[int]()
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        for n in sorted({*journal, journal[2] + 1}):
            folder = Path(name, str(n))
            folder.mkdir()
            code = faults.in_child(lambda folder=folder: generate(folder, teacher), faults.die_inside(n))
            assert code == faults.DIED
            known = set(ledger_of(folder).final) if (folder / "answers").exists() else set()
            made = generate(folder, teacher)
            assert row_bytes(folder) == whole and known <= set(ledger_of(folder).final)
            assert made.n_sent == N - len(known) and made.card.lost == 0
            n_kept.add(len(known))
    assert n_kept == {0, 4, N}, "whole rounds"


def test_a_signal_stops_at_the_next_token_and_the_same_call_goes_on(teacher, tmp_path, monkeypatch):
    generate(tmp_path / "whole", teacher)
    count, forward = 0, decode.Decoder._forward

    def stopped_after_a_while(self, *arguments):
        nonlocal count
        count += 1
        if count == MOST + 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments)

    monkeypatch.setattr(decode.Decoder, "_forward", stopped_after_a_while)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=f"4 of {N} answers are safe; rerun the same command") as caught:
        generate(tmp_path / "a", teacher)
    assert caught.value.exit_code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert generate(tmp_path / "a", teacher).n_sent == N - 4
    assert row_bytes(tmp_path / "a") == row_bytes(tmp_path / "whole")


def test_what_it_sees_is_what_the_student_is_trained_on(teacher, tmp_path, monkeypatch):
    seen: list[list[int]] = []
    write = decode.Decoder.write

    def watched(self, wishes, **others):
        seen.extend(list(wish.ids) for wish in wishes)
        return write(self, wishes, **others)

    monkeypatch.setattr(decode.Decoder, "write", watched)
    generate(tmp_path, teacher, n=1, system="Be <|im_end|> brief.")
    tokenizer = tiny_runs.tokenizer()
    renderer = Renderer.of(tokenizer)
    messages = [{"role": "system", "content": "Be <|im_end|> brief."}, {"role": "user", "content": "What is 0 and 0?"}]
    (chat,) = renderer.render_many([messages], add_generation_prompt=True)
    assert seen == [Encoder(tokenizer, renderer=renderer).prompt_ids(chat=chat)]
    ends = tokenizer.eos_token_id
    assert seen[0].count(ends) == 2, "a control token that is spelt in a text stays text"
    assert tokenizer.decode(seen[0]).endswith("<|im_start|>assistant\n")


def test_a_plain_text_is_continued(teacher, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 20)
    generate(tmp_path, teacher, prompts={"text": str(tmp_path / "*.txt")}, prompt_tokens=7)
    (row,) = rows(tmp_path)
    assert len(tiny_runs.tokenizer()(row["prompt"]).input_ids) == 7 and row["answer"]
    assert row["finish_reason"] in ("length", "stop")


def test_what_does_not_fit_the_model_is_counted_and_not_tried_again(teacher, tmp_path):
    folder = tmp_path
    written = recipe(folder, teacher, n=2)
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "word " * 200, "answer": "1"}) + "\n")
    made = tutelage.generate(written)
    assert made.card.outcomes["too_long"] == 1 and made.card.rows == 2
    assert tutelage.generate(written).n_sent == 0


def test_rounds_are_bounded_in_rows_and_in_padded_tokens(monkeypatch):
    monkeypatch.setattr(local, "MOST_PADDED", 20)
    prompts = [(n, [0] * n) for n in (1, 2, 3, 4, 9, 9, 9, 30)]
    cut = [[pair[0] for pair in together] for together in local._cut(prompts, most_rows=3)]
    assert cut == [[1, 2, 3], [4, 9], [9, 9], [30]]


def test_another_teacher_or_number_format_is_asked_anew_and_a_moved_folder_is_not(teacher, tmp_path):
    generate(tmp_path, teacher, n=2)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in teacher.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert generate(tmp_path, moved, n=2).n_sent == 0
    assert generate(tmp_path, moved, n=2, section={"dtype": "bfloat16"}).n_sent == 2
    other = tiny_runs.model_folder(tmp_path / "other", layers=2, seed=1)
    assert generate(tmp_path, other, n=2).n_sent == 2


def test_the_measured_number_format_stays_when_the_same_call_goes_on():
    found = {"device": "cpu", "dtype": "bfloat16"}
    here = local.Local(model="m", revision=None, dtype="auto", device="auto", weights="", tokenizer="", template=None)
    assert local.compute_of(here, found) == found


def stopped_in_the_middle(folder: Path, teacher: Path, monkeypatch, compute: dict[str, str]) -> None:
    """A journal with 4 of 6 answers, whose teacher computed as `compute` says."""
    generate(folder, teacher, n=4)
    journal = journals.Journal(folder / "answers", lambda _: None)
    state = ledger_of(folder)
    journal.commit([("run", {**state.run, "compute": {"": compute}})])
    journal.close()


def test_answers_that_were_begun_on_a_device_that_is_not_here_are_not_finished_on_another_one(
    teacher, tmp_path, monkeypatch, capsys
):
    stopped_in_the_middle(tmp_path, teacher, monkeypatch, {"device": "cuda", "dtype": "float32"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"were begun on cuda, which this machine lacks.*teacher.device=cpu"
    ) as caught:
        generate(tmp_path, teacher, section={"device": "auto"})
    assert caught.value.code == "RESUME_MISMATCH"
    made = generate(tmp_path, teacher, section={"device": "cpu"})
    said = capsys.readouterr().err
    assert "note[RESUMED]: answers of" in said and "begun on cuda (float32), the rest is written on cpu" in said
    assert made.card.teachers[""].compute == {"device": "cpu", "dtype": "float32", "before": "cuda (float32)"}
    other = tiny_runs.model_folder(tmp_path / "other", layers=2, seed=1)
    capsys.readouterr()
    generate(tmp_path, other, section={"device": "auto"}, n=1)
    assert "begun on" not in capsys.readouterr().err, "another model's answers are not this one's"


@pytest.mark.parametrize("name, value", [("budget_usd", 1.0), ("max_requests", 5)])
def test_money_has_no_meaning_here(name, value, teacher, tmp_path):
    with pytest.raises(ConfigError, match=f"generate.{name} has no effect with teacher.model: what it writes costs"):
        generate(tmp_path, teacher, **{name: value})
    with pytest.raises(ConfigError, match=r"generate.batch has no effect with teacher.api"):
        generate(tmp_path, teacher, section={"terms": None, "api": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}})


@pytest.mark.real
@pytest.mark.slow
def test_the_real_teacher_answers(tmp_path):
    (package,) = PACKAGES
    written = recipe(tmp_path, f"package:{package}", n=2, temperature=0.0, max_tokens=12, batch=2, samples=1)
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"prompt": "What is the capital of France?", "answer": "x"}) + "\n"
        + json.dumps({"prompt": "Name a colour. Answer in one word.", "answer": "x"}) + "\n"
    )  # fmt: skip
    tutelage.generate(written)
    assert "Paris" in rows(tmp_path)[0]["messages"][-1]["content"]
    (asked,) = read_card(tmp_path / "answers").teachers.values()
    assert asked.model == f"package:{package}"
