"""The set as Parquet: the same rows, the same bytes for any timing, whole or absent."""

import json
import subprocess
import sys

import pytest

import tutelage
from tests.generation.asking import generate, recipe, rows
from tests.instruments.endpoint import Action, Endpoint
from tutelage.data.answers import PARQUET, read_card
from tutelage.errors import ConfigError
from tutelage.generation import parquet

pq = pytest.importorskip("pyarrow.parquet")


def test_parquet_holds_the_rows_of_the_set_and_how_the_teacher_was_asked(server, tmp_path):
    made = generate(tmp_path, server.url, parquet=True, temperature=0.5, samples=2)
    table = pq.read_table(tmp_path / "answers" / PARQUET).to_pylist()
    card = read_card(tmp_path / "answers")
    assert len(table) == made.card.rows == 12
    for found, row in zip(table, rows(tmp_path), strict=True):
        assert {name: found[name] for name in row} == row
        assert (found["teacher"], found["template"], found["terms"]) == ("m", card.template, "none")
        assert json.loads(found["sampling"]) == card.sampling and json.loads(found["price"]) == card.price
        assert found["prompt"] is None and found["more"] is None


def test_texts_have_prompt_and_answer_and_other_fields_of_a_row_are_kept(server, tmp_path, monkeypatch):
    from tutelage.verbs import generate as verb

    monkeypatch.setattr(parquet, "GROUP_ROWS", 2)
    generate(tmp_path, server.url, parquet=True, interface="completions")
    table = pq.read_table(tmp_path / "answers" / PARQUET).to_pylist()
    assert [row["answer"] for row in table] == [row["answer"] for row in rows(tmp_path)]
    assert table[0]["messages"] is None and verb.PARQUET == PARQUET
    assert pq.ParquetFile(tmp_path / "answers" / PARQUET).num_row_groups == 3
    assert parquet._row({"id": "1", "judge": 3}, ["id"])["more"] == '{"judge": 3}'


def test_the_bytes_do_not_depend_on_the_timing(tmp_path):
    found = []
    for n, concurrency in enumerate((1, 8)):
        folder = tmp_path / "runs"
        folder.mkdir(exist_ok=True)
        with Endpoint(lambda i, body: Action(delay_s=0.01 * ((i * 7) % 3))) as server:
            own = folder / f"{n}"
            own.mkdir()
            whole = recipe(own, server.url, api={"concurrency": concurrency}, parquet=True)
            whole["generate"]["prompts"]["name"] = "prompts"
            tutelage.generate(whole)
        found.append((own / "answers" / PARQUET).read_bytes())
    assert found[0] == found[1]


def test_a_set_without_it_has_no_old_one_beside_it(server, tmp_path):
    generate(tmp_path, server.url, parquet=True)
    generate(tmp_path, server.url)
    assert not (tmp_path / "answers" / PARQUET).exists()


def test_a_failure_while_it_is_written_leaves_no_half_file_and_no_card_of_it(server, tmp_path, monkeypatch):
    def fail(row, names):
        raise OSError("no more")

    monkeypatch.setattr(parquet, "_row", fail)
    with pytest.raises(OSError, match="no more"):
        generate(tmp_path, server.url, parquet=True)
    assert not (tmp_path / "answers" / PARQUET).exists()
    with pytest.raises(ConfigError, match="no finished answers"):
        read_card(tmp_path / "answers")


def test_without_the_library_the_error_names_what_to_install_before_anything_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "tutelage\[parquet\]"'):
        generate(tmp_path, server.url, parquet=True)
    assert server.seen == []


def test_it_loads_with_datasets(server, tmp_path):
    pytest.importorskip("datasets")
    generate(tmp_path, server.url, parquet=True)
    code = (
        "import datasets, sys; d = datasets.load_dataset('parquet', data_files=sys.argv[1], cache_dir=sys.argv[2]); "
        "print(d['train'].num_rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "answers" / PARQUET), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "6"
