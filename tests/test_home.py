"""The cache folder: named by TUTELAGE_HOME, else the platform's, private."""

import stat
from pathlib import Path

import pytest

from tutelage.home import home


def test_tutelage_home_names_the_folder_and_it_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "a" / "b"))
    assert home() == tmp_path / "a" / "b"
    assert stat.S_IMODE(home().stat().st_mode) == 0o700


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_the_platforms_cache_is_used(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUTELAGE_HOME") if value is None else monkeypatch.setenv("TUTELAGE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tmp_path in home().parents and home().name == "tutelage" and home().is_dir()
