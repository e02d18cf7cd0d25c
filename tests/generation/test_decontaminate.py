"""Decontamination: what shares text with an evaluation set is dropped, by words, in prompts and answers."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.generation.asking import generate, recipe, rows
from tests.instruments.endpoint import Action
from tutelage.data.words import words_of
from tutelage.errors import ConfigError, IntegrityError
from tutelage.generation.select import Candidate, Verdict
from tutelage.generation.select import decontaminate as step
from tutelage.recipe import load_recipe
from tutelage.recipe.generation import Decontaminate

QUESTION = "A farmer has seventeen sheep and all but nine of them run away; how many are left?"
ROWS = [
    {"question": QUESTION, "answer": "Nine", "choices": ["nine sheep remain in the green field", "8"]},
    {"question": "What is the capital of France?", "answer": "Paris", "id": 1},
    {"question": "Is it?", "answer": "B", "id": 1},
]


def sets(folder: Path, lines: list[object] = ROWS, name: str = "exam.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return str(folder / name)


def said(folder: Path, prompt: str, answer: str = "ok", **settings: object) -> str:
    made = step.build(Decontaminate(against=(sets(folder),), **settings))
    ((found,),) = [made.judge([Candidate(text=answer, outcome="answer", reference="", asked=(prompt,))])]
    return found.about if isinstance(found, Verdict) else found


@pytest.mark.parametrize(
    ("prompt", "answer", "about"),
    [
        (f"Solve: {QUESTION}", "x", "line 1, prompt: a farmer has seventeen sheep and all but nine of them run away"),
        ("q", "No: \uff21 f\u2019armer has SEVENTEEN-sheep AND\n all but \u201cnine\u201d of them run, away!",
         "line 1, answer: a farmer has seventeen sheep and all but nine of them run away"),
        ("q", "a farmer has seventeen sheep and all but nine of them run", "line 1, answer: a farmer has"),  # 12, whole
        ("q", "so a farmer has seventeen sheep and all but nine of them run fast", ""),  # 12 of 14
        ("Please tell me, what is the capital of France? Think about it.", "x", "line 2, prompt: what is the capital"),
        ("all but nine of them", "x", "line 1, prompt: all but nine of them"),  # shorter than n, and within a text
        ("but nine of them", "x", ""),  # four words say nothing
        ("Is it?", "x", "line 3, prompt: is it"),  # unless they are the whole prompt
        ("q", "Paris", ""),
        ("q", "is it", ""),
        ("q", "There nine sheep remain in the green field.", "line 1, answer: nine sheep remain in the green field"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_texts_overlap_by_their_words(prompt, answer, about, tmp_path):
    found = said(tmp_path, prompt, answer)
    assert found.startswith(about) and bool(found) == bool(about)


def test_only_the_named_columns_are_compared(tmp_path):
    text = "nine sheep remain in the green field"
    assert said(tmp_path, "q", text) and not said(tmp_path, "q", text, columns=("question",))


def test_a_prompt_of_an_evaluation_set_is_dropped_with_the_name_of_the_set(server, tmp_path):
    texts = {0: "It is 0.", 1: f"As in: {QUESTION}", 2: "It is 4.", 3: "no"}
    server.script = lambda n, body: Action(text=texts[int(body["messages"][-1]["content"].split()[2])])
    (tmp_path / "b").mkdir()
    against = [sets(tmp_path), sets(tmp_path / "b", [{"question": "what is 2 and 2"}], "own.jsonl")]
    select = [{"decontaminate": {"against": against, "columns": ["question"]}}]
    made = generate(tmp_path, server.url, n=4, select=select)
    assert [row["messages"][0]["content"].split()[2] for row in rows(tmp_path)] == ["0", "3"]
    (dropped,) = (d for d in made.card.dropped if d.step == "decontaminate")
    assert dropped.reasons == {"overlaps exam.jsonl": 1, "overlaps own.jsonl": 1}
    assert dropped.examples[1]["about"] == "line 1, prompt: what is 2 and 2"
    assert set(made.card.select_files) == {"exam.jsonl", "own.jsonl"}
    assert made.card.select[1]["decontaminate"]["against"] == ["exam.jsonl", "own.jsonl"]


@pytest.mark.parametrize(
    ("lines", "columns", "error", "message"),
    [
        (ROWS, ["qestion"], ConfigError, "exam.jsonl:1 has no column 'qestion' (question?); found: question, answer"),
        ([{"a": 1}], None, ConfigError, "exam.jsonl holds no text"),
        (None, None, IntegrityError, "no file matches"),
    ],
)
def test_a_set_that_would_not_be_compared_is_refused_before_anything_is_sent(
    lines, columns, error, message, server, tmp_path
):
    path = sets(tmp_path, lines) if lines is not None else str(tmp_path / "exam.jsonl")
    with pytest.raises(error) as caught:
        generate(tmp_path, server.url, select=[{"decontaminate": {"against": path, "columns": columns}}])
    assert message in caught.value.message and "\n" not in caught.value.message and server.seen == []


def test_a_broken_line_of_a_set_is_not_passed_over(server, tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"question": "a b c d e f"}\n{"question": \n')
    with pytest.raises(IntegrityError, match=r"exam\.jsonl:2: not JSON"):
        generate(tmp_path, server.url, select=[{"decontaminate": {"against": str(tmp_path / "exam.jsonl")}}])
    assert server.seen == []


def test_memory_does_not_grow_with_the_answers(tmp_path):
    made = step.build(Decontaminate(against=(sets(tmp_path),)))

    def judge(n: int) -> None:
        for i in range(n):
            words = " ".join(f"w{i}x{j}" for j in range(5 + i % 40))
            made.judge([Candidate(text=words, outcome="answer", reference="", asked=(f"q {words}",))])

    judge(100)
    tracemalloc.start()
    judge(1000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000


WORDS = st.lists(st.sampled_from("abc"), min_size=3, max_size=12)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_long_texts_overlap_exactly_when_they_share_a_sequence(words, others):
    texts = [step._Text(file="f", line=1, words=tuple(other)) for other in others]
    found = step._Sets(texts=texts, n=3).overlap(words, is_prompt=False)
    shared = {tuple(words[i : i + 3]) for i in range(len(words) - 2)} & {
        tuple(other[i : i + 3]) for other in others for i in range(len(other) - 2)
    }
    assert (found is not None) == bool(shared) and (found is None or found[1] in shared)


def test_words_have_no_case_punctuation_or_form():
    assert words_of("It's \u201c\uff34\uff37\uff2f\u201d-fold, na\u00efve; na\u0069\u0308ve_x 3.5") == [
        *("its", "two", "fold", "na\u00efve", "na\u00efve", "x", "3", "5")
    ]
    assert words_of("\u7b54\u6848\u662f 42") == ["\u7b54", "\u6848", "\u662f", "42"]


def test_a_length_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ngram must be"):
        load_recipe(recipe(tmp_path, "http://x/v1", select=[{"decontaminate": {"against": "a", "ngram": 0}}]))
