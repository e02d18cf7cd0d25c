"""`cache verify`: bytes, rows and teacher; every kind of damage is found, nothing sound is accused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tutelage
from tests.cache.labelled import Place, sign
from tests.verbs import tiny_runs
from tutelage import reading
from tutelage.cache import again
from tutelage.cache.job import Job, windows_of_pass
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.shard import Rows, write_shard
from tutelage.cache.tokens import stored_rows
from tutelage.cache.writer import write
from tutelage.errors import ConfigError, IntegrityError
from tutelage.types import Batch, DenseTargets

CODECS = ("topk", "dense", "hidden", "threshold")


@pytest.fixture
def copied(place: Place, tmp_path: Path) -> Path:
    return place.copy(place.cache(), tmp_path / "cache")


@pytest.mark.parametrize("codec", CODECS)
def test_a_sound_cache_is_verified_down_to_the_teachers_bytes(place: Place, codec: str):
    found = tutelage.cache.verify(place.cache(codec), teacher=str(place.teacher()), sample="100%")
    assert found.compared is not None
    assert found.n_rows == found.n_decoded == found.compared.n_rows == found.compared.n_same_bytes == 40
    assert found.n_bytes == sum(p.stat().st_size for p in place.cache(codec).rglob("*") if p.is_file())
    assert found.unlisted == ()
    assert "40 rows: 40 the same bytes" in str(found)
    assert json.loads(json.dumps(found.as_json()))["rows_with_the_same_bytes"] == 40


def test_without_the_tokens_bytes_alone_are_checked_and_that_is_said(place: Place, tmp_path: Path, monkeypatch):
    path = place.cache()
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path))
    found = tutelage.cache.verify(path)
    assert (found.n_rows, found.n_decoded) == (40, 0)
    assert "0 of 40 decoded" in str(found)
    assert "tutelage label RECIPE" in str(found)
    with pytest.raises(ConfigError, match="not on this machine") as refused:
        tutelage.cache.verify(path, teacher=str(place.teacher()))
    assert refused.value.code == "CONFIG"


def test_a_flipped_bit_in_any_file_is_found(copied: Path):
    files = sorted(p for p in copied.rglob("*") if p.is_file())
    draw = np.random.default_rng(0)
    for n in range(60):
        path = files[n % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            tutelage.cache.verify(copied)
        path.write_bytes(whole)
    assert tutelage.cache.verify(copied).n_decoded == 40


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "gone": lambda data: None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_cut_longer_or_gone_is_found(copied: Path, damage: str):
    for path in sorted(p for p in copied.rglob("*") if p.is_file() and p.name != "manifest.json"):
        whole = path.read_bytes()
        changed = DAMAGE[damage](whole)
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(IntegrityError) as found:
            tutelage.cache.verify(copied)
        assert found.value.code == "CHECKSUM", path
        assert path.name in str(found.value)
        path.write_bytes(whole)


def test_a_damaged_header_is_damage_wherever_the_cache_is_opened(copied: Path):
    path = copied / "shards" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"keys"', b'"kezs"'))
    with pytest.raises(IntegrityError, match="header") as found:
        TeacherCache(copied)
    assert found.value.code == "CHECKSUM"


def test_a_file_that_belongs_to_no_cache_is_named(copied: Path):
    (copied / "shards" / "notes.txt").write_text("mine")
    assert tutelage.cache.verify(copied).unlisted == ("shards/notes.txt",)


def test_rows_that_were_swapped_behind_right_checksums_are_found(copied: Path):
    cache = TeacherCache(copied)
    (shard,) = cache.shards
    data = [[shard.row(n, draw=0).tobytes()] for n in range(shard.record.n_rows)]
    counts = np.array([shard.count(n) for n in range(shard.record.n_rows)])
    one, other = _two_of_equal_length(counts)
    data[one], data[other] = data[other], data[one]
    forged = Rows(keys_R=shard.keys.copy(), counts_R=counts, draws=data, witness_bytes=1.0, nll_nats=1.0)
    sign(copied, shards=(write_shard(copied, 0, forged),))
    with pytest.raises(IntegrityError, match=f"shard-00000.safetensors row {one}") as found:
        tutelage.cache.verify(copied)
    assert found.value.code == "CACHE_SHIFT"


def _two_of_equal_length(counts: np.ndarray) -> tuple[int, int]:
    values, n = np.unique(counts, return_counts=True)
    one, other = np.flatnonzero(counts == values[n.argmax()])[:2]
    return int(one), int(other)


def test_held_out_rows_of_another_teacher_are_found(place: Place, copied: Path):
    shutil.rmtree(copied / "held_out")
    place.copy(place.cache(seed=1) / "held_out", copied / "held_out")
    with pytest.raises(IntegrityError, match="another teacher than the training rows") as found:
        tutelage.cache.verify(copied)
    assert found.value.code == "CACHE_MISMATCH"


def test_a_start_with_another_tokenizer_is_found(copied: Path):
    shutil.rmtree(copied / "start")
    tiny_runs.model_folder(copied / "start", own=tiny_runs.tokenizer(seed=1))
    sign(copied, start={p.name: reading.sha256_file(p) for p in (copied / "start").iterdir()})
    with pytest.raises(IntegrityError, match="start holds tokenizer") as found:
        tutelage.cache.verify(copied)
    assert found.value.code == "CACHE_MISMATCH"


# --- the teacher ---
class Changed:
    """A teacher whose hidden states are off by a relative error."""

    def __init__(self, asker: again.Asker, error: float) -> None:
        self._asker, self._error = asker, error

    def targets(self, batch: Batch) -> DenseTargets:
        """What the teacher says, and noise."""
        import torch

        true = self._asker.targets(batch)
        noise_ND = torch.randn(true.hidden_ND.shape, generator=torch.Generator().manual_seed(0))
        return replace(true, hidden_ND=true.hidden_ND * (1 + self._error * noise_ND))


def changed_cache(place: Place, codec: str, folder: Path, *, error: float) -> Path:
    """A cache that says it is the teacher's, and is the teacher's with an error."""
    cache = TeacherCache(place.cache(codec))
    asker = again.Asker.of(cache.manifest, str(place.teacher()))
    (rows,) = stored_rows([cache.manifest])
    own = rows.take(cache.has(rows.keys_R))
    job = Job(
        rows=RowSet.of([(own.stores[0], own.numbers_R)]), asked=cache.manifest.asked, teacher=Changed(asker, error),
        windows=windows_of_pass(32, device="cpu"), fingerprint="", pad_id=0, shard_positions=200,
    )  # fmt: skip
    write(folder, job)
    return folder


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_differ_by_rounding_are_within_bounds(place: Place, tmp_path: Path, codec: str):
    path = changed_cache(place, codec, tmp_path / "cache", error=1e-3)
    found = tutelage.cache.verify(path, teacher=str(place.teacher()), sample="100%").compared
    assert found is not None
    assert found.n_rows == 32
    assert found.n_within > 16
    assert "within the bounds of rounding" in str(found)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_the_teacher_would_not_say_are_found_with_shard_and_row(place: Place, tmp_path: Path, codec: str):
    path = changed_cache(place, codec, tmp_path / "cache", error=3.0)
    with pytest.raises(IntegrityError, match=r"shard-00000\.safetensors row \d+, position \d+ differs") as found:
        tutelage.cache.verify(path, teacher=str(place.teacher()))
    assert found.value.code == "CACHE_MISMATCH"
    assert found.value.exit_code == 3


def test_another_model_is_refused_before_anything_is_asked(place: Place):
    with pytest.raises(IntegrityError, match="another model") as refused:
        tutelage.cache.verify(place.cache(), teacher=str(place.teacher(seed=1)))
    assert refused.value.code == "CACHE_MISMATCH"


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_share_of_the_passes_is_asked_evenly_and_the_first_always(share: float):
    wanted = again._every_so_many(share, seed="9f" * 32)
    asked = [wanted() for _ in range(1000)]
    assert asked[0]
    assert abs(sum(asked) - 1000 * share) <= 2
    gaps = np.diff(np.flatnonzero(asked[1:]))
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("sample", ["0", "-1%", "101%", "1.5", "nan", "half", "", "%", "1 %%", "inf"])
def test_a_share_that_is_none_is_refused(place: Place, sample: str):
    with pytest.raises(ConfigError, match="type --sample 1%") as refused:
        tutelage.cache.verify(place.cache(), sample=sample)
    assert refused.value.code == "CONFIG"


def test_the_command_ends_with_exit_code_3(copied: Path):
    (copied / "shards" / "shard-00000.safetensors").write_bytes(b"")
    code, out, err = tiny_runs.call("cache", "verify", copied)
    assert (code, out) == (3, "")
    assert "error[CHECKSUM]" in err
    assert "shard-00000" in err
