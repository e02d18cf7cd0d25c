"""A cache gives the same targets for the same tokens in every batch, and refuses what does not belong to it."""

import json
import random

import numpy as np
import pytest
import torch

from tests.cache.tiny_cache import Rows, V, job, row_targets, teacher, trained_logp
from tutelage import reading
from tutelage.cache.manifest import FORMAT_VERSION, MANIFEST, PLAN, read_manifest
from tutelage.cache.reader import TeacherCache
from tutelage.cache.writer import write
from tutelage.errors import ConfigError, IntegrityError


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(30)


@pytest.fixture(scope="module", params=["dense", "topk"])
def cache(request, rows, tmp_path_factory) -> TeacherCache:
    folder = tmp_path_factory.mktemp(request.param) / "cache"
    write(folder, job(rows, codec=request.param))
    return TeacherCache(folder)


def logp_of(targets) -> torch.Tensor:
    """What was stored, as a tensor with a row a position."""
    return targets.logits_NV if hasattr(targets, "logits_NV") else targets.logp_NK


def test_every_row_has_the_teachers_distribution_at_its_trained_positions(cache, rows):
    live = teacher()
    for n in range(30):
        expected = trained_logp(live, rows, n)
        found = row_targets(cache, rows, [n])
        if cache.manifest.asked.codec == "topk":
            expected = expected.gather(-1, found.ids_NK)
            torch.testing.assert_close(logp_of(found).double(), expected, atol=0, rtol=2**-10)
        else:
            torch.testing.assert_close(logp_of(found), expected, atol=1e-12, rtol=1e-12)


def test_the_batch_the_order_and_the_neighbours_of_a_row_do_not_matter(cache, rows):
    numbers = list(range(30))
    random.Random(1).shuffle(numbers)
    together = logp_of(row_targets(cache, rows, numbers))
    alone = torch.cat([logp_of(row_targets(cache, rows, [n])) for n in numbers])
    assert torch.equal(together, alone)


def test_a_row_that_was_not_labelled_is_refused_by_name(cache, rows):
    with pytest.raises(IntegrityError, match="tutelage label") as caught:
        row_targets(cache, Rows(1, seed=77), [0])
    assert caught.value.code == "NO_SOFT_TARGETS"


@pytest.mark.parametrize("shift", [1, -1])
def test_targets_read_for_tokens_shifted_by_one_are_refused(cache, rows, shift):
    longest = int(np.argmax(rows.n_trained))
    row = rows.row(longest)
    trained = np.flatnonzero(row.loss_mask[1:])
    ids = np.roll(row.ids, shift).astype(np.int64)
    with pytest.raises(IntegrityError) as caught:
        cache.targets(
            [rows.keys[longest].tobytes()], current_ids_N=ids[trained], next_ids_N=ids[trained + 1], draws=[0]
        )
    assert caught.value.code == "CACHE_SHIFT"


def test_targets_of_swapped_rows_are_refused(cache, rows):
    a, b = next((a, b) for a in range(30) for b in range(30) if a != b and rows.n_trained[a] == rows.n_trained[b] > 2)
    row = rows.row(a)
    trained = np.flatnonzero(row.loss_mask[1:])
    with pytest.raises(IntegrityError) as caught:
        cache.targets(
            [rows.keys[b].tobytes()],
            current_ids_N=row.ids[trained].astype(np.int64),
            next_ids_N=row.ids[trained + 1].astype(np.int64),
            draws=[0],
        )
    assert caught.value.code == "CACHE_SHIFT"


def test_a_batch_with_another_number_of_positions_is_refused(cache, rows):
    with pytest.raises(IntegrityError, match="positions"):
        cache.targets([rows.keys[0].tobytes()], current_ids_N=np.array([3]), next_ids_N=np.array([4]), draws=[0])


def test_the_teachers_own_loss_stands_in_the_manifest(cache, rows):
    live, nll_nats = teacher(), 0.0
    for n in range(30):
        row = rows.row(n)
        trained = np.flatnonzero(row.loss_mask[1:])
        logp = trained_logp(live, rows, n)
        nll_nats -= float(logp[range(len(trained)), row.ids[trained + 1].astype(np.int64)].sum())
    assert sum(shard.nll_nats for shard in cache.manifest.shards) == pytest.approx(nll_nats, rel=1e-12)


def test_a_flipped_bit_anywhere_is_noticed(rows, tmp_path):
    folder = tmp_path / "cache"
    write(folder, job(rows))
    draw = random.Random(0)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    for _ in range(120):
        path = draw.choice(files)
        data = bytearray(path.read_bytes())
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
        sound, _ = path.read_bytes(), path.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            opened = TeacherCache(folder)
            opened.verify()
            row_targets(opened, rows, range(30))
        assert caught.value.code in ("CHECKSUM", "DATA_READ", "FORMAT_VERSION"), (path, place)
        path.write_bytes(sound)
    TeacherCache(folder).verify()


def test_a_shard_that_was_cut_or_removed_is_refused_when_the_cache_is_opened(rows, tmp_path):
    folder = tmp_path / "cache"
    write(folder, job(rows))
    shard = sorted((folder / "shards").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=shard.name):
        TeacherCache(folder)
    shard.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        TeacherCache(folder)


def test_an_older_format_is_refused_with_what_to_do_and_left_alone(rows, tmp_path):
    """Its rows would be read by another coder, and be called damaged or made for other tokens."""
    folder = tmp_path / "cache"
    write(folder, job(rows))
    content = reading.read_json(folder / MANIFEST)
    (folder / MANIFEST).write_text(json.dumps({**content, "format_version": FORMAT_VERSION - 1}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for use in (TeacherCache, lambda path: write(path, job(rows))):
        with pytest.raises(IntegrityError, match="tutelage label.* another folder") as caught:
            use(folder)
        assert caught.value.code == "FORMAT_VERSION"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unfinished_cache_of_an_older_format_is_refused(rows, tmp_path):
    folder = tmp_path / "cache"
    write(folder, job(rows))
    manifest = reading.read_json(folder / MANIFEST)
    plan = {"manifest": {**manifest, "format_version": FORMAT_VERSION - 1}, "edges": [0, 1], "first_shard": 0}
    (folder / PLAN).write_text(json.dumps({**plan, "rows_sha256": ""}))
    (folder / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match=f"format {FORMAT_VERSION - 1}"):
        write(folder, job(rows))


def test_a_newer_format_an_absent_and_a_foreign_folder_are_refused(rows, tmp_path):
    folder = tmp_path / "cache"
    write(folder, job(rows))
    content = reading.read_json(folder / MANIFEST)
    (folder / MANIFEST).write_text(json.dumps({**content, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(IntegrityError, match="pip install -U tutelage"):
        TeacherCache(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(folder)
    with pytest.raises(ConfigError, match="tutelage label") as caught:
        TeacherCache(tmp_path / "nowhere")
    assert caught.value.code == "CACHE_ABSENT"


def test_two_rows_whose_keys_begin_alike_are_told_apart(rows, tmp_path):
    pair = Rows(2, seed=4)
    keys = pair.keys.copy()
    keys[1, :8] = keys[0, :8]
    pair.keys = keys
    write(tmp_path / "cache", job(pair))
    cache = TeacherCache(tmp_path / "cache")
    live = teacher()
    for n in range(2):
        found = row_targets(cache, pair, [n])
        torch.testing.assert_close(
            found.logp_NK.double(), trained_logp(live, pair, n).gather(-1, found.ids_NK), atol=0, rtol=2**-10
        )


def test_the_vocabulary_is_the_real_one(cache):
    assert cache.manifest.asked.n_vocabulary == V
