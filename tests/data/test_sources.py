"""What is read of the user's files, what is rejected with its reason, and which files are errors."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import files, standard_library
from tutelage.data.example import Example, Message, Reject
from tutelage.data.sources import SourceSpec, content, read
from tutelage.errors import ConfigError, IntegrityError


def jsonl(folder: Path, *lines: str | bytes) -> str:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def rows_of(folder: Path, *lines: str | bytes, **columns: str) -> list[Example | Reject]:
    return list(read(SourceSpec(kind="jsonl", patterns=(jsonl(folder, *lines),), columns=columns)))


DEFECTS = {
    '{"text": ""}': "empty text",
    '{"text": " \\n "}': "empty text",
    '{"text": "a\\u0000b"}': "NUL character in text",
    '{"text": "a\\ud800b"}': "lone surrogate in text",
    '{"text": NaN}': "NaN is not JSON",
    '{"text": 3}': "text must be a string, this is a number",
    '{"text": null}': "text must be a string, this is null",
    '{"text": "cut': "not JSON: Unterminated string starting at (column 10)",
    '["text"]': "a row must be an object, this is a list",
    "[" * 100_000: "not JSON: nested too deeply",
    '{"prompt": "p", "answer": ""}': "empty answer",
    '{"prompt": "p", "answers": "a"}': "no column text, messages, or prompt and answer; found: prompt, answers",
    '{"messages": []}': "messages must be a list of turns, this is a list",
    '{"messages": [{"role": "user"}]}': "no column 'content'; found: role",
    '{"messages": [{"role": "assistant", "content": " "}]}': "empty content of message 1",
    '{"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}': (
        "a tool call of message 1 has no name; expected {function: {name, arguments}}"
    ),
    '{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}': (
        "message 1 has tool_calls; only role and content are supported"
    ),
    '{"token_ids": [1, true]}': "token_ids must be whole numbers from 0",
    '{"token_ids": [1, -2]}': "token_ids must be whole numbers from 0",
    '{"token_ids": [1, 2], "loss_mask": [1]}': "loss_mask has 1 entries, token_ids 2",
    '{"token_ids": [1, 2], "loss_mask": [1, 2]}': "loss_mask must be true and false, or 1 and 0",
    '{"id": 7, "text": "first", "n": 2}': "a copy: an earlier row of this file has its id and content",
}


def test_each_defect_is_a_reject_with_its_reason_and_line_and_the_good_rows_stay(tmp_path):
    lines = ['{"id": 7, "text": "first"}', *DEFECTS, '{"text": "last"}']
    items = rows_of(tmp_path, *lines)
    assert [item.reason for item in items[1:-1]] == list(DEFECTS.values())
    assert [item.name.rsplit(":", 1)[1] for item in items] == [str(n) for n in range(1, len(lines) + 1)]
    assert (items[0].text, items[-1].text) == ("first", "last")


def test_a_row_of_ten_megabytes_is_rejected_and_the_next_line_keeps_its_number(tmp_path):
    huge = json.dumps({"text": "x" * files.MAX_ROW_BYTES * 2})
    items = rows_of(tmp_path, '{"text": "a"}', huge, '{"text": "b"}')
    assert [type(item) for item in items] == [Example, Reject, Example]
    assert items[1].reason == "row of more than 10,000,000 bytes"
    assert items[2].name.endswith(":3")


def test_only_a_line_feed_ends_a_row(tmp_path):
    items = rows_of(tmp_path, '{"text": "a\u2028b\u0085c\x1cd"}'.replace("\x1c", "\\u001c"), '{"text": "e"}\r', "")
    assert [item.text for item in items] == ["a\u2028b\u0085c\x1cd", "e"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert rows_of(tmp_path, b'\xef\xbb\xbf{"text": "a"}')[0].text == "a"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert next(iter(read(SourceSpec(kind="text", patterns=(str(tmp_path / "a.txt"),))))).text == "hello"


def test_named_columns_are_used_and_a_missing_one_names_those_found(tmp_path):
    good, bad = rows_of(tmp_path, '{"q": "2+2", "a": "4"}', '{"question": "2+2", "a": "4"}', prompt="q", answer="a")
    assert (good.prompt, good.answer) == ("2+2", "4")
    assert bad.reason == "no column 'q'; found: question, a"


def test_messages_are_read(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "tool_calls": None}]}
    (example,) = rows_of(tmp_path, json.dumps(row))
    assert example.messages == (Message("user", "hi"), Message("assistant", "yo"))


def test_a_bad_file_is_an_error_that_says_what_was_found_and_where(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "b\xff"}\n')
    (tmp_path / "empty.txt").touch()
    table = {
        ("text", "corpsu/*.jsonl"): "no file matches .*nearest: .*/corpus",
        ("text", "corpus/trian.jsonl"): "no file matches .*nearest: .*/corpus/train.jsonl",
        ("text", "corpus"): r"is a directory; name its files: .*/corpus/\*",
        ("text", "empty.txt"): r"is empty \(0 bytes\)",
        ("jsonl", "corpus/*.jsonl"): r"train.jsonl line 3 is not UTF-8 \(byte 0xff at offset 26\)",
        ("text", "corpus/*.jsonl"): r"train.jsonl line 3 is not UTF-8 \(byte 0xff at offset 26\)",
    }
    for (kind, pattern), message in table.items():
        with pytest.raises(IntegrityError, match=message) as caught:
            list(read(SourceSpec(kind=kind, patterns=(str(tmp_path / pattern),))))
        assert caught.value.code == "DATA_READ"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be", "utf-32", "latin1"])
def test_a_file_in_another_encoding_is_an_error_with_the_command_that_converts_it(tmp_path, encoding):
    rows = "".join(json.dumps({"text": f"één rij {n}"}, ensure_ascii=False) + "\n" for n in range(9))
    for kind, text in (("jsonl", rows), ("text", "één\n\ntwee\n")):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(text.encode(encoding))
        with pytest.raises(IntegrityError, match=f"convert it: iconv -f {encoding} -t utf-8 {path}$") as caught:
            list(read(SourceSpec(kind=kind, patterns=(str(path),), separator="\n\n" if kind == "text" else "")))
        assert caught.value.code == "DATA_READ"


def test_zeros_that_a_power_loss_has_left_are_no_other_encoding(tmp_path):
    damaged, good = rows_of(tmp_path, b"\0" * 100, '{"text": "good"}')
    assert isinstance(damaged, Reject) and isinstance(good, Example)


def test_brackets_of_a_folder_that_is_there_are_its_name_and_those_of_a_file_are_written_otherwise(tmp_path):
    """The folder of a recipe stands before each of its patterns, and its user did not choose it as a pattern."""
    for folder in ("run[1]", "run1"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "b[2].txt").write_text(folder)
    for pattern in ("run[1]/**/*.txt", "run[1]/deep/b[[]2]*"):
        (item,) = read(SourceSpec(kind="text", patterns=(str(tmp_path / pattern),)))
        assert item.text == "run[1]"
    with pytest.raises(IntegrityError, match=r"no file matches .*\[ that is part of a name is written \[\[\]"):
        list(read(SourceSpec(kind="text", patterns=(str(tmp_path / "run1" / "deep" / "b[2]*.txt"),))))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(IntegrityError, match="cannot be read"):
        list(read(SourceSpec(kind="text", patterns=(str(path),))))


def test_a_text_file_is_a_document_and_an_empty_one_under_a_pattern_is_a_reject(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").touch()
    first, second = read(SourceSpec(kind="text", patterns=(str(tmp_path / "*.txt"), str(tmp_path / "a.txt"))))
    assert first.text == "one\n\ntwo\n"
    assert second.reason == "empty text"


@given(st.lists(st.text("ab\n|", max_size=5), min_size=1, max_size=8), st.sampled_from(["|", "||", "|\n|"]))
def test_a_separator_cuts_a_file_as_split_would(tmp_path_factory, pieces, separator):
    path = tmp_path_factory.mktemp("split") / "a.txt"
    text = separator.join(pieces)
    path.write_bytes(text.encode())
    if text:
        documents = read(SourceSpec(kind="text", patterns=(str(path),), separator=separator))
        assert [d.text for d in documents] == [piece for piece in text.split(separator) if piece.strip()]


def test_a_separator_across_two_blocks_cuts_and_lines_are_counted(tmp_path):
    first = "x" * (files.BLOCK_BYTES - 2) + "\n"
    (tmp_path / "a.txt").write_text(f"{first}<END>second\n<END>third")
    documents = list(read(SourceSpec(kind="text", patterns=(str(tmp_path / "a.txt"),), separator="<END>")))
    assert [d.text for d in documents] == [first, "second\n", "third"]
    assert [d.name.rsplit(":", 1)[1] for d in documents] == ["1", "2", "3"]


def test_python_objects_are_read_like_rows_and_an_iterator_is_refused():
    given_example = Example(source="s", name="n", text="kept")
    items = list(read(SourceSpec(kind="examples", examples=["plain", {"text": "row"}, given_example, 3])))
    assert [item.text for item in items[:3]] == ["plain", "row", "kept"]
    assert items[3].reason == "a row must be an object, this is a number"
    with pytest.raises(ConfigError, match="iterator"):
        SourceSpec(kind="examples", examples=iter(["a"]))


def test_unknown_kinds_and_columns_are_refused():
    with pytest.raises(ConfigError, match="kind 'textt' unknown; known: text, jsonl"):
        SourceSpec(kind="textt")
    with pytest.raises(ConfigError, match="columns \\['anwser'\\] unknown"):
        SourceSpec(kind="jsonl", columns={"anwser": "a"})


def test_the_content_of_a_source_is_that_of_its_files_not_their_names(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    a, b = (SourceSpec(kind="text", patterns=(str(tmp_path / name),), name="s") for name in ("a.txt", "b.txt"))
    assert content(a) == content(b)
    (tmp_path / "b.txt").write_text("texT")
    assert content(a) != content(b)


@given(st.text('ab",[', max_size=20), st.text('ab",[', max_size=20))
def test_two_examples_have_one_id_only_if_they_are_equal(first, second):
    example = Example(source="s", name="n", prompt=first, answer=second)
    assert example.id == Example(source="t", name="m", prompt=first, answer=second).id
    assert (example.id == Example(source="s", name="n", prompt=second, answer=first).id) == (first == second)
    assert (example.id == Example(source="s", name="n", prompt=first + second).id) == (not second)


@given(st.lists(st.text("aB c", min_size=1, max_size=4), min_size=1, max_size=4))
def test_copies_that_differ_in_white_space_or_case_are_one_document(words):
    text, copy = " ".join(words), "\n\t ".join(words).upper() + " "
    first, second = (Example(source="s", name="n", text=t) for t in (text, copy))
    assert first.document == second.document
    assert first.document != Example(source="s", name="n", text=text + "x").document


def test_pythons_documentation_is_read_without_importing_it():
    before = set(sys.modules)
    documents = list(itertools.islice(standard_library.read_docs("docs"), 200))
    assert documents[0].name.startswith("topic ")
    named = {d.name: d.text for d in documents}
    assert named["topic assert"].startswith('The "assert" statement')
    assert any("(" in text.split("\n")[0] for name, text in named.items() if name.startswith("_"))
    assert not {"this", "antigravity"} & (set(sys.modules) - before)


@pytest.mark.slow
def test_pythons_documentation_is_a_corpus_without_copies_and_its_source_code_shares_none_of_it():
    documents = list(standard_library.read_docs("docs"))
    assert sum(len(d.text) for d in documents) > 1_500_000  # SmolLM2's tokenizer: 3.8 characters a token
    assert len({d.document for d in documents}) == len(documents)
    assert len({d.name for d in documents}) > 0.99 * len(documents)
    code = "\n".join(d.text for d in standard_library.read_source("code"))
    long = [d.text.split("\n\n")[1] for d in documents if d.name.startswith("argparse.") and len(d.text) > 300]
    assert long and not any(text in code for text in long)
    assert "class ArgumentParser(" in code
