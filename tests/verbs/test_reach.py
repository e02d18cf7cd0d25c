"""Whole runs on data as people have them: Parquet, compressed lines, preference data, mixed by tokens."""

import gzip
import json

import pytest

import tutelage
from tests.verbs.tiny_runs import chats, documents, recipe
from tutelage.data.store import open_store

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


@pytest.mark.slow
def test_a_run_learns_from_parquet_chats_and_compressed_preferences_mixed_by_tokens(base, tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist(chats(40)), tmp_path / "chats.parquet")
    rows = [{"prompt": text[:20], "chosen": text[20:], "rejected": "no"} for text in documents(30, seed=8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "preferences.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    sources = [
        {"parquet": str(tmp_path / "chats.parquet"), "messages": "messages", "name": "chats"},
        {"jsonl": str(tmp_path / "preferences.jsonl.gz"), "prompt": "prompt", "chosen": "chosen", "weight": 3.0},
    ]
    data = {"sources": sources, "mix": "tokens", "train_on": "answers", "max_length": 64, "held_out": 0.2}
    run = tutelage.train(recipe(base, data=data), run_dir=tmp_path / "run")
    said = capsys.readouterr().err
    assert "note[PREFERENCE]: the chosen answers of jsonl:" in said and "rejected ones not read" in said
    assert [row["step"] for row in run.metrics if "student/total" in row] == [1, 2, 3, 4]
    store = open_store(tutelage.home.home() / "data" / run_store(run))
    assert store.manifest.n_rejects == 0 and store.manifest.n_examples == 70


def run_store(run: tutelage.Run) -> str:
    return str(json.loads((run.path / "provenance.json").read_text())["data"]["store"])
