"""Templates over columns: plain substitution and nothing else, checked before a cent is spent."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tutelage
from tests.generation.asking import recipe, rows
from tutelage.data.example import RowDefectError
from tutelage.errors import ConfigError, TutelageError
from tutelage.generation.templates import rendered
from tutelage.recipe import load_recipe
from tutelage.recipe.column_text import parse

ROWS = [
    {"question": "2+2?", "n": 3, "ok": True, "solution": "SECRET-4", "a.b": "dot", "x[0]": "index", "!r:>9": "odd"},
    {"question": "{n} {question.__class__}", "n": 4.5, "ok": False, "solution": "SECRET-5", "a.b": "", "x[0]": "",
     "!r:>9": ""},
]  # fmt: skip


def asked(folder: Path, url: str, *, lines: list[Any] = ROWS, source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return recipe(folder, url, prompts={"jsonl": str(folder / "q.jsonl"), **source}, **fields)


def test_columns_stand_in_the_prompt_and_the_system_prompt_and_the_reference_is_not_sent(server, tmp_path):
    template = "Q: {question} ({n}, {ok}) {{{a.b}}} {x[0]} {!r:>9}"
    written = asked(
        tmp_path, server.url, source={"template": template, "answer": "solution"}, system="You have {n} tries. {{}}"
    )
    made = tutelage.generate(written, overrides=["teacher.api.concurrency=1"])
    assert [[m["content"] for m in seen.body["messages"]] for seen in server.seen] == [
        ["You have 3 tries. {}", "Q: 2+2? (3, true) {dot} index odd"],
        ["You have 4.5 tries. {}", "Q: {n} {question.__class__} (4.5, false) {}  "],
    ]
    assert not any(b"SECRET" in seen.raw for seen in server.seen)
    assert [row["reference"] for row in rows(tmp_path)] == ["SECRET-4", "SECRET-5"]
    assert made.card.sampling["templates"] == [template]


def test_a_template_that_names_the_reference_sends_it(server, tmp_path):
    tutelage.generate(asked(tmp_path, server.url, source={"template": "{question} {solution}"}))
    assert all(b"SECRET" in seen.raw for seen in server.seen)


def test_the_hash_of_the_card_follows_the_template_and_equal_texts_are_not_asked_again(server, tmp_path):
    hashes = set[str]()
    for template in ("{question}", "{question} ", "{n}"):
        hashes.add(tutelage.generate(asked(tmp_path, server.url, source={"template": template})).card.template)
    assert len(hashes) == 3 and len(server.seen) == 6
    tutelage.generate(asked(tmp_path, server.url, source={"prompt": "question"}))
    assert len(server.seen) == 6, "the same words were asked before"
    assert all(len(h) == len(hashlib.sha256().hexdigest()) for h in hashes)


def test_the_system_prompt_has_columns_beside_conversations_and_continued_texts_too(server, tmp_path):
    lines = [{"messages": [{"role": "user", "content": "hi"}], "who": "Ada"}]
    tutelage.generate(asked(tmp_path, server.url, lines=lines, source={"messages": "messages"}, system="To {who}."))
    assert [m["content"] for m in server.seen[0].body["messages"]] == ["To Ada.", "hi"]


@pytest.mark.parametrize(
    ("source", "system", "found"),
    [
        ({"template": "{qestion}"}, None, "no column 'qestion' (question?); found: question, n, ok"),
        ({"template": "{question.__class__}"}, None, "no column 'question.__class__' (question?)"),
        ({"template": "{question[0]}"}, None, "no column 'question[0]' (question?)"),
        ({"template": "{question!r}"}, None, "no column 'question!r' (question?)"),
        ({"template": "{question:>10}"}, None, "no column 'question:>10' (question?)"),
        ({"template": "{0}"}, None, "no column '0'; found: question"),
        ({"prompt": "question"}, "In {lang}", "no column 'lang'"),
    ],
)
def test_an_unknown_column_is_one_line_before_anything_is_sent(source, system, found, server, tmp_path):
    with pytest.raises(ConfigError) as caught:
        tutelage.generate(asked(tmp_path, server.url, source=source, system=system), overrides=["data.max_reject=0.99"])
    assert found in caught.value.message and "q.jsonl:1" in caught.value.message
    assert "\n" not in caught.value.message and "generate.prompts[0]" in caught.value.message and server.seen == []


def test_rows_that_lack_a_column_others_have_are_rejected_rows(server, tmp_path, capsys):
    lines = [*ROWS, {"n": 1}, {"question": None}, {"question": ["a"]}, {"question": " "}, {"question": "\ud800"}, []]
    written = asked(tmp_path, server.url, lines=lines, source={"template": "Q: {question}"})
    with pytest.raises(TutelageError, match="6 of 8 prompts rejected"):
        tutelage.generate(written)
    assert server.seen == []
    assert tutelage.generate(written, overrides=["data.max_reject=0.9"]).card.rows == 2
    assert "q.jsonl:3, no column 'question'; found: n" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["{", "}", "a {b", "{}", "{a{b}}", "x } y", "{a}}"])
def test_a_brace_alone_is_a_mistake_of_the_recipe(template, tmp_path):
    with pytest.raises(ConfigError, match=r"generate\.prompts.*\.template the brace at character"):
        load_recipe(asked(tmp_path, "http://127.0.0.1:1/v1", source={"template": template}))


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ({"template": "always"}, {}, "prompts.template names no {column}"),
        ({"template": {"a": None}, "answer": "b"}, {}, "1 problem in recipe: generate.prompts.template must be text"),
        ({"template": "{a}", "prompt": "b"}, {}, "prompts.columns beside template may name answer"),
        ({"text": "*.txt", "jsonl": None, "template": "{a}"}, {}, "template has no effect without jsonl"),
        ({"promt": "a"}, {}, "generate.prompts.promt unknown (prompt?)"),
        ({"prompt": "a"}, {"system": "x", "interface": "completions"}, "system has no effect with interface"),
        ({"text": "*.txt", "jsonl": None}, {"system": "x"}, "system has no effect on texts that are continued"),
    ],
)
def test_fields_that_would_do_nothing_are_refused(source, fields, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_recipe(asked(tmp_path, "http://127.0.0.1:1/v1", source=source, **fields))
    assert message in caught.value.message


def test_training_data_have_no_template(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.template"):
        load_recipe({"student": "a/b", "data": {"sources": [{"jsonl": "a", "template": "{a}"}]}, "loss": "forward_kl"})


def test_columns_of_a_text_are_refused_in_the_system_prompt(server, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    written = recipe(tmp_path, server.url, prompts={"text": str(tmp_path / "a.txt")}, system="{a}", interface="chat")
    written["student"] = {"model": "none"}
    from tutelage.generation.prompts import Asking, read_prompts

    asking = Asking(system="{a}", interface="chat", beginning=lambda text: text)
    with pytest.raises(ConfigError, match=r"generate\.system names \{a\}, and generate\.prompts\[0\] has no columns"):
        list(read_prompts(load_recipe(written).generate, asking))


# --- properties ---
NAMES = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1)
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(TEXTS, NAMES, TEXTS.filter(str.strip))))
def test_what_is_between_comes_out_as_it_is_and_each_name_as_its_value(parts):
    row = {name: value for _, name, value in parts}
    template = "".join(f"{text.replace('{', '{{').replace('}', '}}')}{{{name}}}" for text, name, _ in parts)
    assert rendered(parse(template), row) == "".join(text + row[name] for text, name, _ in parts)


@given(st.text(alphabet="{}ab.", max_size=12))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    try:
        made = parse(text)
    except ValueError:
        return
    values = {column: "v" for column in made.columns}
    assert "v" in rendered(made, values) or not values
    with pytest.raises(RowDefectError) if made.columns else pytest.MonkeyPatch.context():
        rendered(made, {})
