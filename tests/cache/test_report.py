"""`cache inspect`: the numbers are those of the files and of the teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tutelage
from tests.cache import tiny_cache
from tutelage.cache.error import measure
from tutelage.cache.head import full_head
from tutelage.cache.reader import TeacherCache, read_tensors
from tutelage.cache.writer import write
from tutelage.errors import ConfigError, IntegrityError
from tutelage.models.head import head_of
from tutelage.types import Head

ROWS = tiny_cache.Rows(40)


def made(folder: Path, codec: str = "topk", **more) -> Path:
    write(folder, tiny_cache.job(ROWS, codec=codec, **more))
    return folder


def test_the_bytes_are_those_on_disk_and_sum_up(tmp_path: Path):
    path = made(tmp_path / "cache", draws=2)
    found = tutelage.cache.inspect(path)
    on_disk = sum(p.stat().st_size for p in (path / "shards").iterdir())
    costs = found.costs
    assert costs.total * found.manifest.n_positions == pytest.approx(on_disk)
    assert costs.targets + costs.witness + costs.index == pytest.approx(costs.total)
    assert costs.witness == 2.0  # one byte for each of two draws
    assert costs.raw == 2 * tiny_cache.V
    everything = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert on_disk + sum(found.beside.values()) == everything


def test_the_teachers_own_loss_is_the_live_one(tmp_path: Path):
    found = tutelage.cache.inspect(made(tmp_path / "cache"))
    live, total, n = tiny_cache.teacher(), 0.0, 0
    for number in range(len(ROWS.lengths)):
        row = ROWS.row(number)
        next_ids = torch.from_numpy(row.ids[1:][row.loss_mask[1:]].astype("i8"))
        total -= float(tiny_cache.trained_logp(live, ROWS, number).gather(-1, next_ids[:, None]).sum())
        n += len(next_ids)
    assert found.manifest.n_positions == n
    assert found.loss_nats == pytest.approx(total / n, rel=1e-9)


def live_head() -> Head:
    return head_of(tiny_cache.teacher().model, n_vocabulary=tiny_cache.V)


@pytest.mark.parametrize("codec", ["topk", "dense", "hidden", "threshold"])
def test_the_error_is_measured_against_the_positions_kept_in_full(tmp_path: Path, codec: str):
    path = made(tmp_path / "cache", codec)
    found, cache = tutelage.cache.inspect(path), TeacherCache(path)
    probe = read_tensors(path, "probe.safetensors", cache.manifest)
    assert found.error is not None
    keys = [key.numpy().tobytes() for key in probe["keys"]]
    ids = {name: probe[name].numpy().astype("i8") for name in ("current_ids", "next_ids")}
    targets = cache.targets(keys, current_ids_N=ids["current_ids"], next_ids_N=ids["next_ids"], draws=[0] * len(keys))
    assert found.error == measure(targets, hidden_ND=probe["hidden"], head=live_head())
    assert (found.error.kl_nats is None) == (codec in ("topk", "threshold"))
    least, most = {"topk": (0.05, 2.0), "dense": (0.0, 1e-12), "hidden": (1e-5, 0.05), "threshold": (0.05, 0.5)}[codec]
    assert least <= found.error.per_position <= most


@pytest.mark.parametrize("place", ["beside the probe", "held out", "own tables"])
def test_the_head_is_found_wherever_it_is_stored(tmp_path: Path, place: str):
    path = tmp_path / "cache"
    if place == "held out":
        write(path / "held_out", replace(tiny_cache.job(ROWS, codec="hidden"), probe=False))
        write(path, replace(tiny_cache.job(ROWS), head=False))
        assert not (path / "head.safetensors").exists()
    else:
        made(path, "hidden" if place == "own tables" else "topk")
    head = full_head(TeacherCache(path))
    assert head is not None
    hidden_ND = torch.randn(5, head.weight_VD.shape[1], dtype=torch.float64)
    assert torch.equal(head.logits(hidden_ND), live_head().logits(hidden_ND))


def test_the_table_is_at_most_100_columns_wide_and_says_everything(tmp_path: Path):
    found = tutelage.cache.inspect(made(tmp_path / ("long-" * 30) / "cache\x1b[31m", temperature=2.0))
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for said in ("topk", "temperature 2, draws 1", "a token", "once a cache", "perplexity", "kept mass", "sdpa"):
        assert said in text, said
    assert tiny_cache.teacher().fingerprint[:12] in text


def test_a_cache_without_a_probe_says_that_nothing_was_measured(tmp_path: Path):
    write(tmp_path / "cache", replace(tiny_cache.job(ROWS, codec="hidden"), probe=False))
    found = tutelage.cache.inspect(tmp_path / "cache")
    assert found.error is None and found.as_json()["error"] is None
    assert "not measured" in str(found)


def test_what_is_no_cache_and_a_damaged_probe_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no teacher cache") as absent:
        tutelage.cache.inspect(tmp_path)
    assert absent.value.code == "CACHE_ABSENT"
    path = made(tmp_path / "cache")
    data = bytearray((path / "probe.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "probe.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"probe\.safetensors") as damaged:
        tutelage.cache.inspect(path)
    assert damaged.value.code == "CHECKSUM"
