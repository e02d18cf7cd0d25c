"""docs/cache-format.md: its reader reads real caches, its tables name every field, its arithmetic is right."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cache.labelled import Place
from tutelage.cache import manifest as manifests
from tutelage.cache.codec import CODECS
from tutelage.cache.reader import TeacherCache, read_tables
from tutelage.cache.tokens import find, stored_rows, tokens_of
from tutelage.cache.witness import next_logp
from tutelage.plugins import names
from tutelage.types import DenseTargets, TopKTargets

PAGE = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text(encoding="utf-8")
BLOCK = PAGE.split("```python\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def reader() -> dict:
    found: dict = {}
    exec(BLOCK, found)
    return found


def every_row(cache: TeacherCache, read):
    """(what our reader gives for a row, its witness, its positions, its bytes as the page's reader finds them)."""
    data = {key: (n, row) for key, n, row in read["rows"](cache.folder)}
    for shard in cache.shards:
        rows = find(stored_rows([cache.manifest]), shard.keys)
        assert rows is not None
        for number in range(len(rows)):
            tokens = tokens_of(rows.take(slice(number, number + 1)))
            n, row = data.pop(tokens.keys[0])
            assert n == len(tokens.next_ids_N)
            ids = {"current_ids_N": tokens.current_ids_N, "next_ids_N": tokens.next_ids_N}
            yield cache.targets(tokens.keys, **ids, draws=[0]), next_logp(cache, tokens), n, row
    assert not data


@pytest.mark.parametrize("more", [{}, {"tail": False}, {"k": 3}])
def test_the_reader_of_the_page_reads_topk(place: Place, reader: dict, more: dict):
    cache = TeacherCache(place.cache("topk", **more))
    settings = cache.manifest.settings
    for ours, witness_N, n, row in every_row(cache, reader):
        assert isinstance(ours, TopKTargets)
        ids, logp, others, next_logp_N = reader["topk"](row, n, settings["k"], 298, tail=settings["tail"])
        assert np.array_equal(ids, ours.ids_NK.numpy())
        both = torch.log_softmax(torch.from_numpy(np.concatenate([logp, others[:, None]], -1).astype("f4")), -1)
        torch.testing.assert_close(both[:, :-1], ours.logp_NK)
        torch.testing.assert_close(both[:, -1], ours.tail_logp_N)
        assert np.allclose(next_logp_N, witness_N)


def test_the_reader_of_the_page_reads_hidden(place: Place, reader: dict):
    cache = TeacherCache(place.cache("hidden"))
    tables = reader["tensors"](cache.folder / "tables.safetensors")
    for name, tensor in read_tables(cache.folder, cache.manifest).items():
        assert np.array_equal(tables[name], tensor.numpy())
    for ours, witness_N, n, row in every_row(cache, reader):
        assert isinstance(ours, DenseTargets)
        states, next_logp_N = reader["hidden"](row, n, tables)
        np.testing.assert_allclose(states, ours.hidden_ND.numpy(), rtol=1e-6, atol=1e-6)  # another order of products
        assert np.allclose(next_logp_N, witness_N)


def test_the_reader_is_short_and_uses_numpy_alone():
    lines = [line for line in BLOCK.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert re.findall(r"^(?:import|from) (\w+)", BLOCK, flags=re.M) == ["json", "pathlib", "numpy"]
    assert max(map(len, BLOCK.splitlines())) <= 125


def test_every_field_and_every_codec_stands_on_the_page():
    for kind in (manifests.Manifest, manifests.Asked, manifests.TeacherRecord, manifests.Shard, manifests.Member):
        assert [name for name in kind.model_fields if f"`{name}`" not in PAGE] == []
    assert [codec for codec in names(CODECS) if f"| `{codec}` |" not in PAGE] == []
    for name in (manifests.TABLES, manifests.PROBE, manifests.HEAD, manifests.PLAN, manifests.MANIFEST):
        assert name in PAGE
    assert f"Format version {manifests.FORMAT_VERSION}." in PAGE


def test_the_tables_of_threshold_are_named(place: Place):
    tables = TeacherCache(place.cache("threshold")).tables
    parts = {name.removeprefix("cur_").removeprefix("next_") for name in tables}
    assert [part for part in parts if f"`{part}`" not in PAGE] == []


def test_the_arithmetic_is_right():
    rows = re.findall(r"^\| (.+?) \| ([\d,]+)(?: \(.*?\))? \| ([\d.,]+) million GB \|$", PAGE, flags=re.M)
    assert len(rows) == 6
    for stored, n_bytes, millions in rows:
        total = int(n_bytes.replace(",", "")) * 15e12 / 1e15
        assert float(millions.replace(",", "")) == pytest.approx(total, rel=5e-3), stored
    sizes = {stored.split(",")[0] + stored[-2:]: int(n.replace(",", "")) for stored, n, _ in rows}
    assert sizes["`topk`64"] == 64 * 18 // 8 + 2 * 64 + 3
    assert sizes["`topk`16"] == 16 * 18 // 8 + 2 * 16 + 3
    assert sizes["`hidden`20"] == 5120 + 3
